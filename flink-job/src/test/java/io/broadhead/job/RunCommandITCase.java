// SPDX-License-Identifier: Apache-2.0
package io.broadhead.job;

import static org.assertj.core.api.Assertions.assertThat;

import io.broadhead.arrow.DType;
import io.broadhead.attention.testing.NoLeaks;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import java.util.Map;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.extension.ExtendWith;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;

@ExtendWith(NoLeaks.class)
class RunCommandITCase {
  private static final List<Steps.Layer> TWO_LAYERS =
      List.of(new Steps.Layer("a", 4, 2), new Steps.Layer("b", 4, 2));

  @TempDir Path temp;

  private Path job;
  private Path attended;
  private Path output;

  @BeforeEach
  void paths() {
    job = temp.resolve("job.yaml");
    attended = temp.resolve("attended.arrow");
    output = temp.resolve("results");
  }

  @Test
  void oneSubtaskGivesWhatAttendGivesWithoutCopying() {
    Steps steps = Steps.generate(1, DType.BFLOAT16, 32, 64, TWO_LAYERS, 6, 8);
    steps.writeJob(job);
    Path input = steps.writeFile(temp.resolve("steps.arrow"));
    Cli.attend(job, input, attended, "--threads", 1);

    Cli cli = Cli.command("run", job, input, output, "--threads", 1);

    assertThat(cli.code()).as(cli.err()).isZero();
    assertThat(cli.err().lines())
        .singleElement()
        .asString()
        .startsWith("broadhead run: backend cpu, tier ");
    assertThat(cli.out().lines())
        .singleElement()
        .asString()
        .startsWith("done: batches=" + steps.steps.size() + " rows=")
        .contains(
            " sequences=6 ",
            " tokens=" + steps.tokens() + " ",
            " refused_rows=0 ",
            " bytes_copied=0 ");
    assertThat(Results.files(output)).hasSize(1);
    assertThat(output.resolve(Results.files(output).get(0).getFileName())).exists();
    Map<Results.Key, Results.Row> rows = Results.read(attended);
    Results.assertSame(Results.read(output), rows);
    assertThat(Results.read(output).keySet()).containsExactlyElementsOf(rows.keySet());
  }

  @Test
  void shardsOnTwoSubtasksGiveTheSameRows() {
    Steps steps = Steps.generate(2, DType.FLOAT32, 16, 80, TWO_LAYERS, 9, 10);
    steps.writeJob(job);
    Path input = steps.writeFolder(temp.resolve("steps"));
    Cli.attend(job, input, attended);

    Cli cli = Cli.command("run", job, input, output, "--parallelism", 2, "--shards", 4);

    assertThat(cli.code()).as(cli.err()).isZero();
    assertThat(cli.out())
        .contains(
            "batches=" + steps.steps.size() + " ",
            " sequences=9 ",
            " tokens=" + steps.tokens() + " ");
    Results.assertClose(Results.read(output), Results.read(attended), 1e-6);
  }

  /** Whoever takes a batch from the network closes it: {@link NoLeaks} would find it. */
  @Test
  void nothingNeedsToBeChained() {
    Steps steps = Steps.generate(10, DType.FLOAT32, 16, 64, TWO_LAYERS, 6, 8);
    steps.writeJob(job);
    Path input = steps.writeFile(temp.resolve("steps.arrow"));

    Cli cli =
        Cli.run(
            job,
            input,
            output,
            "--parallelism",
            2,
            "-D",
            "pipeline.operator-chaining.enabled=false");

    assertThat(cli).isEqualTo(new Cli(0, "", ""));
    Results.assertClose(Results.read(output), Results.expected(steps), 1e-5);
  }

  @Test
  void layersOfDifferentShapesGoToFoldersOfTheirOwn() {
    List<Steps.Layer> layers = List.of(new Steps.Layer("a", 4, 2), new Steps.Layer("b", 2, 2));
    Steps steps = Steps.generate(3, DType.FLOAT32, 16, 64, layers, 3, 4);
    steps.writeJob(job);

    Cli cli = Cli.run(job, steps.writeFolder(temp.resolve("steps")), output);

    assertThat(cli).isEqualTo(new Cli(0, "", ""));
    assertThat(Results.files(output))
        .extracting(file -> output.relativize(file).getName(0).toString())
        .containsExactly("a", "b");
    Results.assertClose(Results.read(output), Results.expected(steps), 1e-5);
  }

  @Test
  void checkpointsCommitPartsWhoseNamesAreInOrder() {
    Steps steps = Steps.generate(4, DType.FLOAT32, 16, 64, TWO_LAYERS, 20, 60);
    steps.writeJob(job);
    Path input = steps.writeFile(temp.resolve("steps.arrow"));

    Cli cli = Cli.run(job, input, output, "--checkpoint-interval", 0.02);

    assertThat(cli).isEqualTo(new Cli(0, "", ""));
    Results.assertClose(Results.read(output), Results.expected(steps), 1e-5);
  }

