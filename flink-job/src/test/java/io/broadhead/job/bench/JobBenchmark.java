// SPDX-License-Identifier: Apache-2.0
package io.broadhead.job.bench;

import static org.assertj.core.api.Assertions.assertThat;

import io.broadhead.arrow.Allocators;
import io.broadhead.arrow.ArrowBatch;
import io.broadhead.arrow.ArrowBatchFileWriter;
import io.broadhead.arrow.BatchRows;
import io.broadhead.arrow.Compression;
import io.broadhead.arrow.DType;
import io.broadhead.attention.AttentionConfig;
import io.broadhead.attention.PagedAttention;
import io.broadhead.attention.StepQueue;
import io.broadhead.attention.job.JobFile;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collections;
import java.util.List;
import java.util.Locale;
import java.util.Random;
import java.util.stream.IntStream;
import org.apache.arrow.memory.BufferAllocator;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.MethodSource;

/**
 * What Flink costs: {@code broadhead run} beside {@code broadhead attend} on the same files, as
 * they are packaged. Each is run with few and with many files of steps in turn; the difference is
 * the time of the steps alone, without the start of JVM and cluster. No test: prints a table.
 *
 * <pre>./mvnw -pl flink-job -am package -DskipTests
 * ./mvnw -pl flink-job -am test -Dtest=JobBenchmark -Dsurefire.failIfNoSpecifiedTests=false</pre>
 */
class JobBenchmark {
  private static final Path JAR = Path.of("target", "broadhead.jar").toAbsolutePath();
  private static final int ROUNDS = Integer.getInteger("broadhead.rounds", 3);
  private static final String ONLY = System.getProperty("broadhead.only", "");
  private static final int BLOCK = 16;
  private static final Heads LLAMA = new Heads("llama-3-8b", 32, 8, 128);

  /** As on one of four devices that share the heads. */
  private static final Heads LLAMA_QUARTER = new Heads("llama-3-8b / 4", 8, 2, 128);

  private static final Heads SMALL = new Heads("minilm", 12, 12, 32);

  /**
   * One measurement.
   *
   * @param steps of a file
   * @param few files of the short run; small steps need as many as keep the JIT compiler busy
   * @param many files of the long run
   * @param apart whether each row of a step is a batch
   */
  private record Scene(
      String name, Heads heads, Rows rows, int steps, int few, int many, boolean apart) {
    Scene(String name, Heads heads, Rows rows, int steps, int few, int many) {
      this(name, heads, rows, steps, few, many, false);
    }

    StepShape shape() {
      return new StepShape(heads, DType.FLOAT16, DType.FLOAT16, BLOCK, List.of(rows), true, false);
    }
  }

  private static final List<Scene> SCENES =
      List.of(
          new Scene("decode", LLAMA_QUARTER, new Rows(64, 1, 4096), 5, 1, 21),
          new Scene("prefill", LLAMA, new Rows(1, 1024, 1024), 5, 1, 9),
          new Scene("small", SMALL, new Rows(64, 1, 16), 1_500, 10, 30),
          new Scene("smallest", SMALL, new Rows(1, 1, 16), 40_000, 10, 30));

  @TempDir private Path folder;

  /** A folder of step files. */
  private Path write(Scene scene, int files, BufferAllocator allocator) throws IOException {
    Path input = folder.resolve(scene.name() + "-" + files);
    Files.createDirectories(input);
    StepShape shape = scene.shape();
    NormalValues values = new NormalValues(shape.dtype(), 1);
    int[] blocks = blocks((int) shape.blocks());
    if (scene.rows().context() > scene.rows().tokens()) {
      fill(input.resolve("0-context.arrow"), scene, blocks, values, allocator);
    }
    try (ArrowBatch batch = RandomStepBatch.build(shape, blocks, values, allocator);
        ArrowBatchFileWriter writer =
            ArrowBatchFileWriter.create(
                input.resolve("1-steps.arrow"), Compression.NONE, allocator)) {
      List<ArrowBatch> batches = scene.apart() ? rows(batch, allocator) : List.of(batch.retain());
      for (int i = 0; i < scene.steps(); i++) {
        for (ArrowBatch each : batches) {
          writer.write(each);
        }
      }
      batches.forEach(ArrowBatch::close);
      writer.finish();
    }
    for (int i = 1; i < files; i++) {
      Files.createLink(input.resolve("1-steps-" + i + ".arrow"), input.resolve("1-steps.arrow"));
    }
    return input;
  }

