// SPDX-License-Identifier: Apache-2.0
package io.broadhead.flink;

import static org.assertj.core.api.Assertions.assertThat;

import io.broadhead.attention.job.Job;
import io.broadhead.attention.job.JobFile;
import io.broadhead.attention.job.LayerSpec;
import io.broadhead.attention.testing.EmulatedDevice;
import io.broadhead.attention.testing.NoLeaks;
import io.broadhead.attention.testing.Scenario;
import io.broadhead.attention.testing.StepRow;
import java.nio.file.Path;
import java.time.Duration;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.atomic.AtomicInteger;
import org.apache.flink.api.common.JobStatus;
import org.apache.flink.configuration.CheckpointingOptions;
import org.apache.flink.configuration.Configuration;
import org.apache.flink.configuration.ExternalizedCheckpointRetention;
import org.apache.flink.configuration.MemorySize;
import org.apache.flink.configuration.PipelineOptions;
import org.apache.flink.configuration.RestartStrategyOptions;
import org.apache.flink.configuration.StateBackendOptions;
import org.apache.flink.configuration.StateRecoveryOptions;
import org.apache.flink.configuration.TaskManagerOptions;
import org.apache.flink.core.execution.JobClient;
import org.apache.flink.core.execution.SavepointFormatType;
import org.apache.flink.runtime.checkpoint.AbstractCheckpointStats;
import org.apache.flink.runtime.checkpoint.CompletedCheckpointStats;
import org.apache.flink.runtime.executiongraph.ErrorInfo;
import org.apache.flink.runtime.minicluster.MiniCluster;
import org.apache.flink.runtime.testutils.MiniClusterResourceConfiguration;
import org.apache.flink.state.rocksdb.RocksDBOptions;
import org.apache.flink.streaming.api.environment.StreamExecutionEnvironment;
import org.apache.flink.test.junit5.InjectMiniCluster;
import org.apache.flink.test.junit5.MiniClusterExtension;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.extension.RegisterExtension;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

/** Jobs that fail, stop and start again with their caches, without a token sent twice. */
class StatefulJobITCase {
  private static final int ROUNDS = 40;
  private static final int SEQUENCES = 9;
  private static final int SHARDS = 8;

  @RegisterExtension
  private static final MiniClusterExtension CLUSTER =
      new MiniClusterExtension(
          new MiniClusterResourceConfiguration.Builder()
              .setNumberTaskManagers(2)
              .setNumberSlotsPerTaskManager(2)
              .setConfiguration(
                  new Configuration()
                      .set(TaskManagerOptions.MANAGED_MEMORY_SIZE, MemorySize.ofMebiBytes(128)))
              .build());

  @RegisterExtension private final NoLeaks noLeaks = new NoLeaks();

  /** Of all tests: the cluster may still remove checkpoints of a job that has ended. */
  @TempDir private static Path folder;

  private static Job job(int numBlocks) {
    return JobFile.parse(
        """
        kv_cache: {num_blocks: %d, dtype: float16}
        layers:
          - {name: a, num_heads: 4, num_kv_heads: 2, head_size: 64}
          - {name: b, num_heads: 4, num_kv_heads: 2, head_size: 64}
        """
            .formatted(numBlocks),
        "job.yaml");
  }

  private static final Job JOB = job(64);

  private static void makeSteps(boolean managed) {
    Scenario scenario = new Scenario(JOB, StepJob.DTYPE, 31);
    List<StepJob.Step> steps = new ArrayList<>();
    for (int round = 0; round < ROUNDS; round++) {
      for (LayerSpec layer : JOB.layers()) {
        List<StepRow> rows = new ArrayList<>();
        for (int s = 0; s < SEQUENCES; s++) {
          rows.add(scenario.next("s" + s, layer, round == 0 ? 5 + 3 * s : 1));
        }
        steps.add(new StepJob.Step(layer, rows, managed));
      }
    }
    StepJob.reset(steps);
    StepJob.expect(JOB);
    StepJob.slow(10);
  }

