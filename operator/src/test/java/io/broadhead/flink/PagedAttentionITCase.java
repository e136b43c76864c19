// SPDX-License-Identifier: Apache-2.0
package io.broadhead.flink;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import io.broadhead.arrow.ArrowBatch;
import io.broadhead.arrow.DType;
import io.broadhead.attention.RefusedRow;
import io.broadhead.attention.job.Job;
import io.broadhead.attention.job.JobFile;
import io.broadhead.attention.job.LayerSpec;
import io.broadhead.attention.testing.NoLeaks;
import io.broadhead.attention.testing.Scenario;
import io.broadhead.attention.testing.StepRow;
import io.broadhead.kernel.StepStats;
import java.net.URL;
import java.net.URLClassLoader;
import java.time.Duration;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Queue;
import java.util.concurrent.ConcurrentLinkedQueue;
import java.util.concurrent.atomic.AtomicInteger;
import org.apache.flink.api.common.JobExecutionResult;
import org.apache.flink.api.common.RuntimeExecutionMode;
import org.apache.flink.api.common.typeinfo.Types;
import org.apache.flink.configuration.Configuration;
import org.apache.flink.configuration.PipelineOptions;
import org.apache.flink.configuration.RestartStrategyOptions;
import org.apache.flink.configuration.TaskManagerOptions;
import org.apache.flink.core.execution.JobClient;
import org.apache.flink.metrics.Counter;
import org.apache.flink.metrics.Gauge;
import org.apache.flink.metrics.Histogram;
import org.apache.flink.metrics.Metric;
import org.apache.flink.runtime.testutils.InMemoryReporter;
import org.apache.flink.runtime.testutils.MiniClusterResourceConfiguration;
import org.apache.flink.streaming.api.datastream.DataStream;
import org.apache.flink.streaming.api.datastream.DataStreamUtils;
import org.apache.flink.streaming.api.datastream.SingleOutputStreamOperator;
import org.apache.flink.streaming.api.environment.StreamExecutionEnvironment;
import org.apache.flink.streaming.api.functions.sink.v2.DiscardingSink;
import org.apache.flink.streaming.api.operators.AbstractStreamOperatorFactory;
import org.apache.flink.streaming.api.operators.OneInputStreamOperatorFactory;
import org.apache.flink.streaming.api.operators.StreamOperator;
import org.apache.flink.streaming.api.operators.StreamOperatorParameters;
import org.apache.flink.test.junit5.MiniClusterExtension;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.TestReporter;
import org.junit.jupiter.api.extension.RegisterExtension;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.ValueSource;

class PagedAttentionITCase {
  private static final int STEPS = 12;
  private static final int SEQUENCES = 6;
  private static final InMemoryReporter METRICS = InMemoryReporter.createWithRetainedMetrics();

  @RegisterExtension
  private static final MiniClusterExtension CLUSTER =
      new MiniClusterExtension(
          () ->
              new MiniClusterResourceConfiguration.Builder()
                  .setNumberTaskManagers(2)
                  .setNumberSlotsPerTaskManager(2)
                  .setConfiguration(
                      METRICS.addToConfiguration(
                          new Configuration()
                              .set(
                                  TaskManagerOptions.MANAGED_MEMORY_SIZE,
                                  org.apache.flink.configuration.MemorySize.ofMebiBytes(64))))
                  .build());

  @RegisterExtension private final NoLeaks noLeaks = new NoLeaks();

  private static final Job JOB =
      JobFile.parse(
          """
          kv_cache: {num_blocks: 64, dtype: float16}
          layers: [{name: a, num_heads: 4, num_kv_heads: 2, head_size: 64}]
          """,
          "job.yaml");
  private static final LayerSpec LAYER = JOB.layers().get(0);

  private static final Queue<String> ADDRESS_ERRORS = new ConcurrentLinkedQueue<>();
  private static final Queue<RefusedRow> REFUSED = new ConcurrentLinkedQueue<>();
  private static volatile PagedAttentionOperator lastOperator;

