// SPDX-License-Identifier: Apache-2.0
package io.broadhead.attention;

import io.broadhead.attention.StepPlan.Placed;
import io.broadhead.attention.cache.ExternalBlocks;
import io.broadhead.attention.cache.KvCacheManager;
import io.broadhead.attention.job.LayerSpec;
import io.broadhead.kernel.ErrorCode;
import io.broadhead.kernel.KernelException;
import io.broadhead.kernel.PendingStep;
import io.broadhead.kernel.ResultDraft;
import io.broadhead.kernel.RowError;
import io.broadhead.kernel.StepBinding;
import io.broadhead.kernel.StepPart;
import io.broadhead.kernel.StepStats;
import java.util.ArrayList;
import java.util.List;
import java.util.Optional;

/**
 * Plans runs of rows as one step and computes it, or only checks it. Rows that the plan or the
 * kernels find bad are refused; what has no room in the step is left open. Used by one thread at a
 * time.
 */
final class StepRunner {
  /** The step that is being planned or computed; empty between steps. */
  private final StepPlan plan;

  /** Its parts, pointed at their batches and drafts. */
  private final List<StepPart> parts = new ArrayList<>();

  /** When that step was begun, by {@link System#nanoTime}. */
  private long started;

  private StepReport lastReport;
  private ExternalBlocks external;

  /** Does something with the parts of a planned step. */
  private interface Use {
    void run(StepBinding binding, List<StepPart> parts);

    /** Whether the parts are still needed when that is done. */
    default boolean keepsParts() {
      return false;
    }
  }

  StepRunner(OutOfBlocks outOfBlocks) {
    this.plan = new StepPlan(outOfBlocks);
  }

  /** What the last step did, or null before the first. */
  StepStats lastStep() {
    return lastReport == null ? null : lastReport.stats();
  }

  /** Tells {@code blocks} what steps with external block tables write. */
  void observe(ExternalBlocks blocks) {
    external = blocks;
  }

  /** Uses {@code blockTables} from the next step on. */
  void manage(KvCacheManager blockTables) {
    plan.manage(blockTables);
  }

  /**
   * Computes {@code runs}, which are of batches whose layers join, or as many of them as fit.
   *
   * @return what was done; empty if nothing was left to compute
   * @throws KernelException if memory or the device fails, or the pool has no blocks and that is to
   *     fail; then nothing was computed
   */
  Optional<StepReport> compute(List<RowRun> runs) {
    return run(runs, this::compute, true) ? Optional.of(lastReport) : Optional.empty();
  }

  private void compute(StepBinding binding, List<StepPart> parts) {
    binding.run(parts);
    lastReport =
        new StepReport(
            StepPlan.rows(plan.placed()), binding.lastStats(), System.nanoTime() - started);
  }

  /**
   * As {@link #compute}, but the step computes beside the caller from then on. It counts as
   * computed: rows that are planned next follow it. The caller hands it to {@link #end} or closes
   * it.
   *
   * @return null if nothing was left to compute
   */
  StepInFlight begin(List<RowRun> runs) {
    try (Beginning beginning = new Beginning()) {
      return run(runs, beginning, true) ? beginning.handOver() : null;
    }
  }

  /** Begins a step, and drops it again unless it is handed over. */
  private final class Beginning implements Use, AutoCloseable {
    private StepInFlight begun;

    @Override
    public void run(StepBinding binding, List<StepPart> parts) {
      PendingStep pending = binding.begin(parts);
      begun = new StepInFlight(pending, List.copyOf(plan.placed()), System.nanoTime() - started);
    }

    @Override
    public boolean keepsParts() {
      return begun != null;
    }

    StepInFlight handOver() {
      StepInFlight flight = begun;
      begun = null;
      return flight;
    }

    @Override
    public void close() {
      if (begun != null) {
        begun.close();
      }
    }
  }

  /**
   * Waits for a step that was begun.
   *
   * @throws KernelException if the device failed
   */
  StepReport end(StepInFlight flight) {
    lastReport = flight.end();
    return lastReport;
  }

  /** As {@link #compute}, but only as if: rows are checked and then count as computed. */
  void rehearse(List<RowRun> runs) {
    run(runs, StepRunner::requireGoodRows, true);
  }

