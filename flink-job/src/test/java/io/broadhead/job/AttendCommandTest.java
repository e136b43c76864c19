// SPDX-License-Identifier: Apache-2.0
package io.broadhead.job;

import static org.assertj.core.api.Assertions.assertThat;

import io.broadhead.arrow.Compression;
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
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.EnumSource;

@ExtendWith(NoLeaks.class)
class AttendCommandTest {
  @TempDir Path temp;

  private Path job;
  private Path output;

  @BeforeEach
  void paths() {
    job = temp.resolve("job.yaml");
    output = temp.resolve("out.arrow");
  }

  @ParameterizedTest
  @CsvSource({
    "FLOAT32, 16, 64, 2, 1, 1e-5",
    "FLOAT32, 544, 80, 1, 8, 1e-5",
    "FLOAT16, 32, 128, 2, 4, 2e-3",
    "BFLOAT16, 16, 80, 2, 4, 1.6e-2",
  })
  void resultsAreRight(
      DType dtype, int blockSize, int headSize, int kvHeads, int group, double tolerance) {
    List<Steps.Layer> layers =
        List.of(
            new Steps.Layer("model.layers.0", kvHeads * group, kvHeads),
            new Steps.Layer("model.layers.1", kvHeads * group, kvHeads));
    Steps steps = Steps.generate(7, dtype, blockSize, headSize, layers, 5, 5);
    steps.writeJob(job);
    Path input = steps.writeFile(temp.resolve("steps.arrow"));

    Cli cli = Cli.attend(job, input, output);

    assertThat(cli).isEqualTo(new Cli(0, "", ""));
    Results.assertClose(Results.read(output), Results.expected(steps), tolerance);
  }

  @Test
  void fileStreamAndFolderGiveTheSame() {
    Steps steps = Steps.small(1);
    steps.writeJob(job);
    Path fromFile = temp.resolve("file.arrow");
    Path fromStream = temp.resolve("stream.arrow");
    Path fromFolder = temp.resolve("folder.arrow");

    Cli.attend(job, steps.writeFile(temp.resolve("steps.arrow")), fromFile);
    Cli.attend(job, steps.writeStream(temp.resolve("steps.arrows")), fromStream);
    Cli.attend(job, steps.writeFolder(temp.resolve("steps")), fromFolder);

    Map<Results.Key, Results.Row> rows = Results.read(fromFile);
    Results.assertClose(rows, Results.expected(steps), 1e-5);
    Results.assertSame(Results.read(fromStream), rows);
    Results.assertSame(Results.read(fromFolder), rows);
  }

  @ParameterizedTest
  @EnumSource(Compression.class)
  void readsAndWritesCompressedBodies(Compression compression) {
    Steps steps = Steps.small(2);
    steps.writeJob(job);
    Path input = steps.writeFile(temp.resolve("steps.arrow"), compression, steps.steps);

    Cli cli = Cli.attend(job, input, output, "--compression", compression.label());

    assertThat(cli.code()).isZero();
    Results.assertClose(Results.read(output), Results.expected(steps), 1e-5);
  }

  @Test
  void tellsWhatWasChosenAndWhatWasDone() {
    Steps steps = Steps.small(3);
    steps.writeJob(job);
    Path input = steps.writeFile(temp.resolve("steps.arrow"));

    Cli cli = Cli.command("attend", job, input, output, "--backend", "cpu", "--threads", 1);

    assertThat(cli.code()).isZero();
    assertThat(cli.err().lines())
        .singleElement()
        .asString()
        .startsWith("broadhead attend: backend cpu, tier ")
        .contains(", 1 thread", "KV cache " + steps.numBlocks + " blocks of 16 tokens");
    assertThat(cli.out().lines())
        .singleElement()
        .asString()
        .startsWith("done: batches=" + steps.steps.size() + " rows=")
        .contains(
            " sequences=5 ",
            " tokens=" + steps.tokens() + " ",
            " refused_rows=0 ",
            " bytes_copied=0 ",
            " backend=cpu ",
            " output=" + output);
  }

