// SPDX-License-Identifier: Apache-2.0
/**
 * The safe face of the native kernels: handles with an owner, checked arguments, exceptions with a
 * code. The only package that touches the generated binding.
 */
package io.broadhead.kernel;
