// SPDX-License-Identifier: Apache-2.0
package io.broadhead.kernel;

import io.broadhead.arrow.ArrowBatch;
import io.broadhead.arrow.BatchSchema;
import io.broadhead.arrow.StepColumns;
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
import org.apache.arrow.memory.BufferAllocator;
import org.apache.arrow.memory.util.MemoryUtil;

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
  private final BufferAllocator allocator;
  private final ResultColumns results;

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
    try {
      this.results = new ResultColumns(layer.config(), schema, allocator);
      int[] exported = exportedColumns(schema);
      bind(schema.select(exported));
      this.batchArrays = new CArrays(allocator, schema, exported, broadhead.bh_borrowed_release());
      this.resultArrays =
          new CArrays(
              allocator,
              results.produced(),
              results.returnLse() ? new int[] {0, 1} : new int[] {0},
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

  private static int[] exportedColumns(BatchSchema schema) {
    List<Integer> columns = new ArrayList<>();
    for (int i = 0; i < schema.columnCount(); i++) {
      if (StepColumns.STEP.contains(schema.field(i).getName())) {
        columns.add(i);
      }
    }
    return columns.stream().mapToInt(Integer::intValue).toArray();
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
    return results.schema();
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
    try (ResultColumns.Draft draft = results.draft(batch)) {
      batchArrays.point(batch);
      resultArrays.begin(draft.rows);
      pointResult(
          OUTPUT_NODE,
          draft,
          results.tensorElements(),
          draft.offsetsAddress(),
          draft.valuesAddress());
      if (results.returnLse()) {
        pointResult(
            LSE_NODE, draft, results.numHeads(), draft.lseOffsetsAddress(), draft.lsesAddress());
      }
      int status =
          broadhead.bh_step(handle, batchArrays.address(), resultArrays.address(), stats, error);
      if (status != broadhead.BH_OK) {
        throw NativeErrors.toException(status, error);
      }
      lastStats = readStats();
      return draft.finish(lastStats.bytesStaged());
    }
  }

  private void pointResult(
      int node, ResultColumns.Draft draft, int elements, long offsets, long values) {
    resultArrays.header(node, draft.rows, 0);
    resultArrays.buffer(node, 1, offsets);
    resultArrays.header(node + 1, draft.tokens, 0);
    resultArrays.header(node + 2, draft.tokens * elements, 0);
    resultArrays.buffer(node + 2, 1, values);
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
        MemoryUtil.getLong(at + 72),
        MemoryUtil.getLong(at + 80));
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
