// SPDX-License-Identifier: Apache-2.0
package io.broadhead.attention.job;

import io.broadhead.arrow.DType;
import java.io.Serializable;

/**
 * Shape of the KV cache that every caching layer of a job gets its own one of. Immutable.
 *
 * @param blockSize tokens of a block, a multiple of 16
 * @param numBlocks blocks of each layer's pool; 0 where no layer keeps a cache, or memoryFraction
 *     decides
 * @param memoryFraction how much of the free memory of a GPU the pools of all layers take; 0:
 *     numBlocks decides
 * @param dtype what layers store unless they say otherwise
 */
public record KvCacheSpec(int blockSize, long numBlocks, float memoryFraction, KvCacheDtype dtype)
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
    if (!(memoryFraction >= 0 && memoryFraction <= 1)) {
      throw InvalidJobException.expected(
          JobFileKey.MEMORY_FRACTION.key(), JobFileKey.MEMORY_FRACTION.accepted(), memoryFraction);
    }
    if (numBlocks > 0 && memoryFraction > 0) {
      throw InvalidJobException.expected(
          JobFileKey.MEMORY_FRACTION.key(),
          "no such key beside " + JobFileKey.NUM_BLOCKS.key(),
          memoryFraction);
    }
    if (dtype == null) {
      dtype = KvCacheDtype.AUTO;
    }
  }

  /** Pools of {@code numBlocks} blocks. */
  public KvCacheSpec(int blockSize, long numBlocks, KvCacheDtype dtype) {
    this(blockSize, numBlocks, 0, dtype);
  }

  /** Whether the free memory of a GPU decides how many blocks there are. */
  public boolean isFraction() {
    return memoryFraction > 0;
  }

  /** Bytes of the keys and values of one layer's pool with elements of {@code stored}. */
  public long bytes(LayerSpec layer, DType stored) {
    return bytes(numBlocks, layer, stored);
  }

  /** Bytes of one block of such a pool. */
  long blockBytes(LayerSpec layer, DType stored) {
    return bytes(1, layer, stored);
  }

  private long bytes(long blocks, LayerSpec layer, DType stored) {
    return Math.multiplyExact(
        Math.multiplyExact(2L * blocks, (long) blockSize * stored.byteWidth()),
        (long) layer.numKvHeads() * layer.headSize());
  }
}
