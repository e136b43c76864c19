// SPDX-License-Identifier: Apache-2.0
package io.broadhead.job;

import io.broadhead.arrow.ArrowBatch;
import io.broadhead.job.SoakSettings.Disturbance;
import io.broadhead.job.SoakSettings.Kind;
import java.util.ArrayDeque;
import java.util.Deque;
import java.util.List;
import java.util.concurrent.atomic.AtomicInteger;
import org.apache.flink.api.common.functions.FlatMapFunction;
import org.apache.flink.api.common.state.CheckpointListener;
import org.apache.flink.runtime.state.FunctionInitializationContext;
import org.apache.flink.runtime.state.FunctionSnapshotContext;
import org.apache.flink.streaming.api.checkpoint.CheckpointedFunction;
import org.apache.flink.util.Collector;

/**
 * Passes steps or results on, and fails when that is due. Its tasks run in the JVM of the test:
 * what is due stands here, for one job at a time.
 */
final class SoakDisturber
    implements FlatMapFunction<ArrowBatch, ArrowBatch>, CheckpointedFunction, CheckpointListener {
  private static final long serialVersionUID = 1;

  private static final AtomicInteger PASSED = new AtomicInteger();
  private static final Deque<Disturbance> DUE = new ArrayDeque<>();

  private final int pauseMillis;

  SoakDisturber(int pauseMillis) {
    this.pauseMillis = pauseMillis;
  }

  /** Begins anew. */
  static void reset(List<Disturbance> disturbances) {
    synchronized (DUE) {
      PASSED.set(0);
      DUE.clear();
      DUE.addAll(disturbances);
    }
  }

  /** Takes the next disturbance if it is due and one of {@code kinds}; else null. */
  static Disturbance take(Kind... kinds) {
    synchronized (DUE) {
      Disturbance next = DUE.peek();
      boolean due =
          next != null && PASSED.get() >= next.batches() && List.of(kinds).contains(next.kind());
      return due ? DUE.remove() : null;
    }
  }

  private static void failIfDue(Kind kind) {
    if (take(kind) != null) {
      throw new IllegalStateException(kind + " on purpose");
    }
  }

  @Override
  public void flatMap(ArrowBatch batch, Collector<ArrowBatch> out) throws InterruptedException {
    try (ArrowBatch taken = batch.take()) {
      Thread.sleep(pauseMillis);
      PASSED.incrementAndGet();
      failIfDue(Kind.TASK_FAILS);
      out.collect(taken);
    }
  }

  @Override
  public void initializeState(FunctionInitializationContext context) {}

  @Override
  public void snapshotState(FunctionSnapshotContext context) {
    failIfDue(Kind.SNAPSHOT_FAILS);
  }

  @Override
  public void notifyCheckpointComplete(long checkpoint) {
    failIfDue(Kind.NOTIFICATION_FAILS);
  }
}