  private StreamExecutionEnvironment environment(String backend) {
    StreamExecutionEnvironment environment = CLUSTER.getTestStreamEnvironment();
    Configuration configuration = new Configuration();
    configuration.set(PipelineOptions.GENERIC_TYPES, false);
    configuration.set(PipelineOptions.MAX_PARALLELISM, 128);
    configuration.set(StateBackendOptions.STATE_BACKEND, backend);
    configuration.set(CheckpointingOptions.INCREMENTAL_CHECKPOINTS, true);
    configuration.set(RocksDBOptions.OPTIONS_FACTORY, KvCacheRocksDBOptions.class.getName());
    configuration.set(CheckpointingOptions.CHECKPOINTING_INTERVAL, Duration.ofMillis(40));
    // Unaligned from its start, a checkpoint can overtake the split that the source was just given,
    // and Flink 2.3 loses it.
    configuration.set(CheckpointingOptions.ALIGNED_CHECKPOINT_TIMEOUT, Duration.ofMillis(1));
    configuration.set(CheckpointingOptions.CHECKPOINT_STORAGE, "filesystem");
    configuration.set(CheckpointingOptions.CHECKPOINTS_DIRECTORY, folder.toUri().toString());
    configuration.set(RestartStrategyOptions.RESTART_STRATEGY, "fixed-delay");
    configuration.set(RestartStrategyOptions.RESTART_STRATEGY_FIXED_DELAY_ATTEMPTS, 5);
    configuration.set(
        RestartStrategyOptions.RESTART_STRATEGY_FIXED_DELAY_DELAY, Duration.ofMillis(10));
    environment.configure(configuration);
    environment.setParallelism(1);
    return environment;
  }

  private static Configuration options() {
    return new Configuration()
        .set(PagedAttentionOptions.THREADS, 1)
        .set(PagedAttentionOptions.SHARDS, SHARDS);
  }

  private static void attend(
      StreamExecutionEnvironment environment, Job job, Configuration options, int parallelism) {
    StepJob.record(
        PagedAttentionStream.of(StepJob.produce(environment), job)
            .options(options)
            .parallelism(parallelism)
            .attend());
  }

  /** Three times, whenever a few checkpoints were made. */
  private static void failThreeTimes(AtomicInteger failures) {
    StepJob.failWhen((batches, checkpoints) -> checkpoints >= 1 && failures.getAndIncrement() < 3);
  }

  @ParameterizedTest
  @CsvSource({
    "hashmap, true, false, 0, 64",
    "rocksdb, true, false, 0, 64",
    "rocksdb, true, true, 16, 64",
    "rocksdb, false, false, 0, 64",
    "hashmap, false, true, 0, 64",
    "rocksdb, true, false, 16, 9",
  })
  void failuresLoseNothing(
      String backend, boolean managed, boolean unaligned, int maxTokens, int numBlocks)
      throws Exception {
    makeSteps(managed);
    AtomicInteger failures = new AtomicInteger();
    failThreeTimes(failures);
    StreamExecutionEnvironment environment = environment(backend);
    environment.getCheckpointConfig().enableUnalignedCheckpoints(unaligned);
    Configuration options = options().set(PagedAttentionOptions.BATCH_MAX_TOKENS, maxTokens);
    attend(environment, job(numBlocks), options, 2);
    environment.execute();
    assertThat(failures.get()).as("failures").isGreaterThanOrEqualTo(3);
    StepJob.assertResults();
  }

  /**
   * Why a wrong row does not end the job for good: it may be corrected, and the caches are there.
   */
  @Test
  void aRowThatIsCorrectedIsComputedAfterARestart() throws Exception {
    makeSteps(true);
    List<StepRow> rows = StepJob.steps().get(ROUNDS).rows();
    StepRow right = rows.get(0);
    rows.set(0, right.withSeqLen(right.seqLen() + 1));
    StreamExecutionEnvironment environment = environment("rocksdb");
    environment.configure(
        new Configuration()
            .set(RestartStrategyOptions.RESTART_STRATEGY_FIXED_DELAY_ATTEMPTS, Integer.MAX_VALUE));
    attend(environment, JOB, options(), 2);
    JobClient client = environment.executeAsync();
    for (JobStatus status = JobStatus.RUNNING;
        status != JobStatus.RESTARTING;
        status = client.getJobStatus().get()) {
      assertThat(status.isTerminalState()).as("job has ended").isFalse();
      Thread.sleep(1);
    }
    rows.set(0, right);
    client.getJobExecutionResult().get();
    StepJob.assertResults();
  }

  /** The task fails with what the device said, and its job goes on from the last checkpoint. */
  @Test
  void aDeviceThatFailsLosesNothing(@InjectMiniCluster MiniCluster cluster) throws Exception {
    EmulatedDevice.assumeHere();
    makeSteps(true);
    AtomicInteger failures = new AtomicInteger();
    StepJob.failWhen(
        (batches, checkpoints) -> {
          if (checkpoints >= 1 && failures.getAndIncrement() == 0) {
            EmulatedDevice.fail();
          }
          return false;
        });
    StreamExecutionEnvironment environment = environment("hashmap");
    attend(environment, JOB, options(), 2);
    JobClient client = environment.executeAsync();
    client.getJobExecutionResult().get();
    assertThat(cluster.getExecutionGraph(client.getJobID()).get().getAllExecutionVertices())
        .flatMap(vertex -> vertex.getExecutionHistory().getHistoricalExecutions())
        .flatMap(execution -> execution.getFailureInfo().stream().toList())
        .extracting(ErrorInfo::getExceptionAsString)
        .anyMatch(text -> text.contains("DEVICE_ERROR"));
    StepJob.assertResults();
  }

