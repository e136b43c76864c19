// SPDX-License-Identifier: Apache-2.0
package io.broadhead.cluster;

import io.broadhead.arrow.Allocators;
import io.broadhead.arrow.ArrowBatch;
import io.broadhead.arrow.ArrowBatchFileWriter;
import io.broadhead.arrow.Compression;
import io.broadhead.arrow.DType;
import io.broadhead.attention.job.Job;
import io.broadhead.attention.job.JobFile;
import io.broadhead.attention.job.LayerSpec;
import io.broadhead.attention.testing.ManagedRow;
import io.broadhead.attention.testing.Scenario;
import io.broadhead.attention.testing.StepBatches;
import io.broadhead.job.bench.LineChart;
import io.broadhead.job.bench.LineChart.Point;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Locale;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import org.apache.arrow.memory.BufferAllocator;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/**
 * Checkpoints of caches that grow, full ones and incremental ones, on a cluster with RocksDB. No
 * test: prints a table, and writes a plot to {@code target/checkpoints.svg}.
 *
 * <pre>./mvnw -Pcluster -pl flink-job/cluster -am verify -Dtest=CheckpointBenchmark \
 *     -Dsurefire.failIfNoSpecifiedTests=false</pre>
 */
class CheckpointBenchmark {
  private static final DType DTYPE = DType.FLOAT16;
  private static final int SEQUENCES = 64;
  private static final int CHUNK = 64;
  private static final int DECODED = 16;
  private static final int[] CONTEXTS = {64, 256, 1024, 2000};
  private static final double MEBIBYTE = 1 << 20;

  private static final String JOB =
      """
      kv_cache: {num_blocks: 9000, dtype: float16}
      layers:
        - {name: a, num_heads: 8, head_size: 64}
        - {name: b, num_heads: 8, head_size: 64}
        - {name: c, num_heads: 8, head_size: 64}
        - {name: d, num_heads: 8, head_size: 64}
      """;

  private final Job job = JobFile.parse(JOB, "job.yaml");
  private final Scenario scenario = new Scenario(job, DTYPE, 3);

  @TempDir private Path clusterFolder;
  @TempDir private Path folder;
  private int files;
  private int batches;

  private record Account(double bytes, double stateBytes, double millis) {
    static Account of(String json) {
      return new Account(
          number(json, "checkpointed_size"),
          number(json, "state_size"),
          number(json, "end_to_end_duration"));
    }

    private static double number(String json, String key) {
      Matcher matcher = Pattern.compile("\"" + key + "\":(\\d+)").matcher(json);
      if (!matcher.find()) {
        throw new IllegalStateException("expected " + key + " in " + json);
      }
      return Double.parseDouble(matcher.group(1));
    }
  }

  /** The next tokens of all sequences, in all layers. */
  private void feed(int queries, int keys) throws Exception {
    Path file = folder.resolve("next.arrow");
    try (BufferAllocator allocator = Allocators.root();
        ArrowBatchFileWriter writer =
            ArrowBatchFileWriter.create(file, Compression.NONE, allocator)) {
      for (LayerSpec layer : job.layers()) {
        List<ManagedRow> rows = new ArrayList<>();
        for (int s = 0; s < SEQUENCES; s++) {
          rows.add(ManagedRow.of(scenario.next("sequence-" + s, layer, queries, keys)));
        }
        try (ArrowBatch batch = StepBatches.managed(allocator, layer, DTYPE, true, rows)) {
          writer.write(batch);
          batches++;
        }
      }
      writer.finish();
    }
    Files.move(
        file,
        Files.createDirectories(folder.resolve("steps")).resolve("%06d.arrow".formatted(files++)));
  }

  @Test
  void checkpoints() throws Exception {
    Path jobFile = Files.writeString(folder.resolve("job.yaml"), JOB);
    double tokenBytes = job.layers().size() * 8 * 64 * 2 * DTYPE.byteWidth();
    List<Point> full = new ArrayList<>();
    List<Point> incremental = new ArrayList<>();
    System.out.println(
        "| cache, MiB | full: MiB | ms | new tokens, MiB | incremental: MiB | ms | incremental/new |");
    System.out.println("|---|---|---|---|---|---|---|");
    feed(0, CHUNK);
    try (Cluster cluster =
        new Cluster(
            clusterFolder,
            1,
            "taskmanager.memory.process.size=5g",
            "taskmanager.memory.managed.size=3g",
            "metrics.fetcher.update-interval=300")) {
      String running =
          cluster.submit(
              "run",
              "--job",
              jobFile,
              "--input",
              folder.resolve("steps"),
              "--output",
              folder.resolve("results"),
              "--parallelism",
              1,
              "--shards",
              1,
              "--watch",
              "--watch-interval",
              0.1,
              "--checkpoint-interval",
              100_000);
      int tokens = CHUNK;
      for (int context : CONTEXTS) {
        while (tokens < context) {
          int chunk = Math.min(CHUNK, context - tokens);
          feed(0, chunk);
          tokens += chunk;
        }
        cluster.awaitBatches(running, batches);
        Account first = Account.of(cluster.checkpoint(running, true));
        for (int i = 0; i < DECODED; i++, tokens++) {
          feed(1, 1);
        }
        cluster.awaitBatches(running, batches);
        Account second = Account.of(cluster.checkpoint(running, false));
        double cache = SEQUENCES * context * tokenBytes / MEBIBYTE;
        double fresh = SEQUENCES * DECODED * tokenBytes / MEBIBYTE;
        System.out.printf(
            Locale.ROOT,
            "| %.0f | %.1f | %.0f | %.1f | %.2f | %.0f | %.3f |%n",
            cache,
            first.bytes / MEBIBYTE,
            first.millis,
            fresh,
            second.bytes / MEBIBYTE,
            second.millis,
            second.bytes / MEBIBYTE / fresh);
        full.add(new Point(cache, first.bytes / MEBIBYTE));
        incremental.add(new Point(cache, second.bytes / MEBIBYTE));
      }
      cluster.cancelAll();
    }
    Files.writeString(
        Path.of("target", "checkpoints.svg"),
        new LineChart("Bytes of a checkpoint", "MiB in the cache", "MiB")
            .add("full", full)
            .add("incremental, after 16 tokens of each of 64 sequences", incremental)
            .svg());
  }
}
