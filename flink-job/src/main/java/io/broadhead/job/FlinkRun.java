// SPDX-License-Identifier: Apache-2.0
package io.broadhead.job;

import io.broadhead.attention.job.Job;
import io.broadhead.flink.PagedAttentionOptions;
import io.broadhead.job.source.StepFileSource;
import java.io.FileNotFoundException;
import java.io.IOException;
import java.time.Duration;
import org.apache.flink.api.common.RuntimeExecutionMode;
import org.apache.flink.client.deployment.application.executors.EmbeddedExecutor;
import org.apache.flink.configuration.CheckpointingOptions;
import org.apache.flink.configuration.Configuration;
import org.apache.flink.configuration.DeploymentOptions;
import org.apache.flink.configuration.ExecutionOptions;
import org.apache.flink.configuration.PipelineOptions;
import org.apache.flink.configuration.ReadableConfig;
import org.apache.flink.core.fs.FileSystem;
import org.apache.flink.core.fs.Path;
import org.apache.flink.streaming.api.environment.LocalStreamEnvironment;
import org.apache.flink.streaming.api.environment.StreamExecutionEnvironment;

/**
 * Carries out {@link RunCommand}. Apart from the command, so that looking at the command's options
 * loads no class of Flink.
 */
final class FlinkRun {
  private static final int SHARDS_PER_SUBTASK = 4;
  private static final Duration WATCH_CHECKPOINTS = Duration.ofSeconds(10);

  // By name: the command's own cluster has no RocksDB.
  private static final String ROCKSDB_OPTIONS_FACTORY = "state.backend.rocksdb.options-factory";
  private static final String ROCKSDB_OPTIONS = "io.broadhead.flink.KvCacheRocksDBOptions";

  private final RunCommand options;
  private final Job job;

  FlinkRun(RunCommand options, Job job) {
    this.options = options;
    this.job = job;
  }

  int execute() throws Exception {
    StreamExecutionEnvironment given = StreamExecutionEnvironment.getExecutionEnvironment();
    return given instanceof LocalStreamEnvironment
        ? new EmbeddedRun(this, options, job).execute()
        : executeOn(given);
  }

  /** Submits the job to a cluster that exists. */
  private int executeOn(StreamExecutionEnvironment env) throws Exception {
    if (options.written.overwrite) {
      throw options.usage("--overwrite: not on a cluster; choose another --output");
    }
    Path input = absolute("--input", options.input);
    Path output = absolute("--output", options.output);
    Path refused = absolute("--refused", refusedFolder());
    requireOther("--output", output, input);
    requireOther("--refused", refused, input);
    requireInput(input, env.getConfiguration());
    Configuration configuration = jobConfiguration();
    configuration.set(PagedAttentionOptions.THREADS, options.threads);
    env.configure(configuration);
    int parallelism = options.parallelism == null ? env.getParallelism() : options.parallelism;
    configuration.set(PagedAttentionOptions.SHARDS, shards(parallelism));
    pipeline(input, output, refused, parallelism, false).addTo(env, configuration);
    env.execute();
    return 0;
  }

  /** Each process of a cluster has a working folder of its own. */
  private Path absolute(String option, String text) {
    Path path = new Path(text);
    options.requireOption(
        path.isAbsolute(), option, "an absolute path or a URI on a cluster", text);
    return path;
  }

  private void requireOther(String option, Path written, Path input) {
    options.requireOption(
        !written.equals(input), option, "a folder other than that of the input", written);
  }

  /**
   * Refuses an input in which the JobManager would find nothing to read. A client of another
   * machine knows that of a shared file system only; of other paths it tells what it sees itself.
   */
  private void requireInput(Path input, ReadableConfig client) throws WorkFailedException {
    boolean asTheJobManager = EmbeddedExecutor.NAME.equals(client.get(DeploymentOptions.TARGET));
    boolean shared = false;
    String problem;
    try {
      FileSystem files = input.getFileSystem();
      shared = files.isDistributedFS();
      problem = problemWith(input, files.getFileStatus(input).isDir());
    } catch (FileNotFoundException e) {
      problem = "no such file or folder";
    } catch (IOException e) {
      shared = false; // perhaps it is only this process that may not read there
      problem = Failure.describe(e);
    }
    if (problem.isEmpty()) {
      return;
    }
    String message = "--input " + options.input + ": " + problem;
    if (asTheJobManager || shared) {
      throw new WorkFailedException(message);
    }
    options
        .err()
        .println("broadhead run: " + message + " as seen from here; the JobManager must find it");
  }

  /** Empty if there is none. */
  private String problemWith(Path input, boolean folder) throws IOException {
    if (options.watch) {
      return folder ? "" : "expected a folder with --watch, got a file";
    }
    return StepFileSource.isEmpty(input) ? "expected step files, got an empty folder" : "";
  }

  /** Flink's options and the operator's, without those that depend on the cluster. */
  Configuration jobConfiguration() {
    Configuration configuration = new Configuration();
    configuration.set(PipelineOptions.NAME, "broadhead");
    configuration.set(PipelineOptions.GENERIC_TYPES, false);
    configuration.set(PipelineOptions.OBJECT_REUSE, true);
    configuration.set(ExecutionOptions.RUNTIME_MODE, RuntimeExecutionMode.STREAMING);
    if (isCheckpointed()) {
      configuration.set(
          CheckpointingOptions.CHECKPOINTING_INTERVAL,
          options.checkpointInterval == null
              ? WATCH_CHECKPOINTS
              : RunCommand.seconds(options.checkpointInterval));
    }
    configuration.set(PagedAttentionOptions.BACKEND, options.backend);
    configuration.set(PagedAttentionOptions.DEVICE, options.device);
    if (options.deviceResource != null) {
      configuration.set(PagedAttentionOptions.DEVICE_RESOURCE, options.deviceResource);
    }
    configuration.set(PagedAttentionOptions.OUT_OF_BLOCKS, options.pool.outOfBlocks);
    if (options.state != null) {
      configuration.set(PagedAttentionOptions.STATE, options.state);
    }
    configuration.setString(ROCKSDB_OPTIONS_FACTORY, ROCKSDB_OPTIONS);
    configuration.set(PagedAttentionOptions.BATCH_MAX_TOKENS, options.batchMaxTokens);
    configuration.set(
        PagedAttentionOptions.BATCH_MAX_DELAY, RunCommand.seconds(options.batchMaxDelay));
    configuration.set(PagedAttentionOptions.ON_BAD_ROW, options.onBadRow);
    options.configuration.forEach(configuration::setString);
    return configuration;
  }

  AttentionPipeline pipeline(
      Path input, Path output, Path refused, int parallelism, boolean countSequences) {
    return new AttentionPipeline(
        job,
        options.watch
            ? StepFileSource.watching(input, RunCommand.seconds(options.watchInterval))
            : StepFileSource.bounded(input),
        output,
        refused,
        options.written.compression,
        parallelism,
        countSequences);
  }

  boolean isCheckpointed() {
    return options.checkpointInterval != null || options.watch;
  }

  int shards(int parallelism) {
    if (options.shards != null) {
      return options.shards;
    }
    return parallelism == 1
        ? 1
        : Math.min(SHARDS_PER_SUBTASK * parallelism, RunCommand.MOST_SHARDS);
  }

  String refusedFolder() {
    return options.refused != null
        ? options.refused
        : options.output.replaceAll("/+$", "") + "-refused";
  }
}
