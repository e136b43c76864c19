// SPDX-License-Identifier: Apache-2.0
package io.broadhead.job;

import io.broadhead.arrow.Allocators;
import io.broadhead.arrow.StepInput;
import io.broadhead.attention.job.Job;
import io.broadhead.flink.PagedAttentionMetrics;
import io.broadhead.flink.PagedAttentionOptions;
import io.broadhead.flink.StateMode;
import io.broadhead.job.source.StepFileSource;
import io.broadhead.job.text.Units;
import io.broadhead.kernel.EngineConfig;
import io.broadhead.kernel.EngineInfo;
import io.broadhead.kernel.KernelEngine;
import java.net.URI;
import java.nio.file.FileSystemNotFoundException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Duration;
import java.util.List;
import java.util.Optional;
import org.apache.arrow.memory.BufferAllocator;
import org.apache.flink.configuration.CheckpointingOptions;
import org.apache.flink.configuration.ConfigOption;
import org.apache.flink.configuration.Configuration;
import org.apache.flink.configuration.MemorySize;
import org.apache.flink.configuration.RestartStrategyOptions;
import org.apache.flink.configuration.StateBackendOptions;
import org.apache.flink.configuration.StateRecoveryOptions;
import org.apache.flink.configuration.TaskManagerOptions;
import org.apache.flink.runtime.client.JobExecutionException;
import org.apache.flink.runtime.jobmaster.JobResult;
import org.apache.flink.runtime.state.StateBackendLoader;
import org.apache.flink.streaming.api.environment.StreamExecutionEnvironment;
import org.apache.flink.streaming.api.graph.StreamGraph;
import org.apache.flink.util.DynamicCodeLoadingException;

/**
 * A {@link FlinkRun} that brings its own cluster, in this process: it looks at its input first,
 * shows its progress, and takes away what it began if it does not end well.
 */
final class EmbeddedRun {
  private static final long POLL_MILLIS = 200;
  private static final MemorySize SPARE_MANAGED_MEMORY = MemorySize.ofMebiBytes(16);

  /** Each operator of an embedded cluster has some four threads of this JVM, and starts in turn. */
  private static final int MOST_OPERATORS_HERE = 512;

  /** Flink counts the segments of a slot's memory as an int, and waits for ever for more. */
  private static final long MOST_CACHE_BYTES =
      Integer.MAX_VALUE * TaskManagerOptions.MEMORY_SEGMENT_SIZE.defaultValue().getBytes()
          - SPARE_MANAGED_MEMORY.getBytes();

  /** Without these, state on the command's own cluster is on the heap, and gone with the job. */
  private static final List<ConfigOption<String>> STATE_IS_WANTED =
      List.of(
          StateBackendOptions.STATE_BACKEND,
          RestartStrategyOptions.RESTART_STRATEGY,
          CheckpointingOptions.CHECKPOINTS_DIRECTORY,
          CheckpointingOptions.SAVEPOINT_DIRECTORY,
          StateRecoveryOptions.SAVEPOINT_PATH);

  private final FlinkRun run;
  private final RunCommand options;
  private final Job job;
  private volatile boolean interrupted;
  private RunParts parts;

  /** Null before it was started. */
  private volatile EmbeddedCluster cluster;

  EmbeddedRun(FlinkRun run, RunCommand options, Job job) {
    this.run = run;
    this.options = options;
    this.job = job;
  }

