// SPDX-License-Identifier: Apache-2.0
package io.broadhead.kernel;

import io.broadhead.arrow.Allocators;
import io.broadhead.arrow.ArrowBatch;
import io.broadhead.arrow.BatchRows;
import java.util.BitSet;
import java.util.List;
import java.util.stream.IntStream;
import org.apache.arrow.memory.ArrowBuf;
import org.apache.arrow.memory.BufferAllocator;
import org.apache.arrow.memory.util.MemoryUtil;

/**
 * The result of a batch while it is computed, by one step or several: memory with a place for every
 * query token. Rows may be refused until the end; what remains is moved together then.
 *
 * <p>Memory comes when a step needs it. {@link #allocate} gives the small results of one step one
 * piece, which is freed with the last of them.
 *
 * <p>The batch must stay open until the draft is finished or closed; closing frees what was not
 * finished. Used by one thread at a time.
 */
public final class ResultDraft implements AutoCloseable {
  /** Results of more bytes have memory of their own: nobody else keeps it from being freed. */
  private static final long LARGEST_SHARED = 64 * 1024;

  private final ResultColumns columns;
  private final BufferAllocator allocator;
  private final ArrowBatch batch;
  private final int rows;
  private final int[] firstTokens;
  private final BitSet refused = new BitSet();
  private final long valuesAt;
  private final long valueBytes;
  private final long lseOffsetsAt;
  private final long lsesAt;
  private final long bytes;

  /** Null until it is needed. */
  private ArrowBuf memory;

  private boolean finished;

  ResultDraft(ResultColumns columns, BufferAllocator allocator, ArrowBatch batch) {
    this.columns = columns;
    this.allocator = allocator;
    this.batch = batch;
    this.rows = batch.numRows();
    this.firstTokens = columns.firstTokens(batch);
    this.valuesAt = Allocators.roundUp((rows + 1L) * Integer.BYTES);
    this.valueBytes = Math.multiplyExact(tokens(), columns.tensorBytes());
    this.lseOffsetsAt = valuesAt + Allocators.roundUp(valueBytes);
    this.lsesAt = lseOffsetsAt + valuesAt;
    this.bytes =
        columns.returnLse()
            ? lsesAt + Allocators.roundUp(tokens() * columns.lseBytes())
            : lseOffsetsAt;
  }

  /** Gives those of {@code drafts} memory that are small and have none: an allocation for all. */
  public static void allocate(List<ResultDraft> drafts) {
    long shared = 0;
    for (ResultDraft draft : drafts) {
      shared += draft.bytesToShare();
    }
    if (shared == 0) {
      return;
    }
    try (ArrowBuf piece = drafts.get(0).allocator.buffer(shared)) {
      long at = 0;
      for (ResultDraft draft : drafts) {
        long taken = draft.bytesToShare();
        if (taken > 0) {
          draft.memory = piece.slice(at, taken);
          piece.getReferenceManager().retain();
          at += taken;
        }
      }
    }
  }

  private long bytesToShare() {
    return memory == null && bytes <= LARGEST_SHARED ? bytes : 0;
  }

  private ArrowBuf memory() {
    if (memory == null) {
      memory = allocator.buffer(bytes);
    }
    return memory;
  }

  /** Query tokens of all rows. */
  public long tokens() {
    return firstTokens[rows];
  }

  /** Query tokens of {@code row}. */
  public int tokens(int row) {
    return firstTokens[row + 1] - firstTokens[row];
  }

  long firstToken(int row) {
    return firstTokens[row];
  }

  long valuesAddress(long token) {
    return memory().memoryAddress() + valuesAt + token * columns.tensorBytes();
  }

  long lsesAddress(long token) {
    return memory().memoryAddress() + lsesAt + token * columns.lseBytes();
  }

  /** Leaves {@code row} out of the result. */
  public void refuse(int row) {
    refused.set(row);
  }

  /** Rows that the result will have. */
  public int rowsLeft() {
    return rows - refused.cardinality();
  }

  /** Zeros for every query token, and -inf as its {@code lse}. */
  void setUnseen() {
    memory().setZero(0, bytes);
    for (long i = 0; columns.returnLse() && i < tokens() * columns.numHeads(); i++) {
      memory.setFloat(lsesAt + 4 * i, Float.NEGATIVE_INFINITY);
    }
  }

