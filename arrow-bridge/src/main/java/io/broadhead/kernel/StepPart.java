// SPDX-License-Identifier: Apache-2.0
package io.broadhead.kernel;

import io.broadhead.arrow.ArrowBatch;
import io.broadhead.arrow.ArrowColumn;
import io.broadhead.arrow.StepColumns;
import io.broadhead.nativelib.global.broadhead;
import org.apache.arrow.memory.BufferAllocator;
import org.apache.arrow.memory.util.MemoryUtil;

/**
 * A batch, a run of its rows, or a run of the tokens of one row, as a part of a step: C Data
 * structures that were laid out at construction and are pointed at the batch's own buffers, and at
 * a place in the draft of its result. No tensor byte is copied.
 *
 * <p>Pointed anew for every step. Its owner closes it, and keeps batch and draft open until the
 * step has run; used by one thread at a time.
 */
public final class StepPart implements AutoCloseable {
  private static final int OUTPUT_NODE = 0;
  private static final int LSE_NODE = 3;

  private final StepSchema schema;
  private final ResultColumns results;
  private final CArrays columnArrays;
  private final CArrays resultArrays;
  private final PlannedRows planned;
  private final ScratchMemory chunk;
  private final ScratchMemory resultOffsets;
  private ArrowBatch batch;
  private int rows;

  /**
   * @param schema of the batches that this will be pointed at
   * @param results how their results look
   */
  public StepPart(StepSchema schema, ResultColumns results, BufferAllocator allocator) {
    this.schema = schema;
    this.results = results;
    long release = broadhead.bh_borrowed_release();
    this.chunk = new ScratchMemory(allocator);
    this.resultOffsets = new ScratchMemory(allocator);
    boolean done = false;
    try {
      this.planned = new PlannedRows(allocator);
      this.columnArrays = new CArrays(allocator, schema.columns(), release);
      this.resultArrays = new CArrays(allocator, results.produced(), release);
      done = true;
    } finally {
      if (!done) {
        close();
      }
    }
  }

  /** What {@link StepSchema#planned} leaves to the operator; filled before this is pointed. */
  public PlannedRows planned() {
    return planned;
  }

  /** Points at {@code count} rows of {@code batch} from {@code first} on. */
  public void pointAtRows(ArrowBatch batch, int first, int count, ResultDraft draft) {
    begin(batch, count);
    for (int column = 0; column < schema.columns().columnCount(); column++) {
      if (schema.source(column) == StepSchema.PLANNED) {
        pointAtPlanned(column, count);
      } else {
        pointAtColumn(column, first, count);
      }
    }
    long tokens = draft.firstToken(first + count) - draft.firstToken(first);
    pointAtResult(draft, draft.firstToken(first), tokens, count);
  }

  /**
   * Points at new tokens {@code first} to {@code end} - 1 of a row: of its queries and, if it has
   * any, of its keys and values.
   *
   * @param seqLen tokens in the cache after these
   */
  public void pointAtTokens(
      ArrowBatch batch, int row, int first, int end, int seqLen, ResultDraft draft) {
    begin(batch, 1);
    int columns = schema.columns().columnCount();
    long scratch = chunk.atLeast(8L * columns, 0);
    for (int column = 0; column < columns; column++) {
      long address = scratch + 8L * column;
      if (schema.source(column) == StepSchema.PLANNED) {
        pointAtPlanned(column, 1);
        continue;
      }
      pointAtColumn(column, row, 1);
      switch (schema.columns().field(column).getName()) {
        case StepColumns.SEQ_LEN -> {
          MemoryUtil.putInt(address, seqLen);
          setColumn(column, 1, address);
        }
        case StepColumns.BLOCK_TABLE -> {
          // All of the row's blocks stay.
        }
        default -> {
          ArrowColumn lists = batch.column(schema.columns().field(column).getName());
          long begin = lists.offset(row);
          boolean empty = lists.listSize(row) == 0;
          MemoryUtil.putInt(address, (int) (empty ? begin : begin + first));
          MemoryUtil.putInt(address + 4, (int) (empty ? begin : begin + end));
          setColumn(column, 1, address);
        }
      }
    }
    pointAtResult(draft, draft.firstToken(row) + first, end - first, 1);
  }