  @BeforeEach
  void makeSteps() {
    ADDRESS_ERRORS.clear();
    REFUSED.clear();
    Scenario scenario = new Scenario(JOB, StepJob.DTYPE, 23);
    List<StepJob.Step> steps = new ArrayList<>();
    for (int step = 0; step < STEPS; step++) {
      List<StepRow> rows = new ArrayList<>();
      for (int s = 0; s < SEQUENCES; s++) {
        rows.add(scenario.next("sequence " + s, LAYER, step == 0 ? 5 + 7 * s : 1 + step % 2 * s));
      }
      steps.add(new StepJob.Step(LAYER, rows, false));
    }
    StepJob.reset(steps);
    StepJob.expect(JOB);
  }

  /** The recorder fails some times, at every fifth batch. */
  private static void failTimes(int times) {
    AtomicInteger left = new AtomicInteger(times);
    StepJob.failWhen((batches, checkpoints) -> batches % 5 == 0 && left.getAndDecrement() > 0);
  }

  private static StepRow makeBad(int step, int row) {
    List<StepRow> rows = StepJob.steps().get(step).rows();
    rows.set(row, rows.get(row).withSlots(1 << 20));
    return rows.get(row);
  }

  private StreamExecutionEnvironment environment(boolean objectReuse) {
    StreamExecutionEnvironment environment = CLUSTER.getTestStreamEnvironment();
    Configuration configuration = new Configuration();
    configuration.set(PipelineOptions.GENERIC_TYPES, false);
    configuration.set(PipelineOptions.OBJECT_REUSE, objectReuse);
    configuration.set(RestartStrategyOptions.RESTART_STRATEGY, "none");
    environment.configure(configuration);
    environment.setParallelism(1);
    return environment;
  }

  private static Configuration options() {
    return new Configuration().set(PagedAttentionOptions.THREADS, 1);
  }

  /** The steps are attended and recorded. */
  private static void attend(
      StreamExecutionEnvironment environment, Configuration options, int parallelism) {
    StepJob.record(
        PagedAttentionStream.of(StepJob.produce(environment), JOB)
            .options(options)
            .parallelism(parallelism)
            .attend());
  }

  @ParameterizedTest
  @ValueSource(booleans = {true, false})
  void chainedJobs(boolean objectReuse) throws Exception {
    StreamExecutionEnvironment environment = environment(objectReuse);
    SingleOutputStreamOperator<ArrowBatch> results =
        PagedAttentionStream.of(StepJob.produce(environment), JOB).options(options()).attend();
    StepJob.record(results);
    assertThat(results.getTransformation().getManagedMemoryOperatorScopeUseCaseWeights())
        .isNotEmpty();
    JobExecutionResult result = environment.execute();

    StepJob.assertResults();
    assertThat(StepJob.RESULT_BATCHES).hasValue(STEPS);
    assertThat(counter(result, PagedAttentionMetrics.STEPS)).isEqualTo(STEPS);
    assertThat(counter(result, PagedAttentionMetrics.SEQUENCES)).isEqualTo(STEPS * SEQUENCES);
    long tokens =
        StepJob.steps().stream()
            .flatMap(step -> step.rows().stream())
            .mapToLong(r -> r.query().length)
            .sum();
    assertThat(counter(result, PagedAttentionMetrics.QUERY_TOKENS)).isEqualTo(tokens);
    assertThat(counter(result, PagedAttentionMetrics.WRITTEN_TOKENS)).isEqualTo(tokens);
    assertThat(counter(result, PagedAttentionMetrics.BYTES_COPIED)).isZero();
    assertThat(counter(result, PagedAttentionMetrics.BYTES_IN_PLACE)).isPositive();
    assertThat(metrics(result, PagedAttentionMetrics.STEP_TIME_MICROS))
        .singleElement()
        .satisfies(m -> assertThat(((Histogram) m).getCount()).isEqualTo(STEPS));
  }

  private static List<Metric> metrics(JobExecutionResult result, String name) {
    String suffix = "." + PagedAttentionMetrics.GROUP + "." + name;
    return METRICS
        .findJobMetricGroups(result.getJobID(), name.substring(name.lastIndexOf('.') + 1))
        .stream()
        .filter(t -> t.f0.getMetricIdentifier(t.f1).endsWith(suffix))
        .map(t -> t.f2)
        .toList();
  }

  /** The sum over all subtasks. */
  private static long counter(JobExecutionResult result, String name) {
    List<Metric> counters = metrics(result, name);
    assertThat(counters).as(name).isNotEmpty();
    return counters.stream().mapToLong(m -> ((Counter) m).getCount()).sum();
  }