  /**
   * The result; the memory belongs to it from now on.
   *
   * @param bytesCopied tensor bytes that were copied to compute it
   */
  public ArrowBatch finish(long bytesCopied) {
    if (refused.isEmpty()) {
      return finish(batch, columns.passedNodes(), columns.passedBuffers(), bytesCopied);
    }
    try (ArrowBatch passed = batch.select(columns.passedColumns());
        ArrowBatch kept = BatchRows.take(passed, rowsKept(), allocator)) {
      return finish(
          kept,
          IntStream.range(0, columns.passedNodes().length).toArray(),
          IntStream.range(0, columns.passedBuffers().length).toArray(),
          bytesCopied + kept.bytesCopied() + closeGaps());
    }
  }

  private int[] rowsKept() {
    return IntStream.range(0, rows).filter(row -> !refused.get(row)).toArray();
  }

  /** The result with the nodes and buffers of {@code passed} in front. */
  private ArrowBatch finish(
      ArrowBatch passed, int[] passedNodes, int[] passedBuffers, long bytesCopied) {
    long tokensLeft = setOffsets(); // may fail for want of memory, so before buffers are retained
    long[] lengths = new long[columns.schema().nodeCount()];
    long[] nullCounts = new long[lengths.length];
    ArrowBuf[] buffers = new ArrowBuf[columns.schema().bufferCount()];
    int node = 0;
    for (int from : passedNodes) {
      lengths[node] = passed.nodeLength(from);
      nullCounts[node++] = passed.nullCount(from);
    }
    int buffer = 0;
    for (int from : passedBuffers) {
      buffers[buffer++] = passed.retained(from);
    }
    int rowsLeft = rowsLeft();
    ArrowBuf none = allocator.getEmpty();
    long offsetBytes = (rowsLeft + 1L) * Integer.BYTES;
    for (int column = 0; column < columns.produced().columnCount(); column++) {
      boolean isOutput = column == 0;
      lengths[node++] = rowsLeft;
      lengths[node++] = tokensLeft;
      lengths[node++] = tokensLeft * (isOutput ? columns.tensorElements() : columns.numHeads());
      buffers[buffer++] = none;
      buffers[buffer++] = memory.slice(isOutput ? 0 : lseOffsetsAt, offsetBytes);
      buffers[buffer++] = none;
      buffers[buffer++] = none;
      buffers[buffer++] =
          isOutput
              ? memory.slice(valuesAt, tokensLeft * columns.tensorBytes())
              : memory.slice(lsesAt, tokensLeft * columns.lseBytes());
      memory.getReferenceManager().retain(2);
    }
    memory.close();
    finished = true;
    return ArrowBatch.adopt(columns.schema(), rowsLeft, lengths, nullCounts, buffers, bytesCopied);
  }

  /** Writes the offsets of the rows that are left; answers how many tokens they have. */
  private long setOffsets() {
    long tokensLeft = 0;
    int rowsLeft = 0;
    setOffset(0, 0);
    for (int row = 0; row < rows; row++) {
      if (!refused.get(row)) {
        tokensLeft += tokens(row);
        setOffset(++rowsLeft, tokensLeft);
      }
    }
    return tokensLeft;
  }

  /** Moves the tokens of the rows that are left together; answers how many bytes that were. */
  private long closeGaps() {
    long moved = 0;
    long to = 0;
    for (int row = 0; row < rows; row++) {
      if (!refused.get(row)) {
        if (firstTokens[row] != to) {
          moved += move(firstTokens[row], to, tokens(row));
        }
        to += tokens(row);
      }
    }
    return moved;
  }

  private void setOffset(int row, long tokens) {
    memory().setInt(4L * row, (int) tokens);
    if (columns.returnLse()) {
      memory.setInt(lseOffsetsAt + 4L * row, (int) tokens);
    }
  }

  /** Moves tokens towards the front; answers how many bytes that were. */
  private long move(long from, long to, int count) {
    MemoryUtil.copyMemory(valuesAddress(from), valuesAddress(to), count * columns.tensorBytes());
    if (columns.returnLse()) {
      MemoryUtil.copyMemory(lsesAddress(from), lsesAddress(to), count * columns.lseBytes());
    }
    return count * columns.tensorBytes();
  }

  @Override
  public void close() {
    if (!finished && memory != null) {
      memory.close();
    }
    finished = true;
  }
}
