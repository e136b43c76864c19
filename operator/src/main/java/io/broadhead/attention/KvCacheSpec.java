// SPDX-License-Identifier: Apache-2.0
package io.broadhead.attention;

import io.broadhead.arrow.DType;
import java.io.Serializable;

/**
 * Shape of the KV cache that every caching layer of a job gets its own one of. Immutable.
 *
 * @param blockSize tokens of a block, a multiple of 16
 * @param numBlocks blocks of each layer's pool; 0 only where no layer keeps a cache
 * @param dtype what layers store unless they say otherwise
 */
public record KvCacheSpec(int blockSize, long numBlocks, KvCacheDtype dtype)
    implements Serializable {

  /** Block ids are int32 in a step batch. */
  static final long MAX_BLOCKS = Integer.MAX_VALUE;

  static final int DEFAULT_BLOCK_SIZE = 16;

  public KvCacheSpec {
    if (blockSize < 16 || blockSize % 16 != 0) {
      throw InvalidJobException.expected(
          JobFileKey.BLOCK_SIZE.key(), "a positive multiple of 16", blockSize);
    }
    if (numBlocks < 0 || numBlocks > MAX_BLOCKS) {
      throw InvalidJobException.expected(
          JobFileKey.NUM_BLOCKS.key(), "1 to " + MAX_BLOCKS, numBlocks);
    }
    if (dtype == null) {
      dtype = KvCacheDtype.AUTO;
    }
  }

  /** Bytes of the keys and values of one layer's pool with elements of {@code stored}. */
  public long bytes(LayerSpec layer, DType stored) {
    return Math.multiplyExact(
        Math.multiplyExact(2L * numBlocks, (long) blockSize * stored.byteWidth()),
        (long) layer.numKvHeads() * layer.headSize());
  }
}
