// SPDX-License-Identifier: Apache-2.0
package io.broadhead.job;

import static org.assertj.core.api.Assertions.assertThat;

import io.broadhead.arrow.ArrowBatch;
import io.broadhead.arrow.Compression;
import io.broadhead.attention.testing.NoLeaks;
import io.broadhead.flink.ArrowBatchTypeInfo;
import io.broadhead.flink.FlinkAllocator;
import io.broadhead.flink.OnBadRow;
import io.broadhead.flink.PagedAttentionOperator;
import io.broadhead.flink.PagedAttentionOptions;
import io.broadhead.flink.PagedAttentionStream;
import io.broadhead.job.SoakSettings.Disturbance;
import io.broadhead.job.SoakSettings.Kind;
import io.broadhead.job.source.StepFileSource;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Duration;
import java.util.Comparator;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.TimeoutException;
import java.util.stream.LongStream;
import java.util.stream.Stream;
import org.apache.flink.api.common.JobID;
import org.apache.flink.api.common.JobStatus;
import org.apache.flink.api.common.functions.FlatMapFunction;
import org.apache.flink.configuration.CheckpointingOptions;
import org.apache.flink.configuration.Configuration;
import org.apache.flink.configuration.ExternalizedCheckpointRetention;
import org.apache.flink.configuration.JobManagerOptions;
import org.apache.flink.configuration.MemorySize;
import org.apache.flink.configuration.PipelineOptions;
import org.apache.flink.configuration.RestOptions;
import org.apache.flink.configuration.RestartStrategyOptions;
import org.apache.flink.configuration.StateBackendOptions;
import org.apache.flink.configuration.StateRecoveryOptions;
import org.apache.flink.configuration.TaskManagerOptions;
import org.apache.flink.core.execution.SavepointFormatType;
import org.apache.flink.runtime.minicluster.MiniCluster;
import org.apache.flink.runtime.minicluster.MiniClusterConfiguration;
import org.apache.flink.runtime.rpc.RpcSystem;
import org.apache.flink.runtime.scheduler.stopwithsavepoint.StopWithSavepointStoppingException;
import org.apache.flink.streaming.api.datastream.DataStream;
import org.apache.flink.streaming.api.datastream.SingleOutputStreamOperator;
import org.apache.flink.streaming.api.environment.StreamExecutionEnvironment;
import org.apache.flink.util.Collector;
import org.apache.flink.util.ExceptionUtils;
import org.apache.flink.util.Reference;
import org.junit.jupiter.api.AfterAll;
import org.junit.jupiter.api.extension.RegisterExtension;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.MethodSource;

/**
 * Whole jobs with settings and disturbances that a seed draws: what they have committed at the end
 * is what the library computes without Flink, row for row. {@code -Dbroadhead.soak=FIRST[-LAST]}
 * chooses the seeds.
 */
class JobSoakITCase {
  private static final String SEEDS = "broadhead.soak";
  private static final Duration HANGS = Duration.ofMinutes(2);

  /**
   * Flink's adaptive scheduler may wait so long if a task fails while the job is being stopped with
   * a savepoint.
   */
  private static final Duration CHECKPOINT_TIMEOUT = Duration.ofSeconds(5);

  private static final int TASK_MANAGERS = 2;

  /** Shared, because each one loads its classes anew. */
  private static final RpcSystem RPC = RpcSystem.load();

  @RegisterExtension private final NoLeaks noLeaks = new NoLeaks();

  @TempDir private Path folder;

  private SoakSettings settings;
  private SoakSteps steps;
  private MiniCluster cluster;
  private int taskManagersLost;

  @AfterAll
  static void closeRpc() {
    RPC.close();
  }

  static LongStream seeds() {
    String[] range = System.getProperty(SEEDS, "1-6").split("-");
    return LongStream.rangeClosed(
        Long.parseLong(range[0]), Long.parseLong(range[range.length - 1]));
  }

  @ParameterizedTest(name = "seed {0}")
  @MethodSource("seeds")
  void whatIsCommittedIsWhatTheLibraryComputes(long seed) throws Exception {
    settings = SoakSettings.of(seed);
    steps = new SoakSteps(seed, settings.managed(), SoakSettings.BATCHES);
    if (settings.mayCarryBatchesOver()) {
      noLeaks.flinkDropsBatches();
    }
    SoakResults expected = SoakResults.expected(steps);
    if (settings.splitBytes() > 0) {
      steps.write(folder.resolve("steps"));
    }
    try {
      execute();
      assertThat(Thread.getAllStackTraces().keySet())
          .as("threads")
          .extracting(Thread::getName)
          .noneMatch(name -> name.startsWith("Source Data Fetcher"));
      SoakResults.committed(folder.resolve("results"), folder.resolve("refused"))
          .assertAre(expected, !settings.unaligned(), settings.mayLose());
    } catch (Exception | AssertionError e) {
      throw new AssertionError(
          "%s; again with -D%s=%d (CONTRIBUTING.md)".formatted(settings, SEEDS, seed), e);
    }
  }

