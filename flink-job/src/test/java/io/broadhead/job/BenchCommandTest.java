// SPDX-License-Identifier: Apache-2.0
package io.broadhead.job;

import static org.assertj.core.api.Assertions.assertThat;

import io.broadhead.attention.testing.NoLeaks;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.extension.ExtendWith;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.ValueSource;

/** Every mode with shapes so small that nothing is learnt about speed. */
@ExtendWith(NoLeaks.class)
class BenchCommandTest {
  @TempDir Path temp;

  private Cli bench(String mode, String more) {
    String line =
        "bench " + mode + " --model 4/2/32 --time 0.01 --peers none --csv " + csv() + " " + more;
    return Cli.run((Object[]) line.trim().split("\\s+"));
  }

  private Path csv() {
    return temp.resolve("results.csv");
  }

  @ParameterizedTest
  @CsvSource(
      delimiter = '|',
      value = {
        "decode  | --batch 1,3 --context 40 --dtype float16,fp8            | of read | 4 | fma",
        "prefill | --tokens 20,8+30 --dtype bfloat16,float32               | of fma  | 4 | fma",
        "mixed   | --batch 2 --context 40 --chunk 20                       | of read | 1 | read",
        "update  | --batch 2 --tokens 20 --rope --block-size 32            | of copy | 1 | copy",
        "step    | --batch 1,4 --context 16 --threads 1,2                  | overhead us | 4 |"
            + " kernels",
      })
  void everyModeMeasures(String mode, String more, String column, int cells, String other)
      throws IOException {
    Cli cli = bench(mode, more);

    assertThat(cli.err()).contains("backend cpu");
    assertThat(cli.code()).isZero();
    assertThat(cli.out()).contains("4/2/32", column, "garbage B");
    List<String> lines = Files.readAllLines(csv());
    assertThat(lines.stream().filter(line -> line.contains(",broadhead,ours,"))).hasSize(cells);
    assertThat(lines.stream().filter(line -> line.contains("," + other + ","))).hasSize(cells);
  }

  @Test
  void variantsAreTimedBesideACell() throws IOException {
    Cli cli = bench("decode", "--batch 2 --context 40 --beside threads=1,dtype=fp8,rows=1x1@64");

    assertThat(cli.code()).isZero();
    assertThat(cli.out())
        .contains("threads=1", "times as fast as dtype=fp8: ", "times as fast as rows=1x1@64");
    assertThat(Files.readAllLines(csv()).stream().filter(line -> line.contains(",variant,")))
        .hasSize(3);
  }

  @Test
  void whatDoesNotFitIsSkippedWithTheReason() {
    Cli cli =
        Cli.run("bench", "decode", "--model", "64/64/256", "--batch", 1000, "--context", 1_000_000);

    assertThat(cli.code()).isOne();
    assertThat(cli.err())
        .contains("skipped decode 64/64/256 float16 1000x1@1000000")
        .contains("for keys and values", "are available", "no cell could be measured");
  }

  @Test
  void reportJoinsRuns() throws IOException {
    assertThat(bench("decode", "--batch 1,2,4 --context 32").code()).isZero();
    Path folder = temp.resolve("report");

    assertThat(Cli.run("bench", "report", csv(), csv(), "--output", folder).code()).isZero();
    assertThat(Files.readString(folder.resolve("tables.md")))
        .contains("### decode, float16", "| 4/2/32");
    assertThat(folder.resolve("growth-batch.svg")).exists();
    assertThat(Cli.run("bench", "report", csv()).out()).contains("of read: ");
  }

  @ParameterizedTest
  @ValueSource(strings = {"decode", "prefill", "mixed", "update", "step", "report"})
  void helpHasExamples(String mode) {
    Cli cli = Cli.run("bench", mode, "--help");

    assertThat(cli.code()).isZero();
    assertThat(cli.out()).contains("Example", "  broadhead bench " + mode);
  }

  @ParameterizedTest
  @CsvSource(
      delimiter = '|',
      value = {
        "bench                               | Missing required subcommand",
        "bench decode --model llama-9        | expected llama-3-8b,",
        "bench decode --dtype int8           | --dtype",
        "bench decode --batch 0              | --batch: expected 1 or more, each, got 0",
        "bench decode --context 0            | --context: expected 1 or more, each, got 0",
        "bench decode --threads 0            | --threads: expected 1 or more, each, got 0",
        "bench decode --block-size 24        | --block-size: expected a positive multiple of 16",
        "bench decode --beside heads=4       | expected threads=N, dtype=TYPE or rows=",
        "bench decode --beside dtype=int8    | dtype: expected one of float16, bfloat16, float32, fp8, got",
        "bench decode --beside threads=x     | threads: expected 1 or more, got x",
        "bench decode --beside rows=9999999999x1@1 | expected rows as COUNTxTOKENS@CONTEXT, got 99999",
        "bench decode --device -2            | --device: expected 0 or more, or -1, got -2",
        "bench step --beside threads=1       | --beside: expected nothing in this mode",
        "bench decode --time 0               | --time: expected more than 0, got 0.0",
        "bench prefill --tokens 512-1        | --tokens: expected NEW or NEW+OLD, as in 512+3584",
        "bench update --tokens 0             | --tokens: expected 1 or more",
        "bench mixed --chunk 0               | --chunk: expected 1 or more",
        "bench decode --backend abc          | --backend: expected one of auto, cuda, hip, cpu",
        "bench report                        | Missing required parameter: 'FILE",
      })
  void usageErrorsAreExitCodeTwo(String args, String message) {
    Cli cli = Cli.run((Object[]) args.trim().split("\\s+"));

    assertThat(cli.code()).isEqualTo(2);
    assertThat(cli.err()).contains(message.trim()).contains("--help");
  }

  @ParameterizedTest
  @CsvSource({"decode --model 4/2/32 --plot,--plot", "report results.csv --output,--output"})
  void aFileInThePlaceOfAFolderIsToldBeforeAnythingIsMeasured(String args, String option)
      throws IOException {
    Path file = Files.writeString(temp.resolve("file"), "");
    Cli cli = Cli.run((Object[]) ("bench " + args + " " + file).split(" "));

    assertThat(cli.code()).isOne();
    assertThat(cli.err())
        .isEqualToNormalizingNewlines(
            "broadhead bench %s: %s %s: expected a folder, got the file %s%n"
                .formatted(args.split(" ")[0], option, file, file));
  }

  @Test
  void foldersWithoutPeersAndFilesThatAreNoResultsAreTold() throws IOException {
    Cli peers = Cli.run("bench", "decode", "--model", "4/2/32", "--peers", temp);
    assertThat(peers.code()).isOne();
    assertThat(peers.err()).contains("--peers " + temp + ": expected jars with peers, found none");

    Files.writeString(csv(), "a,b\n1,2\n");
    Cli report = Cli.run("bench", "report", csv());
    assertThat(report.code()).isOne();
    assertThat(report.err())
        .contains("results.csv: line 2: expected a column model")
        .hasLineCount(1);
  }
}