  /** Each row as a batch; the caller closes them. */
  private static List<ArrowBatch> rows(ArrowBatch whole, BufferAllocator allocator) {
    return IntStream.range(0, whole.numRows())
        .mapToObj(row -> BatchRows.take(whole, new int[] {row}, allocator))
        .toList();
  }

  /** Every sequence's context, so that no step reads memory that was never written. */
  private static void fill(
      Path file, Scene scene, int[] blocks, NormalValues values, BufferAllocator allocator)
      throws IOException {
    Rows context = new Rows(1, scene.rows().context(), scene.rows().context());
    StepShape shape = scene.shape().withRows(List.of(context)).withoutQueries();
    int each = (int) shape.blocks();
    try (ArrowBatchFileWriter writer =
        ArrowBatchFileWriter.create(file, Compression.NONE, allocator)) {
      for (int from = 0; from < blocks.length; from += each) {
        int[] own = Arrays.copyOfRange(blocks, from, from + each);
        try (ArrowBatch batch = RandomStepBatch.build(shape, own, values, allocator)) {
          writer.write(batch);
        }
      }
      writer.finish();
    }
  }

  private static int[] blocks(int count) {
    List<Integer> blocks = new ArrayList<>(IntStream.range(0, count).boxed().toList());
    Collections.shuffle(blocks, new Random(1));
    return blocks.stream().mapToInt(Integer::intValue).toArray();
  }

  private static String jobFile(StepShape shape) {
    Heads heads = shape.heads();
    return """
        kv_cache: {block_size: %d, num_blocks: %d, dtype: float16}
        layers: [{name: layer.0, num_heads: %d, num_kv_heads: %d, head_size: %d}]
        """
        .formatted(BLOCK, shape.blocks(), heads.numHeads(), heads.numKvHeads(), heads.headSize());
  }

  private double seconds(String... arguments) throws Exception {
    List<String> command =
        new ArrayList<>(
            List.of(
                Path.of(System.getProperty("java.home"), "bin", "java").toString(),
                "-jar",
                JAR.toString()));
    command.addAll(List.of(arguments));
    Path log = folder.resolve("log");
    long start = System.nanoTime();
    int code =
        new ProcessBuilder(command)
            .redirectErrorStream(true)
            .redirectOutput(log.toFile())
            .start()
            .waitFor();
    double seconds = (System.nanoTime() - start) / 1e9;
    assertThat(code).as(Files.readString(log)).isZero();
    return seconds;
  }

  private static double median(List<Double> values) {
    double[] sorted = values.stream().mapToDouble(Double::doubleValue).sorted().toArray();
    return (sorted[(sorted.length - 1) / 2] + sorted[sorted.length / 2]) / 2;
  }

  /** Microseconds of a step of each command, the option that says where results go left out. */
  private double[] measure(Scene scene, List<List<String>> commands) throws Exception {
    Path job = Files.writeString(folder.resolve("job.yaml"), jobFile(scene.shape()));
    Path few;
    Path many;
    try (BufferAllocator allocator = Allocators.root()) {
      few = write(scene, scene.few(), allocator);
      many = write(scene, scene.many(), allocator);
    }
    List<List<Double>> times = new ArrayList<>();
    commands.forEach(command -> times.add(new ArrayList<>()));
    for (int round = 0; round < ROUNDS; round++) {
      for (int i = 0; i < commands.size(); i++) {
        double shortRun = seconds(with(commands.get(i), job, few));
        double longRun = seconds(with(commands.get(i), job, many));
        times
            .get(i)
            .add((longRun - shortRun) / (scene.steps() * (scene.many() - scene.few())) * 1e6);
      }
    }
    System.out.println("every round, µs a step: " + times);
    return times.stream().mapToDouble(JobBenchmark::median).toArray();
  }

