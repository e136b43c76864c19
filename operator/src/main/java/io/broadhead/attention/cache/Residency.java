// SPDX-License-Identifier: Apache-2.0
package io.broadhead.attention.cache;

import java.util.LinkedHashSet;
import java.util.Set;

/**
 * Which sequences have their blocks in the pool. Where sequences may be swapped, those that were
 * not used for the longest time make room for others; their blocks stay where they are until the
 * places are needed, and go to the store only then. Used by one thread.
 */
final class Residency {
  private final BlockPool pool;
  private final BlockSaver saver;
  private final RecordStore records;
  private final boolean swaps;
  private final CacheCounters counters;
  private final Set<Sequence> residents = new LinkedHashSet<>();

  Residency(
      BlockSaver saver, RecordStore records, int numBlocks, boolean swaps, CacheCounters counters) {
    this.pool = new BlockPool(numBlocks, this::evicted);
    this.saver = saver;
    this.records = records;
    this.swaps = swaps;
    this.counters = counters;
  }

  int capacity() {
    return pool.capacity();
  }

  int free() {
    return pool.free();
  }

  /** A place is given away: what somebody will ask for again must be in the store. */
  private void evicted(CacheBlock block) {
    if (block.references > 0) {
      counters.blocksSwappedOut++;
      saver.save(block);
    } else {
      counters.blocksEvicted++;
      discard(block);
    }
  }

  private void discard(CacheBlock block) {
    unregister(block);
    saver.remove(block);
  }

  private static void unregister(CacheBlock block) {
    if (block.hash != null) {
      block.shard.blocksByHash.remove(block.hash, block);
    }
  }

  /** Gives a new block of {@code sequence} a place and its first reference. */
  void create(CacheBlock block, Sequence sequence) throws StepFullException {
    take(block, sequence);
    block.references = 1;
  }

  /** A block of other sequences becomes one of {@code sequence} too. */
  void share(CacheBlock block, Sequence sequence) throws StepFullException {
    bringIn(block, sequence);
    block.references++;
  }

  private void bringIn(CacheBlock block, Sequence sequence) throws StepFullException {
    if (block.place != CacheBlock.NOWHERE) {
      pool.use(block);
      return;
    }
    take(block, sequence);
    boolean loaded = false;
    try {
      saver.load(block);
      loaded = true;
    } finally {
      if (!loaded) {
        pool.release(block, false);
      }
    }
    counters.blocksSwappedIn++;
  }

  /** A resident sequence has {@code block} no longer. */
  void drop(CacheBlock block) {
    block.references--;
    pool.release(block, block.references > 0 || isRegistered(block));
    if (block.references == 0) {
      abandoned(block);
    }
  }

  /** No sequence has {@code block}; while it has a place, one that begins alike may ask for it. */
  private void abandoned(CacheBlock block) {
    if (block.place == CacheBlock.NOWHERE) {
      discard(block);
    } else if (!block.parts.isEmpty()) {
      saver.record(block); // so that whoever restores the cache knows what to remove
    }
  }

  private static boolean isRegistered(CacheBlock block) {
    return block.hash != null && block.shard.blocksByHash.get(block.hash) == block;
  }

  /** Brings the blocks of {@code sequence} into the pool. */
  void use(Sequence sequence) throws StepFullException {
    if (sequence.resident) {
      return;
    }
    // Those that are there still must not make room for the others.
    sequence.forEachBlock(
        block -> {
          if (block.place != CacheBlock.NOWHERE) {
            pool.use(block);
          }
        });
    boolean entered = false;
    try {
      bringIn(sequence.own, sequence);
      bringIn(sequence.cross, sequence);
      entered = true;
    } finally {
      if (!entered) {
        sequence.forEachBlock(
            block -> {
              if (block.place != CacheBlock.NOWHERE) {
                pool.release(block, true);
              }
            });
      }
    }
    enter(sequence);
  }

  private void bringIn(BlockTable table, Sequence sequence) throws StepFullException {
    for (int i = 0; i < table.size(); i++) {
      if (table.get(i).place == CacheBlock.NOWHERE) {
        bringIn(table.get(i), sequence);
      }
    }
    table.refreshPlaces();
  }

  /** {@code sequence} has no blocks yet, or they are in the pool. */
  void enter(Sequence sequence) {
    sequence.resident = true;
    residents.add(sequence);
  }

  private void take(CacheBlock block, Sequence sequence) throws StepFullException {
    while (!pool.take(block)) {
      Sequence coldest = swaps ? coldestBefore(sequence.lastStep) : null;
      if (coldest == null) {
        throw new StepFullException("none of the pool's " + pool.capacity() + " blocks can be had");
      }
      swapOut(coldest);
    }
  }

  /** The resident that was not used for the longest time, and not in the step being planned. */
  private Sequence coldestBefore(long step) {
    Sequence coldest = null;
    for (Sequence resident : residents) {
      if (resident.lastStep < step && (coldest == null || resident.lastStep < coldest.lastStep)) {
        coldest = resident;
      }
    }
    return coldest;
  }

  private void swapOut(Sequence sequence) {
    counters.sequencesSwappedOut++;
    release(sequence.own);
    release(sequence.cross);
    sequence.resident = false;
    residents.remove(sequence);
  }

  /** The last blocks first: they are given away before those that others may begin with. */
  private void release(BlockTable table) {
    for (int i = table.size() - 1; i >= 0; i--) {
      pool.release(table.get(i), true);
    }
  }

  /** Ends {@code sequence}: nobody will use it again, and its shard forgets it. */
  void end(Sequence sequence) {
    sequence.shard.sequences.remove(sequence.id, sequence);
    if (sequence.wasRecorded) {
      records.removeSequence(sequence.shard.key, SequenceKey.of(sequence.id));
      sequence.wasRecorded = false;
    }
    end(sequence.own, sequence.resident);
    end(sequence.cross, sequence.resident);
    sequence.resident = false;
    residents.remove(sequence);
  }

  private void end(BlockTable table, boolean resident) {
    table.borrowed = -1;
    while (table.size() > 0) {
      CacheBlock block = table.removeLast();
      if (resident) {
        drop(block);
      } else {
        dropAbsent(block);
      }
    }
  }

  /** A sequence that is swapped out has {@code block} no longer. */
  private void dropAbsent(CacheBlock block) {
    if (--block.references > 0) {
      return;
    }
    if (!isRegistered(block)) {
      pool.forget(block);
    }
    abandoned(block);
  }
}
