// SPDX-License-Identifier: Apache-2.0
package io.broadhead.attention;

import java.util.BitSet;
import java.util.HashMap;
import java.util.HashSet;
import java.util.Map;
import java.util.Set;

/**
 * What rows with block tables of their own have to do with each other. All rows of a batch write
 * before any of them reads, and so do those of a step. Therefore no row of a step may write to a
 * block that one of an earlier batch reads; and a batch is one step unless its rows keep to
 * themselves. A row overtakes one that waits only if neither touches a block that the other writes
 * to, whoever they are: the producer may have handed the block on. Used by one thread.
 */
final class ExternalConflicts {
  private final BitSet read = new BitSet();

  /** Blocks that rows write to which are not in the step. */
  private final BitSet awaited = new BitSet();

  /** Forgets the batches of the last step. */
  void clear() {
    read.clear();
    awaited.clear();
  }

  /** Adds a batch to the step; returns those of its rows that must not be in it. */
  BitSet add(PendingBatch batch) {
    BitSet waiting = new BitSet();
    StepRows rows = batch.rows();
    boolean isFirst = read.isEmpty() && awaited.isEmpty();
    for (int row = isFirst ? -1 : batch.nextOpen(0); row >= 0; row = batch.nextOpen(row + 1)) {
      if (writesToAny(batch, row, read)
          || writesToAny(batch, row, awaited)
          || readsAwaited(batch, row)) {
        waiting.set(row);
      }
    }
    for (int row = batch.nextOpen(0); row >= 0; row = batch.nextOpen(row + 1)) {
      int blocks = rows.blocks(row, batch.blockSize());
      for (int i = 0; i < blocks; i++) {
        note(rows.block(row, i), batch, read);
      }
    }
    return waiting;
  }

  /** A row of a batch that was added is not in the step, or not all of it. */
  void leave(PendingBatch batch, int row) {
    int writes = writes(batch, row);
    for (int i = batch.tokensDone(row); i < writes; i++) {
      note(blockOf(batch.rows().slot(row, i), batch), batch, awaited);
    }
  }

  private static void note(long block, PendingBatch batch, BitSet blocks) {
    if (isInPool(block, batch)) { // else the step refuses the row
      blocks.set((int) block);
    }
  }

  private static boolean isInPool(long block, PendingBatch batch) {
    return 0 <= block && block < batch.numBlocks();
  }

  private static boolean writesToAny(PendingBatch batch, int row, BitSet blocks) {
    int writes = writes(batch, row);
    for (int i = 0; i < writes; i++) {
      long block = blockOf(batch.rows().slot(row, i), batch);
      if (isInPool(block, batch) && blocks.get((int) block)) {
        return true;
      }
    }
    return false;
  }

  private boolean readsAwaited(PendingBatch batch, int row) {
    int blocks = awaited.isEmpty() ? 0 : batch.rows().blocks(row, batch.blockSize());
    for (int i = 0; i < blocks; i++) {
      int block = batch.rows().block(row, i);
      if (isInPool(block, batch) && awaited.get(block)) {
        return true;
      }
    }
    return false;
  }

  private static int writes(PendingBatch batch, int row) {
    boolean writes = batch.layer().writesCache() >= 0 && batch.rows().keys(row) > 0;
    return writes ? batch.rows().slots(row) : 0;
  }

  /** Below 0 for padding. */
  private static long blockOf(long slot, PendingBatch batch) {
    return Math.floorDiv(slot, batch.blockSize());
  }

  /** Whether no row of a batch reads or writes a block that another one writes to. */
  static boolean isSeparable(PendingBatch batch) {
    StepRows rows = batch.rows();
    Map<Long, Integer> writers = new HashMap<>();
    for (int row = batch.nextOpen(0); row >= 0; row = batch.nextOpen(row + 1)) {
      int writes = writes(batch, row);
      for (int i = 0; i < writes; i++) {
        long block = blockOf(rows.slot(row, i), batch);
        if (block >= 0 && writers.merge(block, row, Math::min) != row) {
          return false;
        }
      }
    }
    for (int row = batch.nextOpen(0); row >= 0; row = batch.nextOpen(row + 1)) {
      int blocks = rows.blocks(row, batch.blockSize());
      for (int i = 0; i < blocks; i++) {
        if (writers.getOrDefault((long) rows.block(row, i), row) != row) {
          return false;
        }
      }
    }
    return true;
  }

  /** Whether each new token of a row goes to its own position, where only later tokens see it. */
  static boolean isInPlace(PendingBatch batch, int row) {
    StepRows rows = batch.rows();
    int blockSize = batch.blockSize();
    int first = rows.seqLen(row) - rows.tokens(row);
    int blocks = rows.blocks(row, blockSize);
    Set<Integer> seen = new HashSet<>();
    for (int i = 0; i < blocks; i++) {
      if (!seen.add(rows.block(row, i))) {
        return false;
      }
    }
    int writes = writes(batch, row);
    for (int i = 0; i < writes; i++) {
      int position = first + i;
      long slot = rows.slot(row, i);
      boolean inTable = 0 <= position && position / blockSize < blocks;
      if (slot >= 0
          && (!inTable
              || slot
                  != (long) rows.block(row, position / blockSize) * blockSize
                      + position % blockSize)) {
        return false;
      }
    }
    return first >= 0;
  }
}