  @ParameterizedTest
  @CsvSource({"2, 2, true", "2, 2, false", "4, 2, true", "5, 1, false"})
  void acrossANetworkEdge(int shards, int parallelism, boolean objectReuse) throws Exception {
    StreamExecutionEnvironment environment = environment(objectReuse);
    Configuration options = options().set(PagedAttentionOptions.SHARDS, shards);
    attend(environment, options, parallelism);
    JobExecutionResult result = environment.execute();

    StepJob.assertResults();
    assertThat(counter(result, PagedAttentionMetrics.STEPS))
        .as("a step of each batch in each subtask")
        .isEqualTo((long) STEPS * parallelism);
    assertThat(counter(result, PagedAttentionMetrics.BYTES_COPIED)).isPositive();
    assertThat(metrics(result, PagedAttentionMetrics.CACHE_BYTES))
        .hasSize(parallelism)
        .allSatisfy(m -> assertThat(m).isInstanceOf(Gauge.class));
  }

  @Test
  void threadsOfTheNetworkDoNotKeepTheClassLoaderOfAnEarlierJob() throws Exception {
    executeOnBothTaskManagers();
    assertThat(networkThreads()).isNotEmpty();
    ClassLoader earlier = new URLClassLoader(new URL[0]);
    networkThreads().forEach(thread -> thread.setContextClassLoader(earlier));

    executeOnBothTaskManagers();

    assertThat(networkThreads()).noneMatch(thread -> thread.getContextClassLoader() == earlier);
  }

  private void executeOnBothTaskManagers() throws Exception {
    StreamExecutionEnvironment environment = environment(true);
    attend(environment, options().set(PagedAttentionOptions.SHARDS, 8), 4);
    environment.execute();
  }

  private static List<Thread> networkThreads() {
    return Thread.getAllStackTraces().keySet().stream()
        .filter(thread -> thread.getName().startsWith("Flink Netty Client"))
        .toList();
  }

  /** Makes operators that the test can look into. */
  private static final class ObservedFactory extends AbstractStreamOperatorFactory<ArrowBatch>
      implements OneInputStreamOperatorFactory<ArrowBatch, ArrowBatch> {
    private static final long serialVersionUID = 1;

    private final PagedAttentionOperatorFactory factory =
        new PagedAttentionOperatorFactory(JOB, options(), 1);

    @Override
    public <T extends StreamOperator<ArrowBatch>> T createStreamOperator(
        StreamOperatorParameters<ArrowBatch> parameters) {
      T operator = factory.createStreamOperator(parameters);
      lastOperator = (PagedAttentionOperator) operator;
      return operator;
    }

    @Override
    @SuppressWarnings("rawtypes")
    public Class<? extends StreamOperator> getStreamOperatorClass(ClassLoader classLoader) {
      return factory.getStreamOperatorClass(classLoader);
    }
  }

  private static void expectAddress(ArrowBatch batch, String column, long kernelAddress) {
    long address = batch.column(column).child().child().values().memoryAddress();
    if (address != kernelAddress) {
      ADDRESS_ERRORS.add(column + ": the batch has " + address + ", kernels " + kernelAddress);
    }
  }

  @ParameterizedTest
  @ValueSource(booleans = {true, false})
  void kernelsSeeTheBuffersOfChainedProducersAndConsumers(boolean objectReuse) throws Exception {
    StreamExecutionEnvironment environment = environment(objectReuse);
    DataStreamUtils.reinterpretAsKeyedStream(
            StepJob.produce(environment), new ShardKey(1, 128), Types.INT)
        .transform("observed", ArrowBatchTypeInfo.INSTANCE, new ObservedFactory())
        .map(
            result -> {
              StepStats stats = lastOperator.attention().lastStep();
              expectAddress(StepJob.lastInput, "query", stats.queryAddress());
              expectAddress(StepJob.lastInput, "key", stats.keyAddress());
              expectAddress(StepJob.lastInput, "value", stats.valueAddress());
              expectAddress(result, "output", stats.outputAddress());
              if (stats.bytesStaged() != 0) {
                ADDRESS_ERRORS.add(stats.bytesStaged() + " bytes were staged");
              }
              return StepJob.RESULT_BATCHES.incrementAndGet();
            },
            Types.INT)
        .sinkTo(new DiscardingSink<>());
    environment.execute();

    assertThat(StepJob.RESULT_BATCHES).hasValue(STEPS);
    assertThat(ADDRESS_ERRORS).isEmpty();
  }