  /** The caches are larger than what Flink takes into checkpoints that lie in memory. */
  @Test
  void checkpointsThatNobodyRestoresAreWithoutCaches() {
    List<Steps.Layer> layers = List.of(new Steps.Layer("a", 16, 16));
    Steps steps = Steps.generate(11, DType.FLOAT32, 16, 256, layers, 8, 24);
    steps.writeJob(job);
    Path input = steps.writeFile(temp.resolve("steps.arrow"));

    Cli cli = Cli.run(job, input, output, "--checkpoint-interval", 0.05);
    assertThat(cli).isEqualTo(new Cli(0, "", ""));
    Results.assertClose(Results.read(output), Results.expected(steps), 1e-5);

    String savepoints = "execution.checkpointing.savepoint-dir=" + temp.toUri();
    Cli full =
        Cli.run(job, input, output, "--overwrite", "--checkpoint-interval", 0.05, "-D", savepoints);
    assertThat(full.code()).isEqualTo(1);
    assertThat(full.err()).contains("checkpoint");
  }

  @Test
  void neverMixesTwoRuns() {
    Steps steps = Steps.small(5);
    steps.writeJob(job);
    Path input = steps.writeFile(temp.resolve("steps.arrow"));
    assertThat(Cli.run(job, input, output).code()).isZero();

    Cli refused = Cli.run(job, input, output);
    assertThat(refused.code()).isEqualTo(1);
    assertThat(refused.err()).contains("expected a folder without results, got 1 file");

    assertThat(Cli.run(job, input, output, "--overwrite").code()).isZero();
    Results.assertClose(Results.read(output), Results.expected(steps), 1e-5);
  }

  @Test
  void whatIsRefusedForOlderRefusedRowsMakesNoFolder() throws Exception {
    Steps steps = Steps.small(5);
    steps.writeJob(job);
    Path input = steps.writeFile(temp.resolve("steps.arrow"));
    Path refused = Files.createDirectory(temp.resolve("refused"));
    Files.createFile(refused.resolve("refused-1.jsonl"));

    Cli cli = Cli.run(job, input, output, "--refused", refused);

    assertThat(cli.code()).isEqualTo(1);
    assertThat(cli.err()).contains("--refused " + refused + ": expected a folder without results");
    assertThat(output).doesNotExist();
  }

  @Test
  void noRejectedRowIsDropped() throws Exception {
    Steps steps = Steps.small(9);
    steps.managed = true;
    steps.numBlocks = 5;
    steps.writeJob(job);
    Path input = steps.writeFile(temp.resolve("steps.arrow"));
    Path refused = temp.resolve("results-refused");
    long rows = steps.steps.stream().mapToLong(step -> step.rows().size()).sum();

    for (int run = 0; run < 2; run++) {
      Cli cli = Cli.run(job, input, output, "--out-of-blocks=reject", "--overwrite");
      assertThat(cli).isEqualTo(new Cli(0, "", ""));
      assertThat(Results.files(refused)).hasSize(1);
      List<String> lines = Files.readAllLines(Results.files(refused).get(0));
      assertThat(lines).anyMatch(line -> line.contains("\"code\": \"OUT_OF_BLOCKS\""));
      assertThat(Results.read(output)).hasSize((int) rows - lines.size());
    }

    Results.files(output).forEach(result -> assertThat(result.toFile().delete()).isTrue());
    assertThat(Cli.run(job, input, output, "--out-of-blocks=reject").err())
        .contains("--refused " + refused + ": expected a folder without results, got 1 file");
  }

  @Test
  void badRowsGoToAFolderOfTheirOwn() throws Exception {
    Steps steps = Steps.small(6);
    Steps.Step last = steps.steps.get(steps.steps.size() - 1);
    last.rows().get(0).table[0] = -5;
    String sequence = last.rows().get(0).id;
    steps.writeJob(job);
    Path input = steps.writeFile(temp.resolve("steps.arrow"));

    Cli cli = Cli.command("run", job, input, output, "--on-bad-row", "side-output");

    assertThat(cli.code()).as(cli.err()).isZero();
    assertThat(cli.out()).contains(" refused_rows=1 ");
    List<Path> refused = Results.files(temp.resolve("results-refused"));
    assertThat(refused).hasSize(1);
    assertThat(Files.readAllLines(refused.get(0)))
        .singleElement()
        .asString()
        .contains("\"row\": 0,", "\"sequence_id\": \"" + sequence + "\"", "block_table");
    last.rows().remove(0);
    Results.assertClose(Results.read(output), Results.expected(steps), 1e-5);
  }