  /** Batches that are on their way between tasks go into the checkpoint, and come back from it. */
  @Test
  void unalignedCheckpointsHoldBatchesOnTheirWay(@InjectMiniCluster MiniCluster cluster)
      throws Exception {
    makeSteps(true);
    StepJob.slow(0);
    StepJob.slowRecorder(8);
    AtomicInteger failures = new AtomicInteger();
    failThreeTimes(failures);
    StreamExecutionEnvironment environment = environment("hashmap");
    environment.getCheckpointConfig().enableUnalignedCheckpoints(true);
    attend(environment, JOB, options(), 2);
    JobClient client = environment.executeAsync();
    client.getJobExecutionResult().get();
    assertThat(failures.get()).as("failures").isGreaterThanOrEqualTo(3);
    StepJob.assertResults();
    assertThat(
            cluster
                .getExecutionGraph(client.getJobID())
                .get()
                .getCheckpointStatsSnapshot()
                .getHistory()
                .getCheckpoints()
                .stream()
                .mapToLong(AbstractCheckpointStats::getPersistedData))
        .as("bytes on their way, of each checkpoint")
        .anyMatch(bytes -> bytes > 0);
  }

  /**
   * Batches on their way go to another subtask, too: to find whose they are, Flink has each of them
   * read by several, and drops it in all but one.
   */
  @Test
  void unalignedCheckpointsCarryBatchesToAnotherParallelism(@InjectMiniCluster MiniCluster cluster)
      throws Exception {
    noLeaks.flinkDropsBatches();
    makeSteps(true);
    StepJob.slow(0);
    StepJob.slowRecorder(8);
    StreamExecutionEnvironment environment = environment("hashmap");
    environment.getCheckpointConfig().enableUnalignedCheckpoints(true);
    environment
        .getCheckpointConfig()
        .setExternalizedCheckpointRetention(ExternalizedCheckpointRetention.RETAIN_ON_CANCELLATION);
    attend(environment, JOB, options(), 2);
    JobClient client = environment.executeAsync();
    while (StepJob.recorded() < SEQUENCES * ROUNDS / 2) {
      assertThat(client.getJobStatus().get().isTerminalState()).as("job has ended").isFalse();
      Thread.sleep(5);
    }
    client.cancel().get();
    while (!client.getJobStatus().get().isTerminalState()) {
      Thread.sleep(5);
    }
    CompletedCheckpointStats checkpoint =
        cluster
            .getExecutionGraph(client.getJobID())
            .get()
            .getCheckpointStatsSnapshot()
            .getHistory()
            .getLatestCompletedCheckpoint();
    assertThat(checkpoint.getPersistedData()).as("bytes on their way").isPositive();

    StreamExecutionEnvironment next = environment("hashmap");
    next.configure(
        new Configuration().set(StateRecoveryOptions.SAVEPOINT_PATH, checkpoint.getExternalPath()));
    attend(next, JOB, options(), 4);
    next.execute();
    StepJob.assertResults();
  }

  @Test
  void savepointsCarryTheCachesToOtherParallelismsPoolsAndBackends() throws Exception {
    makeSteps(true);
    String savepoint = null;
    String[] backends = {"hashmap", "rocksdb", "hashmap"};
    int[] parallelisms = {2, 4, 1};
    for (int i = 0; i < parallelisms.length; i++) {
      StreamExecutionEnvironment environment = environment(backends[i]);
      if (savepoint != null) {
        environment.configure(
            new Configuration().set(StateRecoveryOptions.SAVEPOINT_PATH, savepoint));
      }
      Configuration options = options().set(PagedAttentionOptions.BACKEND, i == 1 ? "cpu" : "auto");
      attend(environment, job(64 - 10 * i), options, parallelisms[i]);
      JobClient client = environment.executeAsync();
      if (i == parallelisms.length - 1) {
        client.getJobExecutionResult().get();
        break;
      }
      int enough = StepJob.recorded() + SEQUENCES * ROUNDS / 2;
      while (StepJob.recorded() < enough) {
        assertThat(client.getJobStatus().get().isTerminalState()).as("job has ended").isFalse();
        Thread.sleep(5);
      }
      StepJob.slow(200); // a savepoint may take as long as the job has left
      savepoint =
          client
              .stopWithSavepoint(
                  false, folder.resolve("sp" + i).toUri().toString(), SavepointFormatType.CANONICAL)
              .get();
      StepJob.slow(10);
    }
    StepJob.assertResults();
  }
}