  /**
   * Refuses the first bad row of {@code runs}, and changes nothing else.
   *
   * @return whether there is none
   */
  boolean check(List<RowRun> runs) {
    return run(runs, StepRunner::requireGoodRows, false);
  }

  private static void requireGoodRows(StepBinding binding, List<StepPart> parts) {
    long rowsBefore = 0;
    for (StepPart part : parts) {
      Optional<RowError> bad = binding.firstBadRow(part, 0);
      if (bad.isPresent()) {
        throw new KernelException(
            bad.get().code(), rowsBefore + bad.get().row(), bad.get().message());
      }
      rowsBefore += part.rows();
    }
  }

  /**
   * Plans a step of {@code runs}, or of as many as fit, and uses it.
   *
   * @param stays whether its rows count as computed then; if not, or if the step is not used, all
   *     is as it was but for rows that were refused
   * @return whether it was used: not if nothing was left to compute, or the use found a bad row,
   *     which is refused, so that the caller tries again without it
   */
  private boolean run(List<RowRun> runs, Use use, boolean stays) {
    started = System.nanoTime();
    boolean computed = false;
    try {
      for (int i = 0; i < runs.size() && plan.add(runs.get(i), stays); i++) {
        continue;
      }
      boolean used = !plan.placed().isEmpty() && apply(use);
      computed = used && stays;
      if (computed) {
        plan.commit();
        long now = System.currentTimeMillis();
        for (Placed placed : plan.placed()) {
          placed.run().batch().computed(placed.run());
          noteWritten(placed.run(), now);
        }
      }
      return used;
    } finally {
      if (!computed) {
        plan.rollBack();
      }
      if (!use.keepsParts()) {
        plan.placed().forEach(Placed::giveBack);
      }
      plan.clear();
      parts.clear();
    }
  }

  private void noteWritten(RowRun run, long now) {
    BoundLayer layer = run.batch().layer();
    if (external != null && layer.isExternal() && layer.writesCache() >= 0) {
      for (int row = run.row(); row < run.row() + run.count(); row++) {
        int shard = run.batch().shard(row);
        run.batch()
            .rows()
            .forEachSlots(
                run,
                row,
                (from, to) -> external.written(shard, layer.writesCache(), from, to, now));
      }
    }
  }

  /** Points the parts and uses them; false if that found a bad row, which is refused. */
  private boolean apply(Use use) {
    List<Placed> step = plan.placed();
    ResultDraft.allocate(step.stream().map(placed -> placed.run().batch().draft()).toList());
    for (Placed placed : step) {
      point(placed.part(), placed.run());
      parts.add(placed.part());
    }
    BoundLayer layer = step.get(0).layer();
    try {
      use.run(layer.binding(), parts);
      return true;
    } catch (KernelException e) {
      if (e.row() < 0) {
        throw named(e, layer.spec());
      }
      RowRun bad = plan.row(e.row());
      PendingBatch batch = bad.batch();
      if (e.code() != ErrorCode.INVALID_ROW) {
        throw new InvalidBatchException(batch.refused(bad.row(), e.code(), e.getMessage()), e);
      }
      batch.refuse(bad.row(), e.code(), e.getMessage());
      return false;
    }
  }

  /** Names the layer whose batch is wrong, or whose step failed. */
  static RuntimeException named(KernelException e, LayerSpec layer) {
    String message = "layer '" + layer.name() + "': " + e.getMessage();
    return e.code() == ErrorCode.SCHEMA_MISMATCH
        ? new InvalidBatchException(e.code(), e.row(), message, e)
        : new KernelException(e.code(), e.row(), message);
  }

  private static void point(StepPart part, RowRun run) {
    PendingBatch batch = run.batch();
    if (run.isWhole()) {
      part.pointAtRows(batch.batch(), run.row(), run.count(), batch.draft());
      return;
    }
    StepRows rows = batch.rows();
    int after = rows.tokens(run.row()) - run.to();
    part.pointAtTokens(
        batch.batch(),
        run.row(),
        run.from(),
        run.to(),
        rows.seqLen(run.row()) - after,
        batch.draft());
  }
}
