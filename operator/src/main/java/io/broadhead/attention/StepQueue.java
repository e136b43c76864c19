// SPDX-License-Identifier: Apache-2.0
package io.broadhead.attention;

import io.broadhead.arrow.ArrowBatch;
import io.broadhead.attention.job.Job;
import java.util.ArrayDeque;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.HashSet;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.Queue;
import java.util.Set;
import java.util.function.Consumer;
import java.util.function.IntUnaryOperator;

/**
 * Step batches that wait to be computed. Batches of one layer are computed together where they fit
 * into a step, and long prompts in pieces; each batch has a result of its own nevertheless, and no
 * tensor is copied for it.
 *
 * <p>Results come when they are complete: of one sequence and layer in the order of its rows, of
 * different ones in any order. On a GPU a step computes while the caller does other things: at most
 * two are begun at a time, and results of the older one come when the younger has been begun.
 *
 * <p><b>Ownership.</b> The caller owns the batches that it adds, and may close them at once.
 * Whoever opens a queue closes it, which drops what still waits. Used by one thread at a time, the
 * one of its {@link PagedAttention}.
 */
public final class StepQueue implements AutoCloseable {
  /** A step that a device computes beside the caller. */
  public interface InFlight {
    /** Waits until the device is done with it. May be called by any thread, at any time. */
    void await();
  }

  private final Job job;
  private final Admission admission;
  private final BlockTables tables;
  private final StepRunner runner;
  private final StepSelector selector;
  private final boolean overlaps;
  private final Consumer<StepReport> steps;

  /** The batches that wait, oldest first, apart for each cache. */
  private final Map<String, List<PendingBatch>> lanes = new HashMap<>();

  /** The lanes in which any batch waits: they take turns. */
  private final Queue<List<PendingBatch>> turns = new ArrayDeque<>();

  private int batches;
  private long tokens;
  private long bytes;

  /** The last step that was begun, until its results were handed over; or null. */
  private StepInFlight inFlight;

  /**
   * @param overlaps whether a step is only begun, and settled when the next one has been
   * @param steps is told of every step, before its results are handed over
   */
  StepQueue(
      Job job,
      Admission admission,
      BlockTables tables,
      StepRunner runner,
      int maxTokens,
      boolean overlaps,
      Consumer<StepReport> steps) {
    this.job = job;
    this.admission = admission;
    this.tables = tables;
    this.runner = runner;
    this.selector = new StepSelector(maxTokens);
    this.overlaps = overlaps;
    this.steps = steps;
  }

  /**
   * Adds a batch. Computes what waits first where that decides what the batch means. A batch of no
   * layer of the job does not wait.
   *
   * @throws InvalidBatchException if its schema is wrong
   */
  public void add(ArrowBatch batch, StepHandler handler) {
    add(batch, row -> PagedAttention.ONLY_SHARD, 0, handler);
  }

  /**
   * As above, for a batch whose rows are of several shards.
   *
   * @param shardOfRow the shard of each row
   * @param time what the caller's clock says, for {@link #oldest}
   */
  public void add(ArrowBatch batch, IntUnaryOperator shardOfRow, long time, StepHandler handler) {
    if (admission.hasManySchemas()) {
      drain();
      admission.trim();
    }
    if (inFlight != null && admission.isOfNoLayer(batch)) {
      settle(); // its result would overtake
    }
    Optional<PendingBatch> taken = admission.admit(batch, shardOfRow, time, handler);
    if (taken.isEmpty()) {
      return;
    }
    PendingBatch added = taken.get();
    boolean queued = false;
    try {
      while (batches > 0 && (tables.dependsOnAllLayers(added) || followsEnd(added))) {
        step();
      }
      tables.fork(added);
      List<PendingBatch> lane = lane(added);
      if (lane.isEmpty()) {
        turns.add(lane);
      }
      lane.add(added);
      batches++;
      tokens += added.tokensLeft();
      bytes += batch.byteSize();
      queued = true;
    } finally {
      if (!queued) {
        added.close();
      }
    }
  }

  /** Whether a row is of a sequence whose last row in this layer still waits. */
  private boolean followsEnd(PendingBatch added) {
    Set<PendingBatch.ShardSequence> ending = new HashSet<>();
    for (PendingBatch batch : lane(added)) {
      if (!batch.rows().mayEnd() || batch.layer().spec() != added.layer().spec()) {
        continue;
      }
      for (int row = batch.nextOpen(0); row >= 0; row = batch.nextOpen(row + 1)) {
        if (batch.rows().ends(row)) {
          ending.add(batch.sequence(row));
        }
      }
    }
    for (int row = ending.isEmpty() ? -1 : added.nextOpen(0);
        row >= 0;
        row = added.nextOpen(row + 1)) {
      if (ending.contains(added.sequence(row))) {
        return true;
      }
    }
    return false;
  }