  @Test
  void replacesNothingThatItReads() throws Exception {
    Steps steps = Steps.small(4);
    steps.writeJob(job);
    Path input = steps.writeFile(temp.resolve("steps.arrow"));
    Path folder = steps.writeFolder(temp.resolve("steps"));
    Path inFolder = Results.files(folder).get(0);
    for (Path written : List.of(job, input, inFolder)) {
      byte[] before = Files.readAllBytes(written);
      Path read = written.equals(inFolder) ? folder : input;

      Cli replacing = Cli.attend(job, read, written, "--overwrite");
      Cli refusing = Cli.attend(job, read, output, "--refused", written);

      String expected = ": expected a file other than those of --job and --input";
      assertThat(List.of(replacing.code(), refusing.code())).containsOnly(2);
      assertThat(replacing.err()).contains("--output" + expected, "" + written);
      assertThat(refusing.err()).contains("--refused" + expected, "" + written);
      assertThat(Files.readAllBytes(written)).isEqualTo(before);
    }
    Cli both = Cli.attend(job, input, output, "--refused", output);
    assertThat(both.code()).isEqualTo(2);
    assertThat(both.err()).contains("--refused: expected a file other than that of --output");
  }

  @Test
  void whatIsNotThereIsNamedBeforeTheWork() throws Exception {
    Steps steps = Steps.small(4);
    steps.writeJob(job);
    Path input = steps.writeFile(temp.resolve("steps.arrow"));
    Path nowhere = temp.resolve("nowhere");

    Cli refused = Cli.attend(job, input, output, "--refused", nowhere.resolve("refused.jsonl"));
    assertThat(refused.code()).isEqualTo(1);
    assertThat(refused.err()).contains("--refused ", "there is no folder " + nowhere);
    assertThat(output).doesNotExist();

    Path there = Files.createDirectory(temp.resolve("refused"));
    Cli inPlaceOf = Cli.attend(job, input, output, "--refused", there);
    assertThat(inPlaceOf.code()).isEqualTo(1);
    assertThat(inPlaceOf.err()).contains("--refused " + there + ": expected a file, got a folder");
    assertThat(there).isDirectory();
    assertThat(output).doesNotExist();

    Cli folder = Cli.attend(temp, input, output);
    assertThat(folder.code()).isEqualTo(1);
    assertThat(folder.err()).contains("--job " + temp + ": expected a file, got a folder");
  }

  @Test
  void replacesAnOlderOutput() throws Exception {
    Steps steps = Steps.small(4);
    steps.writeJob(job);
    Path input = steps.writeFile(temp.resolve("steps.arrow"));
    Path refused = temp.resolve("out.arrow.refused.jsonl");
    Files.writeString(output, "old");
    Files.writeString(refused, "old");

    assertThat(Cli.attend(job, input, output).code()).isZero();

    Results.assertClose(Results.read(output), Results.expected(steps), 1e-5);
    assertThat(refused).doesNotExist();
  }

  @Test
  void rejectedRowsAreLeftOutWhateverBadOnesDo() throws Exception {
    Steps steps = Steps.small(9);
    steps.managed = true;
    steps.numBlocks = 5;
    steps.writeJob(job);
    Path input = steps.writeFile(temp.resolve("steps.arrow"));

    Cli cli = Cli.attend(job, input, output, "--out-of-blocks", "reject");

    assertThat(cli).isEqualTo(new Cli(0, "", ""));
    List<String> refused = Files.readAllLines(temp.resolve("out.arrow.refused.jsonl"));
    assertThat(refused).anyMatch(line -> line.contains("\"code\": \"OUT_OF_BLOCKS\""));
    assertThat(refused).anyMatch(line -> line.contains("\"code\": \"SEQUENCE_LOST\""));
    long rows = steps.steps.stream().mapToLong(step -> step.rows().size()).sum();
    assertThat(Results.read(output)).hasSize((int) rows - refused.size());
  }

