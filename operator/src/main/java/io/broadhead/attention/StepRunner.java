// SPDX-License-Identifier: Apache-2.0
package io.broadhead.attention;

import io.broadhead.attention.cache.ExternalBlocks;
import io.broadhead.attention.cache.KvCacheManager;
import io.broadhead.attention.cache.RowRefusedException;
import io.broadhead.attention.cache.RowRequest;
import io.broadhead.attention.cache.StepFullException;
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
 * Plans runs of rows as one step and computes it. What cannot be in this step is left open; what
 * cannot be computed at all is refused. Used by one thread at a time.
 */
final class StepRunner {
  private final OutOfBlocks outOfBlocks;

  /** What is in the step that is being planned or computed; empty between steps. */
  private final List<Placed> step = new ArrayList<>();

  /** The parts of these, pointed at their batches and drafts. */
  private final List<StepPart> parts = new ArrayList<>();

  /** When that step was begun, by {@link System#nanoTime}. */
  private long started;

  private StepReport lastReport;
  private KvCacheManager manager;
  private ExternalBlocks external;

  /** A part of a step, and what it was taken from. */
  record Placed(StepPart part, RowRun run) {
    BoundLayer layer() {
      return run.batch().layer();
    }

    void giveBack() {
      layer().giveBack(part);
    }
  }

  private enum Place {
    /** In the step. */
    PLACED,
    /** Left out of its batch. */
    REFUSED,
    /** To be placed in a later step. */
    LATER
  }

  /** Does something with the parts of a planned step. */
  private interface Use {
    void run(StepBinding binding, List<StepPart> parts);

    /** Whether the parts are still needed when that is done. */
    default boolean keepsParts() {
      return false;
    }
  }

  StepRunner(OutOfBlocks outOfBlocks) {
    this.outOfBlocks = outOfBlocks;
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
    manager = blockTables;
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
    lastReport = new StepReport(rows(step), binding.lastStats(), System.nanoTime() - started);
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
      begun = new StepInFlight(pending, List.copyOf(step), System.nanoTime() - started);
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
    boolean done = false;
    try {
      for (int i = 0; i < runs.size() && plan(runs.get(i), stays); i++) {
        continue;
      }
      done = !step.isEmpty() && apply(use);
      if (done && stays) {
        if (manager != null) {
          manager.commit();
        }
        long now = System.currentTimeMillis();
        for (Placed placed : step) {
          placed.run.batch().computed(placed.run);
          noteWritten(placed.run, now);
        }
      }
      return done;
    } finally {
      if (manager != null && !(done && stays)) {
        manager.rollBack();
      }
      if (!use.keepsParts()) {
        step.forEach(Placed::giveBack);
      }
      step.clear();
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

  // ---- planning ------------------------------------------------------------------------------

  /** Adds a run to the step; false if the step is full. */
  private boolean plan(RowRun run, boolean stays) {
    BoundLayer layer = run.batch().layer();
    if (!layer.isManaged()) {
      step.add(new Placed(layer.takePart(), run));
      return true;
    }
    int end = run.row() + run.count();
    int row = run.row();
    while (row < end) {
      StepPart part = layer.takePart();
      boolean kept = false;
      Place place = Place.PLACED;
      int first = row;
      try {
        part.planned().clear();
        while (row < end && place == Place.PLACED) {
          place = place(run, row, part, stays);
          row += place == Place.PLACED ? 1 : 0;
        }
        kept = row > first;
      } finally {
        if (!kept) {
          layer.giveBack(part);
        }
      }
      if (kept) {
        step.add(new Placed(part, run.isWhole() ? run.rows(first, row - first) : run));
      }
      if (place == Place.LATER) {
        return false;
      }
      row += place == Place.REFUSED ? 1 : 0;
    }
    return true;
  }

  private Place place(RowRun run, int row, StepPart part, boolean stays) {
    PendingBatch batch = run.batch();
    int to = run.isWhole() ? batch.rows().tokens(row) : run.to();
    try {
      RowRequest request = batch.request(row, run.from(), to);
      return place(batch, row, request, part, stays);
    } catch (RowRefusedException e) {
      batch.refuse(row, e.code(), e.getMessage());
      return Place.REFUSED;
    }
  }

  private Place place(PendingBatch batch, int row, RowRequest request, StepPart part, boolean stays)
      throws RowRefusedException {
    int shard = batch.shard(row);
    try {
      manager.plan(shard, request, part.planned());
      return Place.PLACED;
    } catch (StepFullException e) {
      if (!step.isEmpty() || part.planned().rows() > 0) {
        return Place.LATER;
      }
      if (stays && manager.endSuperseded(shard, request)) {
        return place(batch, row, request, part, stays);
      }
      RowRefusedException shortage = manager.shortage(shard, request, e);
      if (outOfBlocks == OutOfBlocks.FAIL) {
        RefusedRow refused = batch.refused(row, shortage.code(), shortage.getMessage());
        throw new KernelException(shortage.code(), row, refused.toString());
      }
      if (stays) {
        manager.giveUp(shard, request);
      }
      throw shortage;
    } catch (RowRefusedException e) {
      if (stays && e.code() == ErrorCode.SEQUENCE_LOST) {
        manager.passOver(shard, request);
      }
      throw e;
    }
  }

  // ---- computing -----------------------------------------------------------------------------

  /** Points the parts and uses them; false if that found a bad row, which is refused. */
  private boolean apply(Use use) {
    ResultDraft.allocate(step.stream().map(placed -> placed.run.batch().draft()).toList());
    for (Placed placed : step) {
      point(placed.part, placed.run);
      parts.add(placed.part);
    }
    StepBinding binding = step.get(0).run.batch().layer().binding();
    try {
      use.run(binding, parts);
      return true;
    } catch (KernelException e) {
      if (e.row() < 0) {
        throw named(e, step.get(0).run.batch().layer().spec());
      }
      RowRun bad = rowOfStep(e.row());
      PendingBatch batch = bad.batch();
      if (e.code() != ErrorCode.INVALID_ROW) {
        throw new InvalidBatchException(batch.refused(bad.row(), e.code(), e.getMessage()), e);
      }
      batch.refuse(bad.row(), e.code(), e.getMessage());
      return false;
    }
  }

  /** The row that is number {@code row} of all parts. */
  private RowRun rowOfStep(long row) {
    long left = row;
    for (Placed placed : step) {
      if (left < placed.run.count()) {
        return placed.run.rows(placed.run.row() + (int) left, 1);
      }
      left -= placed.run.count();
    }
    throw new IndexOutOfBoundsException("row " + row + " of a step of " + rows(step));
  }

  /** Rows of all parts of a step. */
  static int rows(List<Placed> step) {
    int rows = 0;
    for (Placed placed : step) {
      rows += placed.part.rows();
    }
    return rows;
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