  private List<PendingBatch> lane(PendingBatch batch) {
    String owner = job.cacheOwner(batch.layer().spec()).name();
    return lanes.computeIfAbsent(owner, name -> new ArrayList<>());
  }

  /** Whether nothing waits and nothing is in flight. */
  public boolean isEmpty() {
    return turns.isEmpty() && inFlight == null;
  }

  /** Batches that wait, without those whose last rows are in flight. */
  public int batches() {
    return batches;
  }

  /** Their new tokens, without those that were computed. */
  public long tokens() {
    return tokens;
  }

  /** Bytes of the batches that wait. */
  public long bytes() {
    return bytes;
  }

  /** The time with which the oldest of the batches that wait was added, or Long.MAX_VALUE. */
  public long oldest() {
    long oldest = Long.MAX_VALUE;
    for (List<PendingBatch> lane : turns) {
      oldest = Math.min(oldest, lane.get(0).added());
    }
    return oldest;
  }

  /**
   * Computes one step of the layer whose turn it is, and hands over what is complete then. On a
   * device that computes beside the caller, begins that step and hands over what the one before it
   * completes; if nothing waits, only the latter.
   *
   * <p>If both fail, the step and the end of the one before it, the latter is suppressed by the
   * former.
   */
  public void step() {
    if (turns.isEmpty()) {
      settle();
      return;
    }
    List<PendingBatch> lane = turns.element();
    Completion completion = new Completion(inFlight);
    inFlight = null;
    try (completion) {
      long tokensBefore = tokens(lane);
      List<RowRun> runs = selector.choose(lane);
      if (overlaps) {
        inFlight = runner.begin(runs);
      } else {
        runner.compute(runs).ifPresent(steps);
      }
      tokens -= tokensBefore - tokens(lane);
      List<PendingBatch> done = removeDone(lane);
      turns.remove();
      if (!lane.isEmpty()) {
        turns.add(lane);
      }
      if (inFlight != null) {
        inFlight.completes(done);
      } else {
        completion.done = done;
      }
    }
  }

  /** Hands over what a step completes, also if it is refused: what came before it goes first. */
  private final class Completion implements AutoCloseable {
    private final StepInFlight before;
    private List<PendingBatch> done = List.of();

    Completion(StepInFlight before) {
      this.before = before;
    }

    @Override
    public void close() {
      try {
        if (before != null) {
          finish(before);
        }
        done.forEach(PendingBatch::finish);
      } finally {
        done.forEach(PendingBatch::close);
      }
    }
  }

  private void finish(StepInFlight step) {
    try {
      steps.accept(runner.end(step));
      step.complete().forEach(PendingBatch::finish);
    } finally {
      step.complete().forEach(PendingBatch::close);
    }
  }

  private void settle() {
    if (inFlight != null) {
      StepInFlight step = inFlight;
      inFlight = null;
      finish(step);
    }
  }

  /** The step that a device computes beside the caller, if there is one. */
  public Optional<InFlight> inFlight() {
    return Optional.ofNullable(inFlight);
  }

  /**
   * Hands over what {@code step} completes, if it has not been yet. Waits for it; whoever does not
   * want to has somebody else {@link InFlight#await await} it first.
   */
  public void settle(InFlight step) {
    if (step == inFlight) {
      settle();
    }
  }

  /** Takes the batches out that are done, but for those that would overtake others' rows. */
  private List<PendingBatch> removeDone(List<PendingBatch> lane) {
    List<PendingBatch> done = new ArrayList<>(lane.size());
    List<PendingBatch> left = new ArrayList<>();
    for (PendingBatch batch : lane) {
      if (batch.isDone() && (left.isEmpty() || left.stream().noneMatch(batch::continues))) {
        done.add(batch);
        batches--;
        bytes -= batch.batch().byteSize();
      } else {
        left.add(batch);
      }
    }
    lane.clear();
    lane.addAll(left);
    return done;
  }

  private static long tokens(List<PendingBatch> lane) {
    long tokens = 0;
    for (PendingBatch batch : lane) {
      tokens += batch.tokensLeft();
    }
    return tokens;
  }

  /** Computes everything that waits, and hands all of it over. */
  public void drain() {
    while (!isEmpty()) {
      step();
    }
  }

  @Override
  public void close() {
    if (inFlight != null) {
      inFlight.close();
      inFlight = null;
    }
    lanes.values().forEach(lane -> lane.forEach(PendingBatch::close));
    lanes.clear();
    turns.clear();
    batches = 0;
    tokens = 0;
    bytes = 0;
  }
}
