// SPDX-License-Identifier: Apache-2.0
package io.broadhead.kernel;

import io.broadhead.arrow.ArrowBatch;
import io.broadhead.arrow.ArrowColumn;
import io.broadhead.arrow.BatchSchema;
import io.broadhead.arrow.DType;
import io.broadhead.arrow.StepColumns;
import io.broadhead.arrow.TensorField;
import java.util.ArrayList;
import java.util.List;
import java.util.function.IntUnaryOperator;
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
  private final int[] passedColumns;
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
    this.numHeads = layer.numHeads();
    this.tensorElements = Math.multiplyExact(numHeads, layer.headSize());
    this.tensorBytes = (long) tensorElements * layer.outputDType().byteWidth();
    this.returnLse = layer.returnLse();
    this.passedColumns = passedColumns(steps);
    this.passedNodes = ranges(passedColumns, steps::firstNode);
    this.passedBuffers = ranges(passedColumns, steps::firstBuffer);
    Field output =
        TensorField.list(
            StepColumns.OUTPUT, layer.outputDType(), layer.numHeads(), layer.headSize());
    this.produced =
        returnLse
            ? BatchSchema.of(
                output, TensorField.plainList(StepColumns.LSE, DType.FLOAT32, numHeads))
            : BatchSchema.of(output);
    this.schema = passedColumns.length == 0 ? produced : steps.select(passedColumns).join(produced);
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

  /** The columns of step batches that pass through, in the order of the results. */
  int[] passedColumns() {
    return passedColumns;
  }

  /** Their nodes. */
  int[] passedNodes() {
    return passedNodes;
  }

  /** Their buffers. */
  int[] passedBuffers() {
    return passedBuffers;
  }

  int numHeads() {
    return numHeads;
  }

  /** Elements of one output tensor. */
  int tensorElements() {
    return tensorElements;
  }

  /** Bytes of one output tensor. */
  long tensorBytes() {
    return tensorBytes;
  }

  boolean returnLse() {
    return returnLse;
  }

  /** Bytes of the {@code lse} of one query token. */
  long lseBytes() {
    return (long) numHeads * Float.BYTES;
  }

  /**
   * The result of {@code batch} where no query sees a key: zeros, and -inf in {@code lse}. The
   * batch stays the caller's; the caller closes the result.
   */
  public ArrowBatch zeros(ArrowBatch batch) {
    try (ResultDraft draft = draft(batch)) {
      draft.setUnseen();
      return draft.finish(0);
    }
  }

  /** Memory for the result of {@code batch}, whose contents are still to be computed. */
  public ResultDraft draft(ArrowBatch batch) {
    return new ResultDraft(this, allocator, batch);
  }

  /** For each row, and behind the last one, the query tokens of the rows before it. */
  int[] firstTokens(ArrowBatch batch) {
    int[] first = new int[batch.numRows() + 1];
    if (queryNode < 0) {
      return first;
    }
    ArrowColumn query = batch.column(StepColumns.QUERY);
    // Offsets of the result have 32 bits.
    long most = Math.min(batch.nodeLength(queryNode + 1), Integer.MAX_VALUE);
    for (int row = 0; row < batch.numRows(); row++) {
      long size = query.listSize(row);
      if (size < 0 || size > most - first[row]) {
        throw new KernelException(
            ErrorCode.INVALID_ARGUMENT,
            -1,
            "column query: expected offsets over at most "
                + most
                + " tokens, got a row of "
                + size
                + " behind "
                + first[row]);
      }
      first[row + 1] = first[row] + (int) size;
    }
    return first;
  }
}