  private String[] with(List<String> command, Path job, Path input) {
    List<String> all = new ArrayList<>(command);
    String output = command.get(0).equals("attend") ? "out.arrow" : "results";
    all.addAll(List.of("--overwrite", "--output", folder.resolve(output).toString()));
    all.addAll(List.of("--quiet", "--job", job.toString(), "--input", input.toString()));
    return all.toArray(String[]::new);
  }

  @Test
  void theJobBesideAttend() throws Exception {
    System.out.println("| steps | attend, µs a step | run, chained | run, network edge |");
    System.out.println("|---|---|---|---|");
    for (Scene scene : SCENES) {
      if (!scene.name().contains(ONLY)) {
        continue;
      }
      double[] micros =
          measure(
              scene, List.of(List.of("attend"), List.of("run"), List.of("run", "--shards", "2")));
      System.out.printf(
          Locale.ROOT,
          "| %s: %dx%d@%d | %.1f | %.1f (%.2f of attend's speed, %+.1f µs) | %.1f (%.2f) |%n",
          scene.name(),
          scene.rows().count(),
          scene.rows().tokens(),
          scene.rows().context(),
          micros[0],
          micros[1],
          micros[0] / micros[1],
          micros[1] - micros[0],
          micros[2],
          micros[0] / micros[2]);
    }
  }

  /** Sixty-four batches of one row: one step each, and joined to one step. */
  @ParameterizedTest
  @MethodSource
  void joinedBatches(Heads heads) {
    StepShape shape =
        new StepShape(
            heads, DType.FLOAT16, DType.FLOAT16, BLOCK, List.of(new Rows(64, 1, 512)), true, false);
    try (BufferAllocator allocator = Allocators.root();
        ArrowBatch whole =
            RandomStepBatch.build(
                shape,
                blocks((int) shape.blocks()),
                new NormalValues(DType.FLOAT16, 1),
                allocator);
        PagedAttention attention =
            PagedAttention.open(
                JobFile.parse(jobFile(shape), "job.yaml"), AttentionConfig.auto(), allocator)) {
      List<ArrowBatch> rows = rows(whole, allocator);
      List<Double> apart = new ArrayList<>();
      List<Double> joined = new ArrayList<>();
      for (int round = 0; round < 60; round++) {
        apart.add(micros(attention, rows, 0));
        joined.add(micros(attention, rows, 64));
      }
      rows.forEach(ArrowBatch::close);
      System.out.printf(
          Locale.ROOT,
          "64 batches of 1x1@512, %s: %.0f µs as steps of their own, %.0f µs joined: %.1f times%n",
          heads.name(),
          median(apart),
          median(joined),
          median(apart) / median(joined));
    }
  }

  /** The same in a job. */
  @ParameterizedTest
  @MethodSource("joinedBatches")
  void joinedBatchesInAJob(Heads heads) throws Exception {
    int steps = heads.numHeads() > 16 ? 40 : 200;
    Scene scene = new Scene("joined", heads, new Rows(64, 1, 512), steps, 10, 40, true);
    List<String> joined = List.of("run", "--batch-max-tokens", "64", "--batch-max-delay", "1");
    double[] micros = measure(scene, List.of(List.of("run"), joined));
    System.out.printf(
        Locale.ROOT,
        "64 batches of 1x1@512 in a job, %s: %.0f µs as steps of their own, %.0f µs joined: %.1f"
            + " times%n",
        heads.name(),
        micros[0],
        micros[1],
        micros[0] / micros[1]);
  }

  static List<Heads> joinedBatches() {
    return List.of(LLAMA, SMALL, new Heads("one KV head", 4, 1, 64));
  }

  private static double micros(PagedAttention attention, List<ArrowBatch> rows, int maxTokens) {
    try (StepQueue queue = attention.queue(maxTokens)) {
      long start = System.nanoTime();
      for (ArrowBatch row : rows) {
        queue.add(row, StepWorkload.CLOSING);
        if (maxTokens == 0) {
          queue.drain();
        }
      }
      queue.drain();
      return (System.nanoTime() - start) / 1e3;
    }
  }
}
