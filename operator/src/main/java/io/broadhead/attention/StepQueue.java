// SPDX-License-Identifier: Apache-2.0
package io.broadhead.attention;

import io.broadhead.arrow.ArrowBatch;
import java.util.ArrayDeque;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.Queue;

/**
 * Step batches that wait to be computed. Batches of one layer are computed together where they fit
 * into a step, and long prompts in pieces; each batch has a result of its own nevertheless, and no
 * tensor is copied for it.
 *
 * <p>Results come when they are complete: of one sequence and layer in the order of its rows, of
 * different ones in any order.
 *
 * <p><b>Ownership.</b> The caller owns the batches that it adds, and may close them at once.
 * Whoever opens a queue closes it, which drops what still waits. Used by one thread at a time, the
 * one of its {@link PagedAttention}.
 */
public final class StepQueue implements AutoCloseable {
  private final PagedAttention attention;
  private final StepRunner runner;
  private final StepSelector selector;

  /** The batches that wait, oldest first, apart for each cache. */
  private final Map<String, List<PendingBatch>> lanes = new HashMap<>();

  /** The lanes in which any batch waits: they take turns. */
  private final Queue<List<PendingBatch>> turns = new ArrayDeque<>();

  private int batches;
  private long tokens;
  private long bytes;

  StepQueue(PagedAttention attention, StepRunner runner, int maxTokens) {
    this.attention = attention;
    this.runner = runner;
    this.selector = new StepSelector(maxTokens);
  }

  /**
   * Adds a batch. Computes what waits first where that decides what the batch means. A batch of no
   * layer of the job does not wait.
   *
   * @param shard of all its rows
   * @throws InvalidBatchException if its schema is wrong
   */
  public void add(ArrowBatch batch, int shard, StepHandler handler) {
    Optional<PendingBatch> taken = attention.pend(batch, shard, handler);
    if (taken.isEmpty()) {
      return;
    }
    PendingBatch added = taken.get();
    boolean queued = false;
    try {
      if (!isEmpty() && attention.forks(added)) {
        drain();
      }
      String owner = attention.job().cacheOwner(added.layer().spec()).name();
      List<PendingBatch> lane = lanes.computeIfAbsent(owner, name -> new ArrayList<>());
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

  public boolean isEmpty() {
    return turns.isEmpty();
  }

  /** Batches that wait. */
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

  /**
   * Computes one step of the layer whose turn it is, and hands over what is complete then.
   *
   * @return what it did
   */
  public StepReport step() {
    if (isEmpty()) {
      return StepReport.NOTHING;
    }
    List<PendingBatch> lane = turns.element();
    long before = tokens(lane);
    StepReport report = runner.compute(selector.choose(lane));
    tokens -= before - tokens(lane);
    List<PendingBatch> done = removeDone(lane);
    turns.remove();
    if (!lane.isEmpty()) {
      turns.add(lane);
    }
    try {
      done.forEach(PendingBatch::finish);
    } finally {
      done.forEach(PendingBatch::close);
    }
    return report;
  }

  private List<PendingBatch> removeDone(List<PendingBatch> lane) {
    List<PendingBatch> done = new ArrayList<>(lane.size());
    for (PendingBatch batch : lane) {
      if (batch.isDone()) {
        done.add(batch);
        batches--;
        bytes -= batch.batch().byteSize();
      }
    }
    lane.removeIf(PendingBatch::isDone);
    return done;
  }

  private static long tokens(List<PendingBatch> lane) {
    long tokens = 0;
    for (PendingBatch batch : lane) {
      tokens += batch.tokensLeft();
    }
    return tokens;
  }

  /** Computes everything that waits. */
  public void drain() {
    while (!isEmpty()) {
      step();
    }
  }

  @Override
  public void close() {
    lanes.values().forEach(lane -> lane.forEach(PendingBatch::close));
    lanes.clear();
    turns.clear();
    batches = 0;
    tokens = 0;
    bytes = 0;
  }
}