  @ParameterizedTest
  @CsvSource({"1, 1", "4, 2"})
  void aFailureInTheMiddleReleasesEverything(int shards, int parallelism) {
    failTimes(1);
    StreamExecutionEnvironment environment = environment(true);
    Configuration options = options().set(PagedAttentionOptions.SHARDS, shards);
    attend(environment, options, parallelism);

    assertThatThrownBy(environment::execute)
        .hasStackTraceContaining("the recorder fails on purpose");
  }

  @Test
  void aBadRowInTheMiddleFailsTheJobWithItsName() {
    makeBad(6, 2);
    StreamExecutionEnvironment environment = environment(true);
    attend(environment, options(), 1);

    assertThatThrownBy(environment::execute)
        .hasStackTraceContaining("layer 'a', sequence sequence 2, row 2")
        .hasStackTraceContaining("slot_mapping");
  }

  /** In one process, each of them with handles, caches and batches of its own. */
  @Test
  void aHundredRestartsLeaveNothing() throws Exception {
    failTimes(100);
    StreamExecutionEnvironment environment = environment(true);
    Configuration restarts = new Configuration();
    restarts.set(RestartStrategyOptions.RESTART_STRATEGY, "fixed-delay");
    restarts.set(RestartStrategyOptions.RESTART_STRATEGY_FIXED_DELAY_ATTEMPTS, 100);
    restarts.set(RestartStrategyOptions.RESTART_STRATEGY_FIXED_DELAY_DELAY, Duration.ofMillis(1));
    environment.configure(restarts);
    attend(environment, options(), 1);
    environment.execute();

    StepJob.assertResults();
    assertThat(StepJob.RESULT_BATCHES).hasValueGreaterThanOrEqualTo(100 + STEPS);
  }

  @Test
  void refusedRowsTravelToTheirSideOutput() throws Exception {
    StepJob.expectNot(makeBad(STEPS - 1, 3));
    StreamExecutionEnvironment environment = environment(false);
    Configuration options =
        options()
            .set(PagedAttentionOptions.SHARDS, 2)
            .set(PagedAttentionOptions.ON_BAD_ROW, OnBadRow.SIDE_OUTPUT);
    SingleOutputStreamOperator<ArrowBatch> results =
        PagedAttentionStream.of(StepJob.produce(environment), JOB)
            .options(options)
            .parallelism(2)
            .attend();
    StepJob.record(results);
    results
        .getSideOutput(PagedAttentionOperator.REFUSED_ROWS)
        .rebalance()
        .map(
            row -> {
              REFUSED.add(row);
              return 1;
            },
            Types.INT)
        .sinkTo(new DiscardingSink<>());
    JobExecutionResult result = environment.execute();

    StepJob.assertResults();
    assertThat(REFUSED).extracting(RefusedRow::sequenceId).containsExactly("sequence 3");
    assertThat(counter(result, "code.INVALID_ROW." + PagedAttentionMetrics.REFUSED_ROWS))
        .isEqualTo(1);
  }

  @Test
  void resultsMovedTogetherAroundARefusedRowCountAsCopied() throws Exception {
    StepJob.expectNot(makeBad(STEPS - 1, 3));
    StreamExecutionEnvironment environment = environment(true);
    Configuration options = options().set(PagedAttentionOptions.ON_BAD_ROW, OnBadRow.SIDE_OUTPUT);
    attend(environment, options, 1);
    JobExecutionResult result = environment.execute();

    StepJob.assertResults();
    long moved =
        StepJob.steps().get(STEPS - 1).rows().subList(4, SEQUENCES).stream()
                .mapToLong(r -> r.query().length)
                .sum()
            * 4
            * 64
            * DType.FLOAT16.byteWidth();
    assertThat(counter(result, PagedAttentionMetrics.BYTES_COPIED)).isBetween(moved, moved + 4096);
  }

  @ParameterizedTest
  @CsvSource({"1, 1", "4, 2"})
  void batchExecution(int shards, int parallelism) throws Exception {
    StreamExecutionEnvironment environment = environment(true);
    environment.setRuntimeMode(RuntimeExecutionMode.BATCH);
    Configuration options = options().set(PagedAttentionOptions.SHARDS, shards);
    attend(environment, options, parallelism);
    environment.execute();

    StepJob.assertResults();
  }