  int execute() throws Exception {
    if (options.deviceResource != null) {
      throw options.usage("--device-resource: not on an embedded cluster; choose --device");
    }
    options.requireOption(
        options.parallelism == null || options.parallelism <= MOST_OPERATORS_HERE,
        "--parallelism",
        "1 to " + MOST_OPERATORS_HERE + " on an embedded cluster",
        options.parallelism);
    requireCountableCaches();
    Path input = localPath("--input", options.input);
    Path output = localPath("--output", options.output);
    Failure.requireReadable(input, "--input");
    if (options.watch && !Files.isDirectory(input)) {
      throw options.usage("--watch: expected --input to be a folder, got the file " + input);
    }
    if (!options.watch && StepInput.files(input).isEmpty()) {
      throw new WorkFailedException(input + ": expected step files, got an empty folder");
    }
    Path refused = localPath("--refused", run.refusedFolder());
    List<Path> inputs = List.of(input);
    OutputFolder.requireUsable("--output", output, inputs);
    OutputFolder.requireUsable("--refused", refused, inputs);
    OutputFolder.clearRefused(refused, options.written.overwrite, inputs);
    boolean madeOutput = OutputFolder.prepare(output, options.written.overwrite, inputs);
    parts = RunParts.fromNowOn(output, refused, madeOutput);
    Thread onInterrupt = new Thread(this::end, "broadhead-interrupt");
    Runtime.getRuntime().addShutdownHook(onInterrupt);
    boolean done = false;
    try {
      runHere(input, output, refused, System.nanoTime());
      done = true;
      return 0;
    } catch (Exception e) {
      if (interrupted) {
        return Main.FAILED;
      }
      throw e instanceof JobExecutionException failure && !options.watch
          ? new BadBatchSearch(options, job, run.shards(parallelism())).explained(failure, input)
          : e;
    } finally {
      removeHook(onInterrupt);
      if (!done) {
        parts.remove(run.isCheckpointed());
      }
    }
  }

  private void requireCountableCaches() throws WorkFailedException {
    long bytes = job.cacheBytes().orElse(0);
    if (bytes > MOST_CACHE_BYTES) {
      throw new WorkFailedException(
          options.job
              + ": kv_cache.num_blocks: expected caches of less than "
              + Units.bytes(MOST_CACHE_BYTES)
              + ", got "
              + job.kvCache().numBlocks()
              + " blocks of "
              + job.kvCache().blockSize()
              + " tokens, "
              + Units.bytes(bytes));
    }
  }

  @SuppressWarnings("try") // see EmbeddedCluster
  private void runHere(Path input, Path output, Path refused, long begun) throws Exception {
    int parallelism = parallelism();
    int threads = threadsOf(parallelism);
    Configuration configuration = EmbeddedCluster.defaults();
    configuration.set(TaskManagerOptions.MANAGED_MEMORY_SIZE, managedMemory(parallelism));
    Configuration given = run.jobConfiguration();
    configuration.addAll(given);
    configuration.set(PagedAttentionOptions.THREADS, threads);
    configuration.set(PagedAttentionOptions.SHARDS, run.shards(parallelism));
    if (options.state == null && STATE_IS_WANTED.stream().noneMatch(given::contains)) {
      configuration.set(PagedAttentionOptions.STATE, StateMode.NONE);
    }
    requireStateBackend(configuration);
    EngineInfo engine = engineInfo(threads);
    if (!options.written.quiet) {
      options.err().println(EngineLine.start(options.spec.name(), engine, job, parallelism));
    }
    try (RunMetrics metrics = RunMetrics.attachTo(configuration)) {
      StreamExecutionEnvironment env =
          StreamExecutionEnvironment.createLocalEnvironment(parallelism, configuration);
      run.pipeline(
              flinkPath(input), flinkPath(output), flinkPath(refused), parallelism, !options.watch)
          .addTo(env, configuration);
      StreamGraph graph = env.getStreamGraph();
      try (EmbeddedCluster started = new EmbeddedCluster(configuration, parallelism)) {
        cluster = started;
        await(graph, metrics, input);
      }
      if (metrics.sum(StepFileSource.BATCHES_READ) == 0) {
        throw new WorkFailedException(input + ": expected at least one record batch, got none");
      }
      if (!options.written.quiet) {
        options.out().println(summary(metrics, engine, begun).line());
      }
    }
  }

  /** Flink would name only a class that is not there, of a state backend or of the user's own. */
  private void requireStateBackend(Configuration configuration) throws Exception {
    try {
      StateBackendLoader.loadStateBackendFromConfig(
          configuration, EmbeddedRun.class.getClassLoader(), null);
    } catch (DynamicCodeLoadingException e) {
      throw new WorkFailedException(
          "-D "
              + StateBackendOptions.STATE_BACKEND.key()
              + ": expected "
              + StateBackendLoader.HASHMAP_STATE_BACKEND_NAME
              + ", as the embedded cluster has no other, got "
              + configuration.get(StateBackendOptions.STATE_BACKEND)
              + "; leave it out, or submit the job to a Flink cluster with that state backend",
          e);
    }
  }

