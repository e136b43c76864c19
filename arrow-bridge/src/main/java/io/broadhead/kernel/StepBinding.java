// SPDX-License-Identifier: Apache-2.0
package io.broadhead.kernel;

import io.broadhead.arrow.ArrowBatch;
import io.broadhead.arrow.BatchSchema;
import io.broadhead.nativelib.bh_binding;
import io.broadhead.nativelib.bh_error;
import io.broadhead.nativelib.bh_step_part;
import io.broadhead.nativelib.bh_step_stats;
import io.broadhead.nativelib.global.broadhead;
import java.lang.ref.Reference;
import java.util.List;
import java.util.Optional;
import org.apache.arrow.c.ArrowSchema;
import org.apache.arrow.c.Data;
import org.apache.arrow.memory.BufferAllocator;
import org.apache.arrow.memory.util.MemoryUtil;

/**
 * A layer and the schema of its step batches, checked once; runs the steps.
 *
 * <p>A step is one native call. The buffers of its batches go over as addresses in structures that
 * were laid out at construction, and the kernels write into buffers that Java allocated: no tensor
 * byte is copied in Java. Columns that pass through share the batch's buffers.
 *
 * <p>Its owner closes it. Used by one thread at a time, and no other binding of its layer or cache
 * may be used at the same time.
 */
public final class StepBinding extends NativeHandle {
  /** Bytes of a {@code bh_step_part}. */
  private static final int PART_BYTES = 16;

  private final bh_binding handle = new bh_binding();
  private final KernelLayer layer;
  private final BatchSchema schema;
  private final BufferAllocator allocator;
  private final ResultColumns results;

  private StepPart ownPart;
  private ScratchMemory partStructs;
  private bh_step_part parts;
  private bh_step_stats stats;
  private bh_error error;
  private long statsAddress;
  private StepStats lastStats;

  /**
   * Binds {@code layer} to batches of {@code schema} whose columns are all the producer's.
   *
   * @throws KernelException {@link ErrorCode#SCHEMA_MISMATCH} naming the column
   */
  public StepBinding(KernelLayer layer, BatchSchema schema, BufferAllocator allocator) {
    this(layer, StepSchema.asSent(schema), allocator);
  }

  /**
   * Binds {@code layer} to batches of {@code schema}. Structures and results are allocated from
   * {@code allocator}, which must outlive the binding and its results.
   *
   * @throws KernelException {@link ErrorCode#SCHEMA_MISMATCH} naming the column
   */
  public StepBinding(KernelLayer layer, StepSchema schema, BufferAllocator allocator) {
    super("binding of " + layer, layer);
    this.layer = layer;
    this.schema = schema.batches();
    this.allocator = allocator;
    try {
      this.results = new ResultColumns(layer.config(), schema.batches(), allocator);
      bind(schema.columns());
      this.ownPart = new StepPart(schema, results, allocator);
      this.partStructs = new ScratchMemory(allocator);
      this.stats = new bh_step_stats();
      this.statsAddress = stats.address();
      this.error = new bh_error();
    } catch (RuntimeException | Error e) {
      destroy();
      abandon();
      throw e;
    }
  }

  private void bind(BatchSchema columns) {
    try (ArrowSchema structure = ArrowSchema.allocateNew(allocator)) {
      Data.exportSchema(allocator, columns.arrow(), null, structure);
      long address = structure.memoryAddress();
      NativeErrors.check(
          failure -> broadhead.bh_binding_create(layer.handle(), address, handle, failure));
    }
  }

  public KernelLayer layer() {
    return layer;
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
    try (ResultDraft draft = results.draft(batch)) {
      ownPart.pointAtRows(batch, 0, batch.numRows(), draft);
      run(List.of(ownPart));
      return draft.finish(lastStats.bytesStaged());
    }
  }

  /**
   * Runs one step over all of {@code steps}, which were pointed at batches of this binding's
   * columns. All keys and values are written before any row attends.
   *
   * @throws KernelException if a row or the step is refused, with the row counted over all parts;
   *     then nothing was written
   */
  public void run(List<StepPart> steps) {
    enterAll();
    try {
      pointAt(steps);
      check(broadhead.bh_step_parts(handle, parts, steps.size(), stats, error));
      lastStats = readStats();
    } finally {
      exitAll();
      steps.forEach(step -> Reference.reachabilityFence(step.batch()));
    }
  }

  /**
   * As {@link #run}, up to the point where the device has all that it needs; the caller ends the
   * step. Others may be begun before, and take effect after it; {@code steps} are pointed anew only
   * when it has ended. Where {@link EngineInfo#overlaps} is false, the step is computed here.
   *
   * @throws KernelException if a row or the step is refused, as in {@link #run}
   */
  public PendingStep begin(List<StepPart> steps) {
    enterAll();
    try {
      PendingStep pending = new PendingStep(this, steps);
      boolean begun = false;
      try {
        pointAt(steps);
        check(broadhead.bh_step_begin(handle, parts, steps.size(), pending.handle(), error));
        begun = true;
        return pending;
      } finally {
        if (!begun) {
          pending.close();
        }
      }
    } finally {
      exitAll();
    }
  }

  /** Ends a step of this binding. */
  StepStats end(PendingStep pending) {
    enter();
    try {
      check(pending.end(stats, error));
      lastStats = readStats();
      return lastStats;
    } finally {
      exit();
    }
  }

  private void pointAt(List<StepPart> steps) {
    long structs = partStructs.atLeast((long) PART_BYTES * steps.size(), 0);
    if (parts == null || parts.address() != structs) {
      parts = new bh_step_part(new Address(structs));
    }
    for (int i = 0; i < steps.size(); i++) {
      MemoryUtil.putLong(structs + (long) PART_BYTES * i, steps.get(i).lendColumns());
      MemoryUtil.putLong(structs + (long) PART_BYTES * i + 8, steps.get(i).lendResult());
    }
  }

  private void check(int status) {
    if (status != broadhead.BH_OK) {
      throw NativeErrors.toException(status, error);
    }
  }

  /**
   * Finds the first row at or after {@code from} that a step would refuse. {@code batch} stays the
   * caller's.
   *
   * @throws KernelException if something other than a row is wrong
   */
  public Optional<RowError> firstBadRow(ArrowBatch batch, long from) {
    try (ResultDraft draft = results.draft(batch)) {
      ownPart.pointAtRows(batch, 0, batch.numRows(), draft);
      return firstBadRow(ownPart, from);
    }
  }

  /** As above, for rows that {@code part} was pointed at; they are counted within the part. */
  public Optional<RowError> firstBadRow(StepPart part, long from) {
    enterAll();
    try {
      int status = broadhead.bh_check_rows(handle, part.lendColumns(), from, error);
      if (status == broadhead.BH_OK) {
        return Optional.empty();
      }
      KernelException failure = NativeErrors.toException(status, error);
      if (failure.row() < 0) {
        throw failure;
      }
      return Optional.of(new RowError(failure.row(), failure.code(), failure.getMessage()));
    } finally {
      exitAll();
      Reference.reachabilityFence(part.batch());
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
        MemoryUtil.getLong(at + 80),
        MemoryUtil.getLong(at + 88));
  }

  private void enterAll() {
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

  private void exitAll() {
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
    closeAll(ownPart, partStructs, stats, error);
  }
}
