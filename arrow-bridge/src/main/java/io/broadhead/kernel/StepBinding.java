// SPDX-License-Identifier: Apache-2.0
package io.broadhead.kernel;

import io.broadhead.arrow.Allocators;
import io.broadhead.arrow.ArrowBatch;
import io.broadhead.arrow.BatchSchema;
import io.broadhead.arrow.DType;
import io.broadhead.arrow.StepColumns;
import io.broadhead.arrow.TensorField;
import io.broadhead.nativelib.bh_binding;
import io.broadhead.nativelib.bh_error;
import io.broadhead.nativelib.bh_step_stats;
import io.broadhead.nativelib.global.broadhead;
import java.lang.ref.Reference;
import java.util.ArrayList;
import java.util.List;
import java.util.Optional;
import org.apache.arrow.c.ArrowSchema;
import org.apache.arrow.c.Data;
import org.apache.arrow.memory.ArrowBuf;
import org.apache.arrow.memory.BufferAllocator;
import org.apache.arrow.memory.util.MemoryUtil;
import org.apache.arrow.vector.types.pojo.Field;

/**
 * A layer and the schema of its step batches, checked once; runs the steps.
 *
 * <p>A step is one native call. The batch's buffers go over as addresses in structures that were
 * laid out at construction, and the kernels write into buffers that Java allocated: no tensor byte
 * is copied in Java. Columns that pass through share the batch's buffers.
 *
 * <p>Its owner closes it. Used by one thread at a time, and no other binding of its layer or cache
 * may be used at the same time.
 */
public final class StepBinding extends NativeHandle {
  private static final int OUTPUT_NODE = 0;
  private static final int LSE_NODE = 3;

  private final bh_binding handle = new bh_binding();
  private final KernelLayer layer;
  private final BatchSchema schema;
  private final BatchSchema resultSchema;
  private final BufferAllocator allocator;
  private final int queryNode;
  private final int queryOffsets;
  private final int[] passedNodes;
  private final int[] passedBuffers;
  private final int headElements;
  private final long tensorBytes;
  private final boolean returnLse;
  private final int numHeads;

  private CArrays batchArrays;
  private CArrays resultArrays;
  private bh_step_stats stats;
  private bh_error error;
  private long statsAddress;
  private StepStats lastStats;

  /**
   * Binds {@code layer} to batches of {@code schema}. Structures and results are allocated from
   * {@code allocator}, which must outlive the binding and its results.
   *
   * @throws KernelException {@link ErrorCode#SCHEMA_MISMATCH} naming the column
   */
  public StepBinding(KernelLayer layer, BatchSchema schema, BufferAllocator allocator) {
    super("binding of " + layer, layer);
    this.layer = layer;
    this.schema = schema;
    this.allocator = allocator;
    LayerConfig config = layer.config();
    DType outputDType = config.outputDType();
    this.numHeads = config.numHeads();
    this.headElements = Math.multiplyExact(config.numHeads(), config.headSize());
    this.tensorBytes = (long) headElements * outputDType.byteWidth();
    this.returnLse = config.returnLse();
    int query = schema.index(StepColumns.QUERY);
    this.queryNode = query < 0 ? -1 : schema.firstNode(query);
    this.queryOffsets = query < 0 ? -1 : schema.firstBuffer(query) + 1;

    try {
      int[] passed = passedColumns(schema);
      this.passedNodes = nodesOf(schema, passed);
      this.passedBuffers = buffersOf(schema, passed);
      BatchSchema produced = producedSchema(config, outputDType);
      this.resultSchema = passed.length == 0 ? produced : schema.select(passed).join(produced);
      int[] exported = exportedColumns(schema);
      bind(schema.select(exported));
      this.batchArrays = new CArrays(allocator, schema, exported, broadhead.bh_borrowed_release());
      this.resultArrays =
          new CArrays(
              allocator,
              produced,
              returnLse ? new int[] {0, 1} : new int[] {0},
              broadhead.bh_borrowed_release());
      this.stats = new bh_step_stats();
      this.statsAddress = stats.address();
      this.error = new bh_error();
    } catch (RuntimeException | Error e) {
      destroy();
      abandon();
      throw e;
    }
  }

