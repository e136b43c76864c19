// SPDX-License-Identifier: Apache-2.0
package io.broadhead.attention.cache;

import java.nio.ByteBuffer;
import java.util.Arrays;

/** A pool whose tokens are numbers, so that a test can see what is where. */
final class TaggedMemory implements BlockMemory {
  private static final int WIDTH = Long.BYTES;

  /** What no token has been written to. */
  static final long EMPTY = Long.MIN_VALUE;

  private final int blockSize;
  private final long[][] tags;
  private final ByteBuffer image;

  TaggedMemory(int caches, int blockSize, int numBlocks) {
    this.blockSize = blockSize;
    this.tags = new long[caches][blockSize * numBlocks];
    for (long[] cache : tags) {
      Arrays.fill(cache, EMPTY);
    }
    this.image = ByteBuffer.allocate(2 * WIDTH * blockSize);
  }

  void set(int cache, long slot, long tag) {
    tags[cache][(int) slot] = tag;
  }

  long get(int cache, int place, int offset) {
    return tags[cache][place * blockSize + offset];
  }

  @Override
  public int tokenBytes(int cache) {
    return WIDTH;
  }

  @Override
  public void copy(int source, int target) {
    for (long[] cache : tags) {
      System.arraycopy(cache, source * blockSize, cache, target * blockSize, blockSize);
    }
  }

  /** The value of a token is the complement of its key. */
  @Override
  public ByteBuffer read(int cache, int place) {
    for (int i = 0; i < blockSize; i++) {
      image.putLong(WIDTH * i, get(cache, place, i));
      image.putLong(WIDTH * (blockSize + i), ~get(cache, place, i));
    }
    return image;
  }

  @Override
  public ByteBuffer image(int cache) {
    for (int i = 0; i < 2 * blockSize; i++) {
      image.putLong(WIDTH * i, i < blockSize ? EMPTY : ~EMPTY);
    }
    return image;
  }

  @Override
  public void write(int cache, int place) {
    for (int i = 0; i < blockSize; i++) {
      long key = image.getLong(WIDTH * i);
      if (~key != image.getLong(WIDTH * (blockSize + i))) {
        throw new IllegalStateException("key and value of token " + i + " are not of one token");
      }
      tags[cache][place * blockSize + i] = key;
    }
  }
}