  private void begin(ArrowBatch pointedAt, int count) {
    if (!pointedAt.schema().equals(schema.batches())) {
      throw new KernelException(
          ErrorCode.SCHEMA_MISMATCH,
          -1,
          "batch: expected schema " + schema.batches() + ", got " + pointedAt.schema());
    }
    batch = pointedAt;
    rows = count;
    columnArrays.begin(rows);
  }

  private void pointAtColumn(int column, int first, int count) {
    int node = schema.columns().firstNode(column);
    int end = schema.columns().firstNode(column + 1);
    int from = batch.schema().firstNode(schema.source(column));
    for (int i = node; i < end; i++) {
      columnArrays.point(i, batch, from + i - node);
    }
    if (count != batch.numRows()) {
      columnArrays.header(node, count, batch.nullCount(from), first);
    }
  }

  /** A column without nulls whose offsets, or values if it is no list, are at {@code address}. */
  private void setColumn(int column, long length, long address) {
    int node = schema.columns().firstNode(column);
    columnArrays.header(node, length, 0, 0);
    columnArrays.buffer(node, 0, 0);
    columnArrays.buffer(node, 1, address);
  }

  private void pointAtPlanned(int column, int rows) {
    if (planned.rows() != rows) {
      throw new IllegalStateException("planned " + planned.rows() + " rows of " + rows);
    }
    switch (schema.columns().field(column).getName()) {
      case StepColumns.SEQ_LEN -> setColumn(column, rows, planned.seqLensAddress());
      case StepColumns.SLOT_MAPPING -> {
        setColumn(column, rows, planned.slotOffsetsAddress());
        setValues(column, planned.slotCount(), planned.slotsAddress());
      }
      case StepColumns.BLOCK_TABLE -> {
        setColumn(column, rows, planned.blockOffsetsAddress());
        setValues(column, planned.blockCount(), planned.blocksAddress());
      }
      default -> throw new IllegalStateException("nobody plans column " + column);
    }
  }

  private void setValues(int column, long length, long address) {
    int node = schema.columns().firstNode(column) + 1;
    columnArrays.header(node, length, 0, 0);
    columnArrays.buffer(node, 0, 0);
    columnArrays.buffer(node, 1, address);
  }

  private void pointAtResult(ResultDraft draft, long firstToken, long tokens, int rows) {
    resultArrays.begin(rows);
    // The draft has its own offsets, over all rows.
    long offsets = resultOffsets.atLeast(4L * (rows + 1), 0);
    pointAtResult(
        OUTPUT_NODE,
        rows,
        tokens,
        results.tensorElements(),
        offsets,
        draft.valuesAddress(firstToken));
    if (results.returnLse()) {
      pointAtResult(
          LSE_NODE, rows, tokens, results.numHeads(), offsets, draft.lsesAddress(firstToken));
    }
  }

  private void pointAtResult(
      int node, int rows, long tokens, int elements, long offsets, long values) {
    resultArrays.header(node, rows, 0, 0);
    resultArrays.buffer(node, 1, offsets);
    resultArrays.header(node + 1, tokens, 0, 0);
    resultArrays.header(node + 2, tokens * elements, 0, 0);
    resultArrays.buffer(node + 2, 1, values);
  }

  /** Rows that this was last pointed at. */
  public int rows() {
    return rows;
  }

  /** The batch that this was last pointed at. */
  ArrowBatch batch() {
    return batch;
  }

  /** Address of the struct array of the step's columns, for one call. */
  long lendColumns() {
    return columnArrays.lend();
  }

  /** Address of the struct array of the result, for one call. */
  long lendResult() {
    return resultArrays.lend();
  }

  @Override
  public void close() {
    batch = null;
    NativeHandle.closeAll(columnArrays, resultArrays, planned, chunk, resultOffsets);
  }
}
