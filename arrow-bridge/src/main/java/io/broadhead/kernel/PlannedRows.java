// SPDX-License-Identifier: Apache-2.0
package io.broadhead.kernel;

import java.util.stream.IntStream;
import java.util.stream.LongStream;
import org.apache.arrow.memory.BufferAllocator;
import org.apache.arrow.memory.util.MemoryUtil;

/**
 * Where the tokens of a {@link StepPart}'s rows are in the cache, where the producer leaves that to
 * the operator: the contents of {@code seq_len}, {@code slot_mapping} and {@code block_table}.
 *
 * <p>Filled row by row: its slots and blocks, then {@link #endRow}. Its memory is kept between
 * steps. Owned by its part; used by one thread at a time.
 */
public final class PlannedRows implements AutoCloseable {
  private final ScratchMemory seqLens;
  private final ScratchMemory slotOffsets;
  private final ScratchMemory slots;
  private final ScratchMemory blockOffsets;
  private final ScratchMemory blocks;
  private int rows;
  private int slotCount;
  private int blockCount;

  public PlannedRows(BufferAllocator allocator) {
    seqLens = new ScratchMemory(allocator);
    slotOffsets = new ScratchMemory(allocator);
    slots = new ScratchMemory(allocator);
    blockOffsets = new ScratchMemory(allocator);
    blocks = new ScratchMemory(allocator);
    boolean done = false;
    try {
      clear();
      done = true;
    } finally {
      if (!done) {
        close();
      }
    }
  }

  /** Forgets all rows. */
  public void clear() {
    rows = 0;
    slotCount = 0;
    blockCount = 0;
    MemoryUtil.putInt(slotOffsets.atLeast(4, 0), 0);
    MemoryUtil.putInt(blockOffsets.atLeast(4, 0), 0);
  }

  /** Forgets what was added since the last row ended. */
  public void abandonRow() {
    slotCount = MemoryUtil.getInt(slotOffsetsAddress() + 4L * rows);
    blockCount = MemoryUtil.getInt(blockOffsetsAddress() + 4L * rows);
  }

  /** The next {@code count} new tokens go to slots {@code first}, {@code first} + 1, ... */
  public void addSlots(long first, int count) {
    long at = slots.atLeast(8L * (slotCount + count), 8L * slotCount) + 8L * slotCount;
    for (int i = 0; i < count; i++) {
      MemoryUtil.putLong(at + 8L * i, first + i);
    }
    slotCount += count;
  }

  /** The next {@code count} new tokens are not written. */
  public void addPadding(int count) {
    long at = slots.atLeast(8L * (slotCount + count), 8L * slotCount) + 8L * slotCount;
    for (int i = 0; i < count; i++) {
      MemoryUtil.putLong(at + 8L * i, -1);
    }
    slotCount += count;
  }

  /** The row's next {@code count} blocks. */
  public void addBlocks(int[] table, int count) {
    blocks.atLeast(4L * (blockCount + count), 4L * blockCount);
    if (count > 0) {
      blocks.putInts(blockCount, table, count);
    }
    blockCount += count;
  }

  /** Ends a row that has {@code seqLen} tokens in the cache after the step. */
  public void endRow(int seqLen) {
    MemoryUtil.putInt(seqLens.atLeast(4L * (rows + 1), 4L * rows) + 4L * rows, seqLen);
    rows++;
    MemoryUtil.putInt(slotOffsets.atLeast(4L * (rows + 1), 4L * rows) + 4L * rows, slotCount);
    MemoryUtil.putInt(blockOffsets.atLeast(4L * (rows + 1), 4L * rows) + 4L * rows, blockCount);
  }

  /** Rows that were ended. */
  public int rows() {
    return rows;
  }

  /** Tokens in the cache after the step, of a row that was ended. */
  public int seqLen(int row) {
    return MemoryUtil.getInt(seqLensAddress() + 4L * row);
  }

  /** Slots of its new tokens, -1 for one that is not written. */
  public long[] slots(int row) {
    int from = MemoryUtil.getInt(slotOffsetsAddress() + 4L * row);
    int to = MemoryUtil.getInt(slotOffsetsAddress() + 4L * row + 4);
    return LongStream.range(from, to)
        .map(i -> MemoryUtil.getLong(slotsAddress() + 8 * i))
        .toArray();
  }

  /** Its block table. */
  public int[] blocks(int row) {
    int from = MemoryUtil.getInt(blockOffsetsAddress() + 4L * row);
    int to = MemoryUtil.getInt(blockOffsetsAddress() + 4L * row + 4);
    return IntStream.range(from, to)
        .map(i -> MemoryUtil.getInt(blocksAddress() + 4L * i))
        .toArray();
  }

  int slotCount() {
    return slotCount;
  }

  int blockCount() {
    return blockCount;
  }

  long seqLensAddress() {
    return seqLens.atLeast(4, 0);
  }

  long slotOffsetsAddress() {
    return slotOffsets.atLeast(4, 0);
  }

  long slotsAddress() {
    return slots.atLeast(8, 0);
  }

  long blockOffsetsAddress() {
    return blockOffsets.atLeast(4, 0);
  }

  long blocksAddress() {
    return blocks.atLeast(4, 0);
  }

  @Override
  public void close() {
    seqLens.close();
    slotOffsets.close();
    slots.close();
    blockOffsets.close();
    blocks.close();
  }
}
