// SPDX-License-Identifier: Apache-2.0
/**
 * Paged attention without an engine around it: layers, KV caches and one {@code step} call. Knows
 * Arrow and the kernel facade, but neither Flink nor the native binding.
 */
package io.broadhead.attention;
