// SPDX-License-Identifier: Apache-2.0
package io.broadhead.job;

import io.broadhead.attention.OutOfBlocks;
import io.broadhead.flink.StateMode;
import java.util.ArrayList;
import java.util.Comparator;
import java.util.List;
import java.util.SplittableRandom;
import org.apache.flink.configuration.JobManagerOptions.SchedulerType;

/**
 * What a seed makes of a job and of what happens to it.
 *
 * @param splitBytes of step files, or 0: the source makes batches in memory
 * @param pauseMillis before each batch of steps or results goes on
 * @param pool of the operators, as a part of the blocks that all sequences need
 */
record SoakSettings(
    long seed,
    long splitBytes,
    boolean managed,
    int shards,
    int parallelism,
    double pool,
    OutOfBlocks outOfBlocks,
    StateMode state,
    String backend,
    boolean unaligned,
    int alignmentMillis,
    int checkpointMillis,
    boolean objectReuse,
    boolean chained,
    boolean countSequences,
    int maxTokens,
    int maxDelayMillis,
    SchedulerType scheduler,
    int pauseMillis,
    List<Disturbance> disturbances) {

  /** The most subtasks: the slots of the cluster. */
  static final int SLOTS = 4;

  /** Batches of a job. */
  static final int BATCHES = 200;

  /** What happens to a job. */
  enum Kind {
    TASK_FAILS,
    SNAPSHOT_FAILS,
    NOTIFICATION_FAILS,
    TASK_MANAGER_IS_LOST,
    STOP_WITH_SAVEPOINT,
    CANCEL_AND_RESTORE
  }

  /**
   * @param batches of steps and results that were passed on by then, also again
   * @param parallelism with which a job goes on that was stopped
   */
  record Disturbance(Kind kind, int batches, int parallelism) {}

  static SoakSettings of(long seed) {
    SplittableRandom random = new SplittableRandom(seed); // Random is alike for neighbouring seeds
    boolean files = random.nextBoolean();
    boolean managed = random.nextInt(3) > 0;
    int shards = random.nextInt(4) == 0 ? 1 : 2 + random.nextInt(7);
    int most = Math.min(shards, SLOTS);
    int maxTokens = random.nextBoolean() ? 0 : 1 + random.nextInt(40);
    List<Disturbance> disturbances = new ArrayList<>();
    for (int count = random.nextInt(6); count > 0; count--) {
      disturbances.add(
          new Disturbance(
              pick(random, Kind.values()),
              5 + random.nextInt(2 * BATCHES),
              1 + random.nextInt(most)));
    }
    disturbances.sort(Comparator.comparingInt(Disturbance::batches));
    return new SoakSettings(
        seed,
        files ? pick(random, 1L << 10, 1L << 14, 1L << 30) : 0,
        managed,
        shards,
        1 + random.nextInt(most),
        managed ? 0.2 + random.nextDouble() : 1,
        managed && random.nextInt(4) == 0 ? OutOfBlocks.REJECT : OutOfBlocks.SWAP,
        managed && random.nextInt(4) == 0
            ? pick(random, StateMode.METADATA, StateMode.NONE)
            : StateMode.FULL,
        pick(random, "hashmap", "rocksdb"),
        random.nextBoolean(),
        // Flink may lose what a source is handed where it is 0; run's own source sees to that.
        files ? pick(random, 0, 1, 20) : pick(random, 1, 20),
        pick(random, 10, 30, 100),
        random.nextBoolean(),
        random.nextInt(3) > 0,
        random.nextBoolean(),
        maxTokens,
        maxTokens == 0 ? 0 : pick(random, 0, 1, 20),
        pick(random, SchedulerType.Default, SchedulerType.Adaptive),
        random.nextInt(3),
        disturbances);
  }

  @SafeVarargs
  private static <T> T pick(SplittableRandom random, T... values) {
    return values[random.nextInt(values.length)];
  }

  /** Whether rows may be refused for what the cache has not. */
  boolean mayLose() {
    return outOfBlocks == OutOfBlocks.REJECT || state != StateMode.FULL && !disturbances.isEmpty();
  }

  /**
   * Whether batches on their way may go to another subtask: to find whose they are, Flink has each
   * of them read by several, and drops it in all but one.
   */
  boolean mayCarryBatchesOver() {
    return unaligned
        && (scheduler == SchedulerType.Adaptive
            || disturbances.stream().anyMatch(each -> each.kind() == Kind.CANCEL_AND_RESTORE));
  }
}
