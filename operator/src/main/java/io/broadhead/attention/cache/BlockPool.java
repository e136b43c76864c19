// SPDX-License-Identifier: Apache-2.0
package io.broadhead.attention.cache;

import java.util.function.Consumer;

/**
 * The places of the pool: which block has which, how many use it, and in which order places are
 * given away that nobody uses.
 *
 * <p>A place without users stays filled, and its block can be taken into use again, until the place
 * is needed: places whose contents nobody wants are given away first, then those that were left the
 * longest ago. Used by one thread.
 */
final class BlockPool {
  private final CacheBlock[] blocks;
  private final Consumer<CacheBlock> evicted;

  // The free queue: a ring through the places without users, with a place that is none as its head.
  private final int[] next;
  private final int[] previous;
  private final int head;
  private int free;

  /**
   * @param evicted told of a block whose place is given away, while its contents are still there
   */
  BlockPool(int numBlocks, Consumer<CacheBlock> evicted) {
    this.blocks = new CacheBlock[numBlocks];
    this.evicted = evicted;
    this.next = new int[numBlocks + 1];
    this.previous = new int[numBlocks + 1];
    this.head = numBlocks;
    next[head] = head;
    previous[head] = head;
    for (int place = 0; place < numBlocks; place++) {
      link(place, previous[head]);
    }
  }

  int capacity() {
    return blocks.length;
  }

  /** Places without users, whether filled or not. */
  int free() {
    return free;
  }

  /**
   * Gives {@code block} a place and its first user; changes nothing if the block that had it cannot
   * be evicted.
   *
   * @return false if every place is in use
   */
  boolean take(CacheBlock block) {
    int place = next[head];
    if (place == head) {
      return false;
    }
    if (blocks[place] != null) {
      evicted.accept(blocks[place]);
      blocks[place].place = CacheBlock.NOWHERE;
    }
    unlink(place);
    blocks[place] = block;
    block.place = place;
    block.users = 1;
    return true;
  }

  /** Adds a user to a block that has a place. */
  void use(CacheBlock block) {
    if (block.users++ == 0) {
      unlink(block.place);
    }
  }

  /**
   * Takes a user away.
   *
   * @param wanted whether the contents of a block without users may be asked for again
   */
  void release(CacheBlock block, boolean wanted) {
    if (--block.users == 0) {
      link(block.place, wanted ? previous[head] : head);
      if (!wanted) {
        empty(block);
      }
    }
  }

  /** A block without users whose contents nobody will ask for again loses its place, if any. */
  void forget(CacheBlock block) {
    if (block.place != CacheBlock.NOWHERE) {
      unlink(block.place);
      link(block.place, head);
      empty(block);
    }
  }

  private void empty(CacheBlock block) {
    blocks[block.place] = null;
    block.place = CacheBlock.NOWHERE;
  }

  private void link(int place, int before) {
    int after = next[before];
    next[before] = place;
    previous[place] = before;
    next[place] = after;
    previous[after] = place;
    free++;
  }

  private void unlink(int place) {
    next[previous[place]] = next[place];
    previous[next[place]] = previous[place];
    free--;
  }
}
