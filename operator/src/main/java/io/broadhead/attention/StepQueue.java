// SPDX-License-Identifier: Apache-2.0
package io.broadhead.attention;

import io.broadhead.arrow.ArrowBatch;
import java.util.LinkedHashMap;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.Set;

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

  /** The batches that wait, apart for each cache: they take turns. */
  private final Map<String, Set<PendingBatch>> lanes = new LinkedHashMap<>();

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
      String lane = attention.job().cacheOwner(added.layer().spec()).name();
      lanes.computeIfAbsent(lane, name -> new LinkedHashSet<>()).add(added);
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
    return lanes.isEmpty();
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
    String name = lanes.keySet().iterator().next();
    Set<PendingBatch> lane = lanes.get(name);
    long before = tokens(lane);
    StepReport report = runner.compute(selector.choose(lane));
    tokens -= before - tokens(lane);
    List<PendingBatch> done = lane.stream().filter(PendingBatch::isDone).toList();
    for (PendingBatch batch : done) {
      lane.remove(batch);
      batches--;
      bytes -= batch.batch().byteSize();
    }
    lanes.remove(name);
    if (!lane.isEmpty()) {
      lanes.put(name, lane);
    }
    try {
      done.forEach(PendingBatch::finish);
    } finally {
      done.forEach(PendingBatch::close);
    }
    return report;
  }

  private static long tokens(Set<PendingBatch> lane) {
    return lane.stream().mapToLong(PendingBatch::tokensLeft).sum();
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
    batches = 0;
    tokens = 0;
    bytes = 0;
  }
}