  // ---- the job -------------------------------------------------------------------------------

  private Configuration clusterConfiguration() {
    Duration soon = Duration.ofMillis(20);
    return new Configuration()
        .set(JobManagerOptions.SCHEDULER, settings.scheduler())
        .set(JobManagerOptions.SCHEDULER_SUBMISSION_RESOURCE_STABILIZATION_TIMEOUT, soon)
        .set(JobManagerOptions.SCHEDULER_EXECUTING_RESOURCE_STABILIZATION_TIMEOUT, soon)
        .set(JobManagerOptions.SCHEDULER_EXECUTING_COOLDOWN_AFTER_RESCALING, Duration.ZERO)
        .set(RestOptions.BIND_PORT, "0")
        .set(TaskManagerOptions.MANAGED_MEMORY_SIZE, MemorySize.ofMebiBytes(128));
  }

  private Configuration jobConfiguration(String restored) {
    Configuration configuration =
        new Configuration()
            .set(PipelineOptions.GENERIC_TYPES, false)
            .set(PipelineOptions.OBJECT_REUSE, settings.objectReuse())
            .set(PipelineOptions.OPERATOR_CHAINING, settings.chained())
            .set(StateBackendOptions.STATE_BACKEND, settings.backend())
            .set(CheckpointingOptions.INCREMENTAL_CHECKPOINTS, true)
            .set(CheckpointingOptions.CHECKPOINT_STORAGE, "filesystem")
            .set(CheckpointingOptions.CHECKPOINTS_DIRECTORY, uri("checkpoints"))
            .set(
                CheckpointingOptions.EXTERNALIZED_CHECKPOINT_RETENTION,
                ExternalizedCheckpointRetention.RETAIN_ON_CANCELLATION)
            .set(
                CheckpointingOptions.CHECKPOINTING_INTERVAL,
                Duration.ofMillis(settings.checkpointMillis()))
            .set(CheckpointingOptions.CHECKPOINTING_TIMEOUT, CHECKPOINT_TIMEOUT)
            .set(CheckpointingOptions.ENABLE_UNALIGNED, settings.unaligned())
            .set(
                CheckpointingOptions.ALIGNED_CHECKPOINT_TIMEOUT,
                Duration.ofMillis(settings.alignmentMillis()))
            .set(RestartStrategyOptions.RESTART_STRATEGY, "fixed-delay")
            .set(RestartStrategyOptions.RESTART_STRATEGY_FIXED_DELAY_ATTEMPTS, 1000)
            .set(RestartStrategyOptions.RESTART_STRATEGY_FIXED_DELAY_DELAY, Duration.ofMillis(10));
    if (restored != null) {
      configuration.set(StateRecoveryOptions.SAVEPOINT_PATH, restored);
    }
    return configuration;
  }

  private Configuration options() {
    return new Configuration()
        .set(PagedAttentionOptions.THREADS, 1)
        .set(PagedAttentionOptions.ON_BAD_ROW, OnBadRow.SIDE_OUTPUT)
        .set(PagedAttentionOptions.OUT_OF_BLOCKS, settings.outOfBlocks())
        .set(PagedAttentionOptions.STATE, settings.state())
        .set(PagedAttentionOptions.SHARDS, settings.shards())
        .set(PagedAttentionOptions.BATCH_MAX_TOKENS, settings.maxTokens())
        .set(PagedAttentionOptions.BATCH_MAX_DELAY, Duration.ofMillis(settings.maxDelayMillis()));
  }

  private String uri(String name) {
    return folder.resolve(name).toUri().toString();
  }

  private org.apache.flink.core.fs.Path path(String name) {
    return new org.apache.flink.core.fs.Path(uri(name));
  }

  private JobID submit(int parallelism, String restored) throws Exception {
    StreamExecutionEnvironment environment =
        StreamExecutionEnvironment.createLocalEnvironment(1, jobConfiguration(restored));
    AttentionPipeline pipeline =
        new AttentionPipeline(
            steps.job(settings.pool()),
            StepFileSource.bounded(path("steps"), Math.max(settings.splitBytes(), 1)),
            path("results"),
            path("refused"),
            Compression.NONE,
            parallelism,
            settings.countSequences());
    DataStream<ArrowBatch> produced =
        settings.splitBytes() > 0
            ? pipeline.read(environment)
            : environment
                .fromSequence(0, steps.size() - 1)
                .uid("numbers")
                .flatMap(new Producer(), ArrowBatchTypeInfo.INSTANCE)
                .uid("producer");
    SingleOutputStreamOperator<ArrowBatch> results =
        PagedAttentionStream.of(disturbed(produced, "steps", 1), pipeline.job())
            .options(options())
            .parallelism(parallelism)
            .attend();
    pipeline.write(
        disturbed(results, "results", parallelism),
        results.getSideOutput(PagedAttentionOperator.REFUSED_ROWS));
    return await(cluster.submitJob(environment.getStreamGraph().getJobGraph())).getJobID();
  }

