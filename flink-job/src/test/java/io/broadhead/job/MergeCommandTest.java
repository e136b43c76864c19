// SPDX-License-Identifier: Apache-2.0
package io.broadhead.job;

import static org.assertj.core.api.Assertions.assertThat;

import io.broadhead.arrow.DType;
import io.broadhead.attention.testing.NoLeaks;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.List;
import java.util.Map;
import java.util.stream.Stream;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.extension.ExtendWith;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

@ExtendWith(NoLeaks.class)
class MergeCommandTest {
  private static final int BLOCK_SIZE = 16;

  @TempDir Path temp;
  private Path output;

  @BeforeEach
  void paths() {
    output = temp.resolve("merged.arrow");
  }

  /** Cross attention in which every row sees its keys from {@code from} to {@code to} percent. */
  private Steps steps(DType dtype, int from, int to) {
    List<Steps.Layer> layers = List.of(new Steps.Layer("layer.0", 4, 2));
    Steps steps = Steps.generate(5, dtype, BLOCK_SIZE, 64, layers, 4, 4);
    for (Steps.Step step : steps.steps) {
      for (Steps.Row row : step.rows()) {
        int keys = row.tokens();
        int first = keys * from / 100;
        int last = keys * to / 100;
        int width = row.key.length / keys;
        row.key = Arrays.copyOfRange(row.key, first * width, last * width);
        row.value = Arrays.copyOfRange(row.value, first * width, last * width);
        row.seqLen = last - first;
        row.slots = new long[last - first];
        int[] table = row.table;
        Arrays.setAll(row.slots, p -> (long) table[p / BLOCK_SIZE] * BLOCK_SIZE + p % BLOCK_SIZE);
      }
    }
    return steps;
  }

  private Path attend(DType dtype, int from, int to, String name, boolean lse) throws Exception {
    Steps steps = steps(dtype, from, to);
    Path job = temp.resolve("job.yaml");
    Files.writeString(
        job,
        steps
            .job()
            .replace(
                "head_size: 64", "head_size: 64, attn_type: encoder_decoder, return_lse: " + lse));
    Path result = temp.resolve(name);
    Cli cli = Cli.attend(job, steps.writeFile(temp.resolve("steps.arrow")), result);
    assertThat(cli.err()).isEmpty();
    return result;
  }

  @ParameterizedTest
  @CsvSource({"FLOAT32, 1e-5", "FLOAT16, 2e-3", "BFLOAT16, 1.6e-2"})
  void partsMergeToTheWhole(DType dtype, double tolerance) throws Exception {
    Path whole = attend(dtype, 0, 100, "whole.arrow", true);
    Path first = attend(dtype, 0, 40, "first.arrow", true);
    Path second = attend(dtype, 40, 60, "second.arrow", true);
    Path third = attend(dtype, 60, 100, "third.arrow", true);

    Cli cli = Cli.run("merge", first, second, third, "--output", output);

    assertThat(cli.code()).as(cli.err()).isZero();
    assertThat(cli.err()).isEmpty();
    assertThat(cli.out().lines())
        .singleElement()
        .asString()
        .startsWith("done: parts=3 batches=4 rows=")
        .endsWith(" output=" + output);
    assertSameOutputs(output, whole, tolerance);
  }

  private static void assertSameOutputs(Path got, Path expected, double tolerance) {
    Map<Results.Key, Results.Row> rows = Results.read(got);
    Map<Results.Key, Results.Row> whole = Results.read(expected);
    assertThat(rows.keySet()).isEqualTo(whole.keySet());
    whole.forEach(
        (key, row) -> {
          float[] output = rows.get(key).output();
          assertThat(output).hasSameSizeAs(row.output());
          for (int i = 0; i < output.length; i++) {
            assertThat(Math.abs(output[i] - row.output()[i]))
                .as("%s element %d", key, i)
                .isLessThanOrEqualTo((float) (tolerance * Math.max(1, Math.abs(row.output()[i]))));
          }
        });
  }

  @Test
  void foldersGiveAFolderWithTheSameFiles() throws Exception {
    Path whole = attend(DType.FLOAT32, 0, 100, "whole", true);
    Path first = attend(DType.FLOAT32, 0, 50, "first", true);
    Path second = attend(DType.FLOAT32, 50, 100, "second", true);
    output = temp.resolve("merged");

    Cli cli = Cli.run("merge", "--quiet", first, second, "--output", output);

    assertThat(cli).isEqualTo(new Cli(0, "", ""));
    assertThat(Results.files(output)).containsExactly(output.resolve("results.arrow"));
    assertSameOutputs(output, whole, 1e-5);
    Cli again = Cli.run("merge", first, second, "--output", output);
    assertThat(again.code()).isEqualTo(1);
    assertThat(again.err()).contains("expected a folder without results", "--overwrite");
    assertThat(Cli.run("merge", first, second, "--output", output, "--overwrite").code()).isZero();
    Cli same = Cli.run("merge", first, second, "--output", first, "--overwrite");
    assertThat(same.code()).isEqualTo(2);
    assertThat(same.err()).contains("--output: expected another path than those of the parts");
  }

  @Test
  void partsThatDoNotFitFailAndLeaveNothing() throws Exception {
    Path first = attend(DType.FLOAT32, 0, 50, "first.arrow", true);
    Path second = attend(DType.FLOAT32, 50, 100, "second.arrow", true);
    Path half = attend(DType.FLOAT16, 50, 100, "half.arrow", true);
    Path noLse = attend(DType.FLOAT32, 50, 100, "no-lse.arrow", false);
    Path folder = Files.createDirectory(temp.resolve("twice"));
    Files.copy(second, folder.resolve("a.arrow"));
    Files.copy(second, folder.resolve("b.arrow"));

    failed(
        Cli.run("merge", first, half, "--output", output),
        "part 1 is " + first + ", batch 0; part 2 is " + half + ", batch 0: part 2, column output",
        "float32",
        "float16");
    failed(
        Cli.run("merge", first, noLse, "--output", output),
        "part 2, column lse: expected it (the layer's return_lse adds it), got no such column");
    failed(
        Cli.run("merge", first, folder, "--output", output),
        first + ": expected as many batches as the other parts have",
        folder.resolve("b.arrow") + ", batch 0");
    failed(
        Cli.run("merge", folder, first, "--output", output),
        first + ": expected as many batches as the other parts have");
    failed(
        Cli.run("merge", first, temp.resolve("none.arrow"), "--output", output),
        "none.arrow: no such file or folder");
  }

  private void failed(Cli cli, String... message) throws Exception {
    assertThat(cli.code()).isEqualTo(1);
    assertThat(cli.out()).isEmpty();
    assertThat(cli.err().lines()).hasSize(1);
    assertThat(cli.err()).startsWith("broadhead merge: ").contains(message);
    try (Stream<Path> files = Files.list(temp)) {
      assertThat(files.map(file -> file.getFileName().toString()))
          .noneMatch(name -> name.contains("merged"));
    }
  }
}
