// SPDX-License-Identifier: Apache-2.0
package io.broadhead.attention;

import io.broadhead.arrow.ArrowBatch;
import io.broadhead.arrow.ArrowColumn;
import io.broadhead.arrow.StepColumns;
import io.broadhead.kernel.CacheConfig;
import java.util.BitSet;

/**
 * Whether batches with block tables of their own can be one step. All rows of a step write before
 * any of them reads, so no row may write to a block that one of an earlier batch reads. Used by one
 * thread.
 */
final class ExternalConflicts {
  private final BitSet read = new BitSet();

  /** Forgets the batches of the last step. */
  void clear() {
    read.clear();
  }

  /** Adds a batch to the step; false if it has to wait for those that were added before. */
  boolean add(PendingBatch pending) {
    ArrowBatch batch = pending.batch();
    CacheConfig cache = pending.layer().binding().layer().cache().config();
    int blockSize = cache.blockSize();
    if (!read.isEmpty() && writesToRead(batch, blockSize)) {
      return false;
    }
    if (batch.schema().contains(StepColumns.BLOCK_TABLE)) {
      ArrowColumn tables = batch.column(StepColumns.BLOCK_TABLE);
      ArrowColumn blocks = tables.child();
      for (int row = pending.nextOpen(0); row >= 0; row = pending.nextOpen(row + 1)) {
        int used = (pending.rows().seqLen(row) + blockSize - 1) / blockSize;
        long first = tables.offset(row);
        long end = first + Math.min(used, tables.listSize(row));
        for (long i = first; i < end; i++) {
          int block = blocks.getInt(i);
          // Others are refused by the step itself.
          if (block >= 0 && block < cache.numBlocks()) {
            read.set(block);
          }
        }
      }
    }
    return true;
  }

  private boolean writesToRead(ArrowBatch batch, int blockSize) {
    if (!batch.schema().contains(StepColumns.SLOT_MAPPING)) {
      return false;
    }
    ArrowColumn slots = batch.column(StepColumns.SLOT_MAPPING);
    ArrowColumn values = slots.child();
    for (int row = 0; row < batch.numRows(); row++) {
      for (long i = slots.offset(row), end = i + slots.listSize(row); i < end; i++) {
        long block = values.getLong(i) / blockSize;
        if (values.getLong(i) >= 0 && block <= Integer.MAX_VALUE && read.get((int) block)) {
          return true;
        }
      }
    }
    return false;
  }
}
