// SPDX-License-Identifier: Apache-2.0
package io.broadhead.kernel;

import io.broadhead.arrow.DType;
import java.util.Objects;

/**
 * Shape of a KV cache.
 *
 * @param numBlocks blocks of the pool
 * @param blockSize tokens of a block, a multiple of 16
 * @param dtype type of the stored elements
 */
public record CacheConfig(
    long numBlocks, int blockSize, int numKvHeads, int headSize, DType dtype) {
  public CacheConfig {
    Objects.requireNonNull(dtype, "dtype");
  }
}