  private void await(StreamGraph graph, RunMetrics metrics, Path input) throws Exception {
    if (interrupted) {
      return;
    }
    try (Progress progress = progress(input)) {
      cluster.submit(graph);
      Optional<JobResult> result = cluster.await(POLL_MILLIS);
      while (result.isEmpty()) {
        progress.update(
            metrics.sum(StepFileSource.BATCHES_READ),
            metrics.sum(PagedAttentionMetrics.QUERY_TOKENS));
        result = cluster.await(POLL_MILLIS);
      }
      result.get().toJobExecutionResult(EmbeddedRun.class.getClassLoader());
    }
  }

  /** Ends the job on Ctrl-C, which needs no message; what no checkpoint covers is removed. */
  @SuppressWarnings("try") // see EmbeddedCluster
  private void end() {
    interrupted = true;
    try {
      try (EmbeddedCluster running = cluster) {
        if (running != null) {
          running.cancel(Duration.ofSeconds(10).toMillis());
        }
      }
      parts.remove(run.isCheckpointed());
    } catch (Exception e) {
      options.err().println("broadhead run: " + Failure.describe(e));
    }
  }

  private static void removeHook(Thread hook) {
    try {
      Runtime.getRuntime().removeShutdownHook(hook);
    } catch (IllegalStateException e) {
      // The JVM is ending: the hook runs, and then is no more.
      return;
    }
  }

  private Progress progress(Path input) {
    boolean shown = !options.written.quiet && StatusLine.onTerminal();
    if (!shown || options.watch) {
      return new Progress(options.err(), shown, InputSize.UNKNOWN);
    }
    try (BufferAllocator allocator = Allocators.root()) {
      return new Progress(options.err(), true, InputSize.batches(input, allocator));
    }
  }

  private RunSummary summary(RunMetrics metrics, EngineInfo engine, long begun) {
    return new RunSummary(
        metrics.sum(StepFileSource.BATCHES_READ),
        metrics.sum(PagedAttentionMetrics.SEQUENCES),
        metrics.sum(ResultCounter.DISTINCT_SEQUENCES),
        metrics.sum(PagedAttentionMetrics.QUERY_TOKENS),
        metrics.sum(PagedAttentionMetrics.REFUSED_ROWS),
        metrics.sum(PagedAttentionMetrics.BYTES_COPIED),
        (System.nanoTime() - begun) / 1e9,
        engine.backend(),
        engine.tier(),
        engine.threads(),
        options.output);
  }

  private EngineInfo engineInfo(int threads) {
    try (KernelEngine engine =
        KernelEngine.open(new EngineConfig(options.backend, threads, options.device))) {
      return engine.info();
    }
  }

  private int parallelism() {
    return options.parallelism == null ? 1 : options.parallelism;
  }

  /** The cores are divided among the operators unless the user says otherwise. */
  private int threadsOf(int parallelism) {
    return options.threads > 0
        ? options.threads
        : Math.max(1, Runtime.getRuntime().availableProcessors() / parallelism);
  }

  /** What the operators declare for their KV caches, and a little for Flink. */
  private MemorySize managedMemory(int parallelism) {
    long mebibyte = 1 << 20;
    long cache = (job.cacheBytes().orElse(0) / mebibyte + 1) * mebibyte;
    return new MemorySize(Math.multiplyExact(cache, (long) parallelism)).add(SPARE_MANAGED_MEMORY);
  }

  /** A path, or a file: URI, which is how Flink's users write paths. */
  private static Path localPath(String option, String text) throws WorkFailedException {
    if (!text.contains(":/")) {
      return Path.of(text);
    }
    try {
      return Path.of(URI.create(text));
    } catch (IllegalArgumentException | FileSystemNotFoundException e) {
      throw new WorkFailedException(
          option + ": expected a path of this machine, got " + text + " (" + e.getMessage() + ")");
    }
  }

  private static org.apache.flink.core.fs.Path flinkPath(Path path) {
    return new org.apache.flink.core.fs.Path(path.toAbsolutePath().normalize().toUri());
  }
}
