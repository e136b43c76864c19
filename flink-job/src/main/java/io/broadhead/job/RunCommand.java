// SPDX-License-Identifier: Apache-2.0
package io.broadhead.job;

import io.broadhead.attention.job.Job;
import io.broadhead.attention.job.JobFile;
import io.broadhead.flink.OnBadRow;
import io.broadhead.flink.StateMode;
import java.nio.file.Path;
import java.time.Duration;
import java.util.LinkedHashMap;
import java.util.Map;
import picocli.CommandLine.Command;
import picocli.CommandLine.Mixin;
import picocli.CommandLine.Option;

/** {@code broadhead run}: the Flink job, on an embedded cluster or on the one it is given. */
@Command(
    name = "run",
    mixinStandardHelpOptions = true,
    sortOptions = false,
    description = {
      "Compute attention for step batches in a Flink job. Started with java -jar, it"
          + " starts an embedded cluster; started by Flink (flink run broadhead-job.jar run"
          + " ...), it uses Flink's cluster.",
      "Steps of one sequence keep their order: one reader reads the files by name and batch, and"
          + " all steps of a sequence go through the same operator."
    },
    footerHeading = "%nExamples:%n",
    footer = {
      "  broadhead run --job job.yaml --input steps.arrow --output results/",
      "  broadhead run --job job.yaml --input steps/ --output results/ \\",
      "      --parallelism 2 --shards 4",
      "  broadhead run --job job.yaml --input incoming/ --output results/ --watch",
      "  broadhead run --job job.yaml --input steps/ --output results/ \\",
      "      -D pipeline.name=nightly",
    })
final class RunCommand extends EngineCommand {
  /** Flink's highest parallelism; by value, because help loads no class of Flink. */
  static final int MOST_SHARDS = 1 << 15;

  /** Flink's shortest time between checkpoints. */
  private static final double LEAST_SECONDS = 0.01;

  /** Flink's timers count milliseconds. */
  private static final double LEAST_DELAY_SECONDS = 0.001;

  private static final String A_NUMBER_OF_SECONDS = "a number of seconds from 0.01 on";

  @Option(
      names = "--job",
      required = true,
      paramLabel = "FILE",
      description = "Job file: the layers and their KV cache.")
  Path job;

  @Option(
      names = "--input",
      required = true,
      paramLabel = "PATH",
      description =
          "Step batches: an Arrow IPC file, an IPC stream, or a folder of them, read in the"
              + " order of their names. Files in a folder whose names begin with . or _ or"
              + " contain .tmp- are not read. On a cluster: any absolute path or URI that its"
              + " file systems support.")
  String input;

  @Option(
      names = "--output",
      required = true,
      paramLabel = "DIR",
      description =
          "Folder for the results, complete Arrow IPC files. If the layers' results have"
              + " different shapes, each layer has its own sub-folder. Results with a further"
              + " schema, for example another element type, go to the sub-folder schema-02 or"
              + " LAYER_schema-02, and so on.")
  String output;

  @Mixin ResultOptions written;

  @Option(
      names = "--parallelism",
      paramLabel = "N",
      description =
          "Parallel attention operators, at most 512 on the embedded cluster. Default: 1"
              + " there, else the cluster's own default.")
  Integer parallelism;

  @Option(
      names = "--shards",
      paramLabel = "N",
      description =
          "Number of shards that sequences are divided into, at least one per operator."
              + " Each operator has its own block pool, so sequences that share blocks must be in"
              + " one shard. Default: 1 with parallelism 1, else 4 per operator.")
  Integer shards;

  @Option(
      names = "--watch",
      description =
          "Keep looking for new files in the input folder; the job never ends by itself. A"
              + " file must get its name only when it is complete.")
  boolean watch;

  @Option(
      names = "--watch-interval",
      paramLabel = "SECONDS",
      defaultValue = "1",
      description = "How often to look. Default: ${DEFAULT-VALUE}.")
  double watchInterval;