  private static int[] passedColumns(BatchSchema schema) {
    for (String name : List.of(StepColumns.OUTPUT, StepColumns.LSE)) {
      if (schema.contains(name)) {
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
      if (schema.contains(name)) {
        columns.add(schema.index(name));
      }
    }
    for (int i = 0; i < schema.columnCount(); i++) {
      if (!StepColumns.STEP.contains(schema.field(i).getName())) {
        columns.add(i);
      }
    }
    return columns.stream().mapToInt(Integer::intValue).toArray();
  }

  private static int[] exportedColumns(BatchSchema schema) {
    List<Integer> columns = new ArrayList<>();
    for (int i = 0; i < schema.columnCount(); i++) {
      if (StepColumns.STEP.contains(schema.field(i).getName())) {
        columns.add(i);
      }
    }
    return columns.stream().mapToInt(Integer::intValue).toArray();
  }

  private static BatchSchema producedSchema(LayerConfig config, DType outputDType) {
    Field output =
        TensorField.list(StepColumns.OUTPUT, outputDType, config.numHeads(), config.headSize());
    return config.returnLse()
        ? BatchSchema.of(
            output, TensorField.plainList(StepColumns.LSE, DType.FLOAT32, config.numHeads()))
        : BatchSchema.of(output);
  }

  private static int[] nodesOf(BatchSchema schema, int[] columns) {
    List<Integer> nodes = new ArrayList<>();
    for (int column : columns) {
      for (int node = schema.firstNode(column); node < schema.firstNode(column + 1); node++) {
        nodes.add(node);
      }
    }
    return nodes.stream().mapToInt(Integer::intValue).toArray();
  }

  private static int[] buffersOf(BatchSchema schema, int[] columns) {
    List<Integer> buffers = new ArrayList<>();
    for (int column : columns) {
      for (int b = schema.firstBuffer(column); b < schema.firstBuffer(column + 1); b++) {
        buffers.add(b);
      }
    }
    return buffers.stream().mapToInt(Integer::intValue).toArray();
  }

  private void bind(BatchSchema exported) {
    try (ArrowSchema structure = ArrowSchema.allocateNew(allocator)) {
      Data.exportSchema(allocator, exported.arrow(), null, structure);
      long address = structure.memoryAddress();
      NativeErrors.check(
          failure -> broadhead.bh_binding_create(layer.handle(), address, handle, failure));
    }
  }

  public KernelLayer layer() {
    return layer;
  }

  /** Schema of the step batches. */
  public BatchSchema schema() {
    return schema;
  }

  /**
   * Schema of the results: {@code sequence_id}, {@code layer} if present, what passes through,
   * {@code output} and, if the layer returns it, {@code lse}.
   */
  public BatchSchema resultSchema() {
    return resultSchema;
  }

  /**
   * Runs one step. {@code batch} stays the caller's; the caller closes the result.
   *
   * @throws KernelException if a row or the step is refused; then nothing was written
   */
  public ArrowBatch step(ArrowBatch batch) {
    requireSchema(batch);
    begin();
    try {
      return runStep(batch);
    } finally {
      end();
      Reference.reachabilityFence(batch);
    }
  }

  private ArrowBatch runStep(ArrowBatch batch) {
    int rows = batch.numRows();
    long tokens = queryTokens(batch);
    long offsetBytes = Allocators.roundUp((rows + 1L) * Integer.BYTES);
    long valueBytes = Math.multiplyExact(tokens, tensorBytes);
    long valueSpace = Allocators.roundUp(valueBytes);
    long lseBytes = returnLse ? tokens * numHeads * Float.BYTES : 0;
    long size = offsetBytes + valueSpace + (returnLse ? offsetBytes + lseBytes : 0);
    // One allocation for all that the kernels write; the batch's buffers are slices of it.
    ArrowBuf memory = allocator.buffer(size);
    boolean done = false;
    try {
      long offsets = memory.memoryAddress();
      batchArrays.point(batch);
      resultArrays.begin(rows);
      pointResult(OUTPUT_NODE, rows, tokens, headElements, offsets, offsets + offsetBytes);
      if (returnLse) {
        long lseOffsets = offsets + offsetBytes + valueSpace;
        pointResult(LSE_NODE, rows, tokens, numHeads, lseOffsets, lseOffsets + offsetBytes);
      }
      int status =
          broadhead.bh_step(handle, batchArrays.address(), resultArrays.address(), stats, error);
      if (status != broadhead.BH_OK) {
        throw NativeErrors.toException(status, error);
      }
      lastStats = readStats();
      ArrowBatch result =
          assemble(batch, tokens, memory, offsetBytes, valueBytes, valueSpace, lseBytes);
      done = true;
      return result;
    } finally {
      if (!done) {
        memory.close();
      }
    }
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

  private void pointResult(
      int node, long rows, long tokens, int elements, long offsets, long values) {
    resultArrays.header(node, rows, 0);
    resultArrays.buffer(node, 1, offsets);
    resultArrays.header(node + 1, tokens, 0);
    resultArrays.header(node + 2, tokens * elements, 0);
    resultArrays.buffer(node + 2, 1, values);
  }

  private ArrowBatch assemble(
      ArrowBatch batch,
      long tokens,
      ArrowBuf memory,
      long offsetBytes,
      long valueBytes,
      long valueSpace,
      long lseBytes) {
    int rows = batch.numRows();
    long[] lengths = new long[resultSchema.nodeCount()];
    long[] nullCounts = new long[lengths.length];
    ArrowBuf[] buffers = new ArrowBuf[resultSchema.bufferCount()];
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
    lengths[node++] = tokens * headElements;
    long usedOffsets = (rows + 1L) * Integer.BYTES;
    ArrowBuf none = allocator.getEmpty();
    buffers[buffer++] = none;
    buffers[buffer++] = memory.slice(0, usedOffsets);
    buffers[buffer++] = none;
    buffers[buffer++] = none;
    buffers[buffer++] = memory.slice(offsetBytes, valueBytes);
    int slices = 2;
    if (returnLse) {
      lengths[node++] = rows;
      lengths[node++] = tokens;
      lengths[node] = tokens * numHeads;
      long start = offsetBytes + valueSpace;
      buffers[buffer++] = none;
      buffers[buffer++] = memory.slice(start, usedOffsets);
      buffers[buffer++] = none;
      buffers[buffer++] = none;
      buffers[buffer] = memory.slice(start + offsetBytes, lseBytes);
      slices = 4;
    }
    memory.getReferenceManager().retain(slices - 1);
    return ArrowBatch.adopt(
        resultSchema, rows, lengths, nullCounts, buffers, lastStats.bytesStaged());
  }

  /**
   * Finds the first row at or after {@code from} that a step would refuse. {@code batch} stays the
   * caller's.
   *
   * @throws KernelException if something other than a row is wrong
   */
  public Optional<RowError> firstBadRow(ArrowBatch batch, long from) {
    requireSchema(batch);
    begin();
    try {
      batchArrays.point(batch);
      int status = broadhead.bh_check_rows(handle, batchArrays.address(), from, error);
      if (status == broadhead.BH_OK) {
        return Optional.empty();
      }
      KernelException failure = NativeErrors.toException(status, error);
      if (failure.row() < 0) {
        throw failure;
      }
      return Optional.of(new RowError(failure.row(), failure.code(), failure.getMessage()));
    } finally {
      end();
      Reference.reachabilityFence(batch);
    }
  }

  /** What the last successful step did, or null before the first. */
  public StepStats lastStats() {
    return lastStats;
  }

  private StepStats readStats() {
    long at = statsAddress;
    return new StepStats(
        MemoryUtil.getLong(at),
        MemoryUtil.getLong(at + 8),
        MemoryUtil.getLong(at + 16),
        MemoryUtil.getLong(at + 24),
        MemoryUtil.getLong(at + 32),
        MemoryUtil.getLong(at + 40),
        MemoryUtil.getLong(at + 48),
        MemoryUtil.getLong(at + 56),
        MemoryUtil.getLong(at + 64),
        MemoryUtil.getLong(at + 72));
  }

  private void requireSchema(ArrowBatch batch) {
    if (!batch.schema().equals(schema)) {
      throw new KernelException(
          ErrorCode.SCHEMA_MISMATCH,
          -1,
          "batch: expected schema " + schema + ", got " + batch.schema());
    }
  }

  private void begin() {
    enter();
    try {
      layer.enter();
      try {
        if (layer.cache() != null) {
          layer.cache().enter();
        }
      } catch (RuntimeException e) {
        layer.exit();
        throw e;
      }
    } catch (RuntimeException e) {
      exit();
      throw e;
    }
  }

  private void end() {
    if (layer.cache() != null) {
      layer.cache().exit();
    }
    layer.exit();
    exit();
  }

  @Override
  void destroy() {
    if (!handle.isNull()) {
      broadhead.bh_binding_destroy(handle);
    }
    closeAll(batchArrays, resultArrays, stats, error);
  }

  private static void closeAll(AutoCloseable... resources) {
    for (AutoCloseable resource : resources) {
      if (resource != null) {
        try {
          resource.close();
        } catch (Exception e) {
          throw new IllegalStateException(e);
        }
      }
    }
  }
}
