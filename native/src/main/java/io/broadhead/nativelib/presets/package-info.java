// SPDX-License-Identifier: Apache-2.0
/**
 * How the C header becomes Java. The binding itself ({@code io.broadhead.nativelib} and {@code
 * io.broadhead.nativelib.global}) is generated from {@code broadhead/broadhead.h} at build time;
 * everything above this module goes through {@code io.broadhead.kernel}.
 */
package io.broadhead.nativelib.presets;
