// SPDX-License-Identifier: Apache-2.0
package io.broadhead.attention.cache;

import java.util.Arrays;

/** The blocks of a sequence in the order of its tokens, and where in the pool they are. */
final class BlockTable {
  private static final CacheBlock[] NONE = new CacheBlock[0];

  private CacheBlock[] blocks = NONE;
  private int[] places = new int[0];
  private int size;

  /**
   * The block, always the last one, that a fork left to two sequences in the middle, or -1: this
   * one may read its first {@link #borrowedTokens} tokens and must copy it before it appends.
   */
  int borrowed = -1;

  int borrowedTokens;

  /** Leading blocks that are full in all caches, and saved. */
  int finished;

  int size() {
    return size;
  }

  CacheBlock get(int index) {
    return blocks[index];
  }

  void add(CacheBlock block) {
    if (size == blocks.length) {
      blocks = Arrays.copyOf(blocks, Math.max(8, 2 * size));
      places = Arrays.copyOf(places, blocks.length);
    }
    blocks[size++] = block;
    places[size - 1] = block.place;
  }

  void set(int index, CacheBlock block) {
    finished = Math.min(finished, index);
    blocks[index] = block;
    places[index] = block.place;
  }

  /** Shares the blocks of the first {@code tokens} tokens of {@code parent}. */
  void borrow(BlockTable parent, int tokens, int blockSize) {
    int count = (tokens + blockSize - 1) / blockSize;
    for (int i = 0; i < count; i++) {
      parent.get(i).references++;
      add(parent.get(i));
    }
    borrowedTokens = tokens % blockSize;
    borrowed = borrowedTokens == 0 ? -1 : count - 1;
  }

  CacheBlock removeLast() {
    CacheBlock last = blocks[--size];
    blocks[size] = null;
    return last;
  }

  /** Places of all blocks; only the first {@link #size} count, and only while they are in use. */
  int[] places() {
    return places;
  }

  /** Reads the places again after blocks came back to the pool. */
  void refreshPlaces() {
    for (int i = 0; i < size; i++) {
      places[i] = blocks[i].place;
    }
  }
}
