// SPDX-License-Identifier: Apache-2.0
package io.broadhead.kernel;

import io.broadhead.arrow.Allocators;
import io.broadhead.arrow.ArrowBatch;
import io.broadhead.arrow.BatchSchema;
import io.broadhead.arrow.DType;
import io.broadhead.arrow.StepColumns;
import io.broadhead.arrow.TensorField;
import java.util.ArrayList;
import java.util.List;
import java.util.function.IntUnaryOperator;
import org.apache.arrow.memory.ArrowBuf;
import org.apache.arrow.memory.BufferAllocator;
import org.apache.arrow.vector.types.pojo.Field;

/**
 * How results of a layer follow from step batches of one schema: {@code sequence_id}, {@code
 * layer}, what passes through, then {@code output} and, if the layer returns it, {@code lse}.
 *
 * <p>Immutable. A result's memory is one allocation from the given allocator, which must outlive
 * it; columns that pass through share the buffers of the batch.
 */
public final class ResultColumns {
  private final BufferAllocator allocator;
  private final BatchSchema produced;
  private final BatchSchema schema;
  private final int queryNode;
  private final int queryOffsets;
  private final int[] passedNodes;
  private final int[] passedBuffers;
  private final int numHeads;
  private final int tensorElements;
  private final long tensorBytes;
  private final boolean returnLse;

  /**
   * @throws KernelException {@link ErrorCode#SCHEMA_MISMATCH} if a step batch has a column that
   *     only results have
   */
  public ResultColumns(LayerConfig layer, BatchSchema steps, BufferAllocator allocator) {
    this.allocator = allocator;
    int query = steps.index(StepColumns.QUERY);
    this.queryNode = query < 0 ? -1 : steps.firstNode(query);
    this.queryOffsets = query < 0 ? -1 : steps.firstBuffer(query) + 1;
    this.numHeads = layer.numHeads();
    this.tensorElements = Math.multiplyExact(numHeads, layer.headSize());
    this.tensorBytes = (long) tensorElements * layer.outputDType().byteWidth();
    this.returnLse = layer.returnLse();
    int[] passed = passedColumns(steps);
    this.passedNodes = ranges(passed, steps::firstNode);
    this.passedBuffers = ranges(passed, steps::firstBuffer);
    Field output =
        TensorField.list(
            StepColumns.OUTPUT, layer.outputDType(), layer.numHeads(), layer.headSize());
    this.produced =
        returnLse
            ? BatchSchema.of(
                output, TensorField.plainList(StepColumns.LSE, DType.FLOAT32, numHeads))
            : BatchSchema.of(output);
    this.schema = passed.length == 0 ? produced : steps.select(passed).join(produced);
  }

  private static int[] passedColumns(BatchSchema steps) {
    for (String name : List.of(StepColumns.OUTPUT, StepColumns.LSE)) {
      if (steps.contains(name)) {
        throw new KernelException(
            ErrorCode.SCHEMA_MISMATCH,
            -1,
            "column "
                + name
                + ": expected no column of that name in a step batch, since the result has one");
      }
    }
    List<Integer> columns = new ArrayList<>();
    for (String name : List.of(StepColumns.SEQUENCE_ID, StepColumns.LAYER)) {
      if (steps.contains(name)) {
        columns.add(steps.index(name));
      }
    }
    for (int i = 0; i < steps.columnCount(); i++) {
      if (!StepColumns.STEP.contains(steps.field(i).getName())) {
        columns.add(i);
      }
    }
    return columns.stream().mapToInt(Integer::intValue).toArray();
  }

  /** What lies from {@code first} of each column to that of the next. */
  private static int[] ranges(int[] columns, IntUnaryOperator first) {
    List<Integer> all = new ArrayList<>();
    for (int column : columns) {
      for (int i = first.applyAsInt(column); i < first.applyAsInt(column + 1); i++) {
        all.add(i);
      }
    }
    return all.stream().mapToInt(Integer::intValue).toArray();
  }

  /** Schema of the results. */
  public BatchSchema schema() {
    return schema;
  }

  /** Schema of the columns that a step computes. */
  BatchSchema produced() {
    return produced;
  }

  int numHeads() {
    return numHeads;
  }

  /** Elements of one output tensor. */
  int tensorElements() {
    return tensorElements;
  }

  boolean returnLse() {
    return returnLse;
  }