  private DataStream<ArrowBatch> disturbed(
      DataStream<ArrowBatch> batches, String name, int parallelism) {
    return batches
        .flatMap(new SoakDisturber(settings.pauseMillis()), ArrowBatchTypeInfo.INSTANCE)
        .setParallelism(parallelism)
        .uid("disturbed-" + name);
  }

  /** Makes batch after batch. */
  private static final class Producer implements FlatMapFunction<Long, ArrowBatch> {
    private static final long serialVersionUID = 1;

    /** Tasks run in this JVM. */
    static volatile SoakSteps steps;

    @Override
    public void flatMap(Long index, Collector<ArrowBatch> out) {
      try (ArrowBatch batch = steps.batch(index.intValue(), FlinkAllocator.root())) {
        out.collect(batch);
      }
    }
  }

  // ---- its life ------------------------------------------------------------------------------

  @SuppressWarnings("try") // closing Flink's cluster may be interrupted
  private void execute() throws Exception {
    SoakDisturber.reset(settings.disturbances());
    Producer.steps = steps;
    try (MiniCluster started =
        new MiniCluster(
            new MiniClusterConfiguration.Builder()
                .setConfiguration(clusterConfiguration())
                .setNumTaskManagers(TASK_MANAGERS)
                .setNumSlotsPerTaskManager(SoakSettings.SLOTS / TASK_MANAGERS)
                .build(),
            () -> Reference.borrowed(RPC))) {
      cluster = started;
      cluster.start();
      Life life = new Life(settings.parallelism(), null);
      while (life != null) {
        life = live(life);
      }
    }
  }

  /** A job from its submission on. */
  private record Life(int parallelism, String restored) {}

  /** The life that follows {@code life}, or null if all steps were computed. */
  private Life live(Life life) throws Exception {
    JobID job = submit(life.parallelism, life.restored);
    long end = System.nanoTime() + HANGS.toNanos();
    while (!await(cluster.getJobStatus(job)).isTerminalState()) {
      if (System.nanoTime() > end) {
        throw hang();
      }
      Disturbance due =
          SoakDisturber.take(
              Kind.TASK_MANAGER_IS_LOST, Kind.STOP_WITH_SAVEPOINT, Kind.CANCEL_AND_RESTORE);
      Life next = due == null ? null : disturb(job, due, life);
      if (next != null) {
        return next;
      }
      Thread.sleep(2);
    }
    await(cluster.requestJobResult(job)).toJobExecutionResult(getClass().getClassLoader());
    return null;
  }

  /** Null if {@code job} goes on, or has ended by itself. */
  private Life disturb(JobID job, Disturbance disturbance, Life life) throws Exception {
    switch (disturbance.kind()) {
      case STOP_WITH_SAVEPOINT:
        try {
          String savepoint =
              await(
                  cluster.stopWithSavepoint(
                      job, uri("savepoints"), false, SavepointFormatType.CANONICAL));
          await(cluster.requestJobResult(job));
          return new Life(disturbance.parallelism(), savepoint);
        } catch (ExecutionException e) {
          // A failure came between, or the end; if it came late, the job is over all the same.
          return ExceptionUtils.findThrowable(e, StopWithSavepointStoppingException.class)
              .map(late -> new Life(disturbance.parallelism(), late.getSavepointPath()))
              .orElse(null);
        }
      case CANCEL_AND_RESTORE:
        await(cluster.cancelJob(job));
        await(cluster.requestJobResult(job));
        return await(cluster.getJobStatus(job)) == JobStatus.FINISHED
            ? null
            : new Life(disturbance.parallelism(), latestCheckpoint(job, life.restored));
      default:
        await(cluster.terminateTaskManager(taskManagersLost++));
        cluster.startTaskManager();
        return null;
    }
  }

  /** What the latest of the job is kept in; {@code before} if it had none. */
  private String latestCheckpoint(JobID job, String before) throws IOException {
    Path checkpoints = folder.resolve("checkpoints").resolve(job.toString());
    if (Files.notExists(checkpoints)) {
      return before;
    }
    try (Stream<Path> entries = Files.list(checkpoints)) {
      return entries
          .filter(entry -> Files.exists(entry.resolve("_metadata")))
          .max(Comparator.comparingInt(JobSoakITCase::number))
          .map(entry -> entry.toUri().toString())
          .orElse(before);
    }
  }

  /** N of chk-N. */
  private static int number(Path checkpoint) {
    return Integer.parseInt(checkpoint.getFileName().toString().substring("chk-".length()));
  }

  private static <T> T await(CompletableFuture<T> future) throws Exception {
    try {
      return future.get(HANGS.toSeconds(), TimeUnit.SECONDS);
    } catch (TimeoutException e) {
      throw hang();
    }
  }

  /** To be thrown when nothing happens any more; tells of all threads what they do. */
  private static AssertionError hang() {
    AssertionError hang = new AssertionError("the job hangs");
    Thread.getAllStackTraces()
        .forEach(
            (thread, stack) -> {
              Throwable doing = new Throwable(thread.getName() + " " + thread.getState());
              doing.setStackTrace(stack);
              hang.addSuppressed(doing);
            });
    return hang;
  }
}