  /** Whether a task's thread computes a step now. */
  private static boolean isKernelRunning() {
    return Thread.getAllStackTraces().values().stream()
        .anyMatch(
            stack ->
                Arrays.stream(stack).anyMatch(at -> at.getMethodName().equals("bh_step_parts")));
  }

  /**
   * One step of more than ten seconds, a long prompt. That it has no result shows that it was cut
   * short: a step that ends hands its result over, whatever becomes of the task.
   */
  @ParameterizedTest
  @CsvSource({"1, 0", "2, 0", "1, 100000"})
  void aJobThatIsCancelledEndsTheStepOfItsKernel(int shards, int maxTokens, TestReporter reporter)
      throws Exception {
    Job large =
        JobFile.parse(
            """
            kv_cache: {num_blocks: 1024, dtype: float16}
            layers: [{name: a, num_heads: 32, num_kv_heads: 1, head_size: 64}]
            """,
            "job.yaml");
    StepRow row = new Scenario(large, StepJob.DTYPE, 1).next("s", large.layers().get(0), 16_000);
    StepJob.reset(List.of(new StepJob.Step(large.layers().get(0), List.of(row), false)));
    StreamExecutionEnvironment environment = environment(true);
    StepJob.record(
        PagedAttentionStream.of(StepJob.produce(environment), large)
            .options(
                options()
                    .set(PagedAttentionOptions.SHARDS, shards)
                    .set(PagedAttentionOptions.BATCH_MAX_TOKENS, maxTokens))
            .attend());
    JobClient client = environment.executeAsync();
    while (!isKernelRunning()) {
      Thread.sleep(1);
    }
    Thread.sleep(100);
    assertThat(isKernelRunning()).isTrue();
    long start = System.nanoTime();
    client.cancel().get();
    assertThatThrownBy(client.getJobExecutionResult()::get)
        .hasStackTraceContaining("was cancelled");
    Duration took = Duration.ofNanos(System.nanoTime() - start);
    reporter.publishEntry("milliseconds from the request to the end", "" + took.toMillis());
    // A second is what it may take; a machine that stands still for a while is no failure.
    assertThat(took).isLessThan(Duration.ofSeconds(8));
    assertThat(StepJob.RESULT_BATCHES).hasValue(0);
  }

  @Test
  void twoOperatorsShareAJobGraph() throws Exception {
    StreamExecutionEnvironment environment = environment(true);
    DataStream<ArrowBatch> produced = StepJob.produce(environment);
    Configuration options = options().set(PagedAttentionOptions.SHARDS, 2);
    StepJob.record(PagedAttentionStream.of(produced, JOB).options(options).parallelism(2).attend());
    StepJob.record(
        PagedAttentionStream.of(produced, JOB)
            .options(options)
            .parallelism(2)
            .name("attention-of-the-draft")
            .attend());
    List<String> uids =
        environment.getStreamGraph(false).getStreamNodes().stream()
            .map(node -> node.getTransformationUID())
            .filter(uid -> uid != null)
            .toList();
    assertThat(uids)
        .containsExactlyInAnyOrder(
            "producer",
            "shard-splitter",
            "paged-attention",
            "attention-of-the-draft-shard-splitter",
            "attention-of-the-draft");
    JobExecutionResult result = environment.execute();

    StepJob.assertResults();
    assertThat(StepJob.RESULT_BATCHES.get()).isGreaterThanOrEqualTo(2 * STEPS);
    assertThat(counter(result, PagedAttentionMetrics.SEQUENCES)).isEqualTo(2 * STEPS * SEQUENCES);
  }

  @Test
  void tooFewOrTooManyShardsAreRefusedAtSubmission() {
    Configuration options = options().set(PagedAttentionOptions.SHARDS, 2);
    DataStream<ArrowBatch> steps = StepJob.produce(environment(true));
    assertThatThrownBy(
            () -> PagedAttentionStream.of(steps, JOB).options(options).parallelism(3).attend())
        .hasMessage("broadhead.shards: expected at least the parallelism 3, got 2");
    options.set(PagedAttentionOptions.SHARDS, 1_000_000);
    assertThatThrownBy(() -> PagedAttentionStream.of(steps, JOB).options(options).attend())
        .hasMessage(
            "broadhead.shards: expected at most Flink's maximum parallelism 32768, got 1000000");
  }
}