  @Test
  void layersOfDifferentShapesNeedAFolder() {
    List<Steps.Layer> layers = List.of(new Steps.Layer("a", 4, 2), new Steps.Layer("b/c", 2, 2));
    Steps steps = Steps.generate(5, DType.FLOAT32, 16, 64, layers, 3, 4);
    steps.writeJob(job);
    Path input = steps.writeFolder(temp.resolve("steps"));

    Cli refused = Cli.attend(job, input, output);
    assertThat(refused.code()).isEqualTo(1);
    assertThat(refused.err().lines())
        .singleElement()
        .asString()
        .contains("step-0001.arrow, batch 0: ", "one schema", "give --output as a folder");
    assertThat(Results.files(output)).isEmpty();

    Path folder = temp.resolve("out");
    assertThat(Cli.attend(job, input, folder)).isEqualTo(new Cli(0, "", ""));
    assertThat(Results.files(folder))
        .containsExactly(folder.resolve("a.arrow"), folder.resolve("b%002fc.arrow"));
    Results.assertClose(Results.read(folder), Results.expected(steps), 1e-5);
  }

  @Test
  void resultsOfFurtherSchemasGoToFurtherFilesAsTheHelpSays() throws Exception {
    Path input = Files.createDirectory(temp.resolve("steps"));
    for (DType dtype : List.of(DType.FLOAT16, DType.FLOAT32)) {
      Steps steps =
          Steps.generate(6, dtype, 16, 64, List.of(new Steps.Layer("layer.0", 4, 2)), 3, 4);
      Files.writeString(job, steps.job().replace("}\nlayers", ", dtype: float32}\nlayers"));
      steps.writeFile(input.resolve(dtype + ".arrow"));
    }
    Path folder = temp.resolve("out");

    assertThat(Cli.attend(job, input, folder)).isEqualTo(new Cli(0, "", ""));

    assertThat(Results.files(folder))
        .containsExactly(folder.resolve("results.arrow"), folder.resolve("schema-02.arrow"));
    assertThat(Cli.run("attend", "--help").out()).contains("schema-02.arrow");
  }

  @Test
  void oneShapeIsOneFileInAFolder() {
    List<Steps.Layer> layers = List.of(new Steps.Layer("a", 4, 2), new Steps.Layer("b", 4, 2));
    Steps steps = Steps.generate(6, DType.FLOAT32, 16, 64, layers, 3, 4);
    steps.writeJob(job);
    Path folder = temp.resolve("out");
    Path input = steps.writeFile(temp.resolve("steps.arrow"));

    assertThat(Cli.attend(job, input, folder).code()).isZero();
    assertThat(Results.files(folder)).containsExactly(folder.resolve("results.arrow"));

    Cli again = Cli.attend(job, input, folder);
    assertThat(again.code()).isEqualTo(1);
    assertThat(again.err()).contains("expected a folder without results", "--overwrite");
    assertThat(Cli.attend(job, input, folder, "--overwrite").code()).isZero();
    Results.assertClose(Results.read(folder), Results.expected(steps), 1e-5);
  }

  @Test
  void badRowsGoToAFileOfTheirOwn() throws Exception {
    Steps steps = Steps.small(8);
    Steps.Step last = steps.steps.get(steps.steps.size() - 1);
    last.rows().get(1).slots[0] = 1_000_000;
    String sequence = last.rows().get(1).id;
    steps.writeJob(job);
    Path input = steps.writeFile(temp.resolve("steps.arrow"));

    Cli cli = Cli.command("attend", job, input, output, "--on-bad-row", "side-output");

    assertThat(cli.code()).isZero();
    assertThat(cli.out()).contains(" refused_rows=1 ");
    assertThat(Files.readAllLines(temp.resolve("out.arrow.refused.jsonl")))
        .singleElement()
        .asString()
        .contains(
            "\"file\": \"" + input + "\"",
            "\"batch\": " + (steps.steps.size() - 1) + ",",
            "\"row\": 1,",
            "\"sequence_id\": \"" + sequence + "\"",
            "slot_mapping");
    last.rows().remove(1);
    Results.assertClose(Results.read(output), Results.expected(steps), 1e-5);
  }
}