  @Option(
      names = "--checkpoint-interval",
      paramLabel = "SECONDS",
      description =
          "Time between checkpoints. Each checkpoint makes the results so far visible."
              + " Default: 10 with --watch; else no checkpoints, and all results become visible"
              + " at the end.")
  Double checkpointInterval;

  @Option(
      names = "--state",
      paramLabel = "WHAT",
      description =
          "What checkpoints and savepoints hold of the KV caches: full, metadata (which"
              + " sequences exist) or none. Default: full; on the embedded cluster none, unless a"
              + " -D configures state, checkpoints or restarts.")
  StateMode state;

  @Option(
      names = "--batch-max-tokens",
      paramLabel = "N",
      defaultValue = "0",
      description =
          "Join small batches to steps of up to N new tokens, and compute longer prompts in"
              + " pieces. Default: each batch is one step.")
  int batchMaxTokens;

  @Option(
      names = "--batch-max-delay",
      paramLabel = "SECONDS",
      defaultValue = "0",
      description =
          "With --batch-max-tokens: how long a batch waits for others to join it."
              + " Default: ${DEFAULT-VALUE}.")
  double batchMaxDelay;

  @Option(
      names = "--device-resource",
      paramLabel = "NAME",
      description =
          "On a cluster: name of the Flink external resource, such as gpu, that provides"
              + " the device, in place of --device.")
  String deviceResource;

  @Option(
      names = "--on-bad-row",
      paramLabel = "POLICY",
      defaultValue = "fail",
      description =
          "What to do with a bad row. fail: end the job; side-output: leave the row out and"
              + " write it to --refused. Default: ${DEFAULT-VALUE}.")
  OnBadRow onBadRow;

  @Mixin BlockPoolOptions pool;

  @Option(
      names = "--refused",
      paramLabel = "DIR",
      description =
          "Folder for the rows that were left out, as JSON lines. Default: the output"
              + " folder's name plus -refused.")
  String refused;

  @Option(
      names = "-D",
      paramLabel = "KEY=VALUE",
      description = "A Flink configuration option; repeatable.")
  Map<String, String> configuration = new LinkedHashMap<>();

  @Override
  int executeOnEngine() throws Exception {
    requireOption(
        parallelism == null || parallelism >= 1 && parallelism <= MOST_SHARDS,
        "--parallelism",
        "1 to " + MOST_SHARDS,
        parallelism);
    int operators = parallelism == null ? 1 : parallelism;
    requireOption(
        shards == null || shards >= operators && shards <= MOST_SHARDS,
        "--shards",
        operators + " to " + MOST_SHARDS + ", at least one for each parallel operator",
        shards);
    requireOption(
        watchInterval >= LEAST_SECONDS, "--watch-interval", A_NUMBER_OF_SECONDS, watchInterval);
    requireOption(
        checkpointInterval == null || checkpointInterval >= LEAST_SECONDS,
        "--checkpoint-interval",
        A_NUMBER_OF_SECONDS,
        checkpointInterval);
    requireOption(batchMaxTokens >= 0, "--batch-max-tokens", "0 or more", batchMaxTokens);
    requireOption(
        batchMaxDelay == 0 || batchMaxDelay >= LEAST_DELAY_SECONDS && batchMaxTokens > 0,
        "--batch-max-delay",
        "0 or a number of seconds from 0.001 on, with --batch-max-tokens only",
        batchMaxDelay);
    for (String key : configuration.keySet()) {
      requireOption(
          !key.startsWith("broadhead."), "-D", "a Flink option (broadhead.* are --options)", key);
    }
    Failure.requireFile(job, "--job");
    Job loaded = JobFile.load(job);
    return new FlinkRun(this, loaded).execute();
  }

  static Duration seconds(double value) {
    return Duration.ofNanos(Math.round(value * 1e9));
  }
}