  /**
   * The result of {@code batch} where no query sees a key: zeros, and -inf in {@code lse}. The
   * batch stays the caller's; the caller closes the result.
   */
  public ArrowBatch zeros(ArrowBatch batch) {
    try (Draft draft = draft(batch)) {
      ArrowBuf memory = draft.memory;
      memory.setZero(0, memory.capacity());
      for (int row = 0; row <= draft.rows && queryNode >= 0 && draft.rows > 0; row++) {
        ArrowBuf offsets = batch.buffer(queryOffsets);
        int offset = offsets.getInt(4L * row) - offsets.getInt(0);
        memory.setInt(4L * row, offset);
        if (returnLse) {
          memory.setInt(draft.lseOffsetsAt + 4L * row, offset);
        }
      }
      for (long i = 0; returnLse && i < draft.tokens * numHeads; i++) {
        memory.setFloat(draft.lsesAt + 4 * i, Float.NEGATIVE_INFINITY);
      }
      return draft.finish(0);
    }
  }

  /** Memory for the result of {@code batch}, whose contents are still to be written. */
  Draft draft(ArrowBatch batch) {
    return new Draft(batch);
  }

  private long queryTokens(ArrowBatch batch) {
    if (queryNode < 0 || batch.numRows() == 0) {
      return 0;
    }
    ArrowBuf offsets = batch.buffer(queryOffsets);
    long tokens = (long) offsets.getInt(4L * batch.numRows()) - offsets.getInt(0);
    if (tokens < 0 || tokens > batch.nodeLength(queryNode + 1)) {
      throw new KernelException(
          ErrorCode.INVALID_ARGUMENT,
          -1,
          "column query: expected offsets over at most "
              + batch.nodeLength(queryNode + 1)
              + " tokens, got "
              + tokens);
    }
    return tokens;
  }

  /** One allocation for all that a step writes. Frees it unless it was finished. */
  final class Draft implements AutoCloseable {
    final int rows;
    final long tokens;
    private final ArrowBatch batch;
    private final long usedOffsets;
    private final long valuesAt;
    private final long valueBytes;
    private final long lseOffsetsAt;
    private final long lsesAt;
    private final ArrowBuf memory;
    private boolean finished;

    private Draft(ArrowBatch batch) {
      this.batch = batch;
      this.rows = batch.numRows();
      this.tokens = queryTokens(batch);
      this.usedOffsets = (rows + 1L) * Integer.BYTES;
      this.valuesAt = Allocators.roundUp(usedOffsets);
      this.valueBytes = Math.multiplyExact(tokens, tensorBytes);
      this.lseOffsetsAt = valuesAt + Allocators.roundUp(valueBytes);
      this.lsesAt = lseOffsetsAt + valuesAt;
      this.memory = allocator.buffer(returnLse ? lsesAt + lseBytes() : lseOffsetsAt);
    }

    private long lseBytes() {
      return tokens * numHeads * Float.BYTES;
    }

    long offsetsAddress() {
      return memory.memoryAddress();
    }

    long valuesAddress() {
      return memory.memoryAddress() + valuesAt;
    }

    long lseOffsetsAddress() {
      return memory.memoryAddress() + lseOffsetsAt;
    }

    long lsesAddress() {
      return memory.memoryAddress() + lsesAt;
    }

    /** The result; the memory belongs to it from now on. */
    ArrowBatch finish(long bytesCopied) {
      long[] lengths = new long[schema.nodeCount()];
      long[] nullCounts = new long[lengths.length];
      ArrowBuf[] buffers = new ArrowBuf[schema.bufferCount()];
      int node = 0;
      for (int from : passedNodes) {
        lengths[node] = batch.nodeLength(from);
        nullCounts[node++] = batch.nullCount(from);
      }
      int buffer = 0;
      for (int from : passedBuffers) {
        buffers[buffer] = batch.buffer(from);
        buffers[buffer++].getReferenceManager().retain();
      }
      lengths[node++] = rows;
      lengths[node++] = tokens;
      lengths[node++] = tokens * tensorElements;
      ArrowBuf none = allocator.getEmpty();
      buffers[buffer++] = none;
      buffers[buffer++] = memory.slice(0, usedOffsets);
      buffers[buffer++] = none;
      buffers[buffer++] = none;
      buffers[buffer++] = memory.slice(valuesAt, valueBytes);
      int slices = 2;
      if (returnLse) {
        lengths[node++] = rows;
        lengths[node++] = tokens;
        lengths[node] = tokens * numHeads;
        buffers[buffer++] = none;
        buffers[buffer++] = memory.slice(lseOffsetsAt, usedOffsets);
        buffers[buffer++] = none;
        buffers[buffer++] = none;
        buffers[buffer] = memory.slice(lsesAt, lseBytes());
        slices = 4;
      }
      memory.getReferenceManager().retain(slices - 1);
      finished = true;
      return ArrowBatch.adopt(schema, rows, lengths, nullCounts, buffers, bytesCopied);
    }

    @Override
    public void close() {
      if (!finished) {
        memory.close();
      }
    }
  }
}