  @Test
  void foldersThatCannotBeMadeAreNamedBeforeTheWork() throws Exception {
    Steps steps = Steps.small(6);
    steps.writeJob(job);
    Path folder = steps.writeFolder(temp.resolve("steps"));
    Path file = Files.createFile(temp.resolve("file"));

    for (String option : List.of("--output", "--refused")) {
      for (Path path : List.of(file, file.resolve("below"))) {
        Cli cli = run(folder, option, path);
        assertThat(cli.code()).isEqualTo(1);
        assertThat(cli.err())
            .contains(option + " " + path + ": expected a folder, got the file " + file);
        assertThat(output).doesNotExist();
      }
      Cli cli = run(folder, option, folder);
      assertThat(cli.code()).isEqualTo(1);
      assertThat(cli.err())
          .contains(option + " " + folder + ": expected a folder other than that of the input");
    }
  }

  private Cli run(Path input, String option, Path path) {
    return option.equals("--output")
        ? Cli.run(job, input, path)
        : Cli.run(job, input, output, option, path);
  }

  @Test
  void whatAnEmbeddedClusterCannotHoldIsRefused() throws Exception {
    Steps steps = Steps.small(6);
    steps.writeJob(job);
    Path input = steps.writeFile(temp.resolve("steps.arrow"));

    Cli operators = Cli.run(job, input, output, "--parallelism", 513);
    assertThat(operators.code()).isEqualTo(2);
    assertThat(operators.err())
        .contains("--parallelism: expected 1 to 512 on an embedded cluster, got 513");

    Files.writeString(
        job,
        steps
            .job()
            .replaceAll("num_blocks: \\d+}", "num_blocks: 2147483647, dtype: float32}")
            .replaceAll("block_size: \\d+", "block_size: 1048576"));
    Cli cache = Cli.run(job, input, output);
    assertThat(cache.code()).isEqualTo(1);
    assertThat(cache.err())
        .contains(
            job + ": kv_cache.num_blocks: expected caches of less than 64.0 TiB, got 2147483647",
            " blocks of 1048576 tokens, ",
            " PiB");
    assertThat(output).doesNotExist();
  }

  @Test
  void declaresTheCachesOfAllOperators() throws Exception {
    Steps steps = Steps.generate(7, DType.FLOAT32, 16, 64, TWO_LAYERS, 4, 4);
    Files.writeString(
        job,
        steps
            .job()
            .replace("num_blocks: " + steps.numBlocks + "}", "num_blocks: 8192, dtype: float32}"));
    Path input = steps.writeFile(temp.resolve("steps.arrow"));

    Cli cli = Cli.command("run", job, input, output, "--parallelism", 2);

    assertThat(cli.code()).as(cli.err()).isZero();
    assertThat(cli.err()).contains("KV cache 512.0 MiB, 8192 blocks of 16 tokens");
    Results.assertClose(Results.read(output), Results.expected(steps), 1e-5);
  }

  @Test
  void flinkOptionsPassThrough() {
    Steps steps = Steps.small(8);
    steps.writeJob(job);
    Path input = steps.writeFile(temp.resolve("steps.arrow"));

    Cli cli = Cli.run(job, input, output, "-D", "taskmanager.memory.managed.size=nonsense");

    assertThat(cli.code()).isEqualTo(1);
    assertThat(cli.err()).contains("nonsense");
    assertThat(output).doesNotExist();
  }

  @ParameterizedTest
  @ValueSource(strings = {"forst", "org.example.Missing"}) // the tests have RocksDB
  void aStateBackendThatIsNotThereIsNamedWithItsKey(String backend) {
    Steps steps = Steps.small(8);
    steps.writeJob(job);
    Path input = steps.writeFile(temp.resolve("steps.arrow"));

    Cli cli = Cli.run(job, input, output, "-D", "state.backend.type=" + backend);

    assertThat(cli.code()).isEqualTo(1);
    assertThat(cli.err())
        .startsWith(
            "broadhead run: -D state.backend.type: expected hashmap, as the embedded cluster has no"
                + " other, got "
                + backend
                + "; leave it out, or submit the job to a Flink cluster with that state backend");
    assertThat(output).doesNotExist();
  }

  @Test
  void inputAndOutputMayBeFileUris() {
    Steps steps = Steps.small(9);
    steps.writeJob(job);
    Path input = steps.writeFile(temp.resolve("steps.arrow"));

    Cli cli =
        Cli.run("run", "-q", "--job", job, "--input", input.toUri(), "--output", output.toUri());

    assertThat(cli).isEqualTo(new Cli(0, "", ""));
    Results.assertClose(Results.read(output), Results.expected(steps), 1e-5);
  }
}
