// SPDX-License-Identifier: Apache-2.0
/**
 * Managed block tables: which block of the pool holds which tokens of which sequence. Knows neither
 * Flink nor kernels; what it needs of them are {@link io.broadhead.attention.cache.BlockMemory} and
 * {@link io.broadhead.attention.cache.PartStore}.
 */
package io.broadhead.attention.cache;
