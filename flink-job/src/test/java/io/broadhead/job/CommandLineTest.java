// SPDX-License-Identifier: Apache-2.0
package io.broadhead.job;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import io.broadhead.attention.testing.NoLeaks;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.extension.ExtendWith;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.ValueSource;

@ExtendWith(NoLeaks.class)
class CommandLineTest {
  @TempDir Path temp;

  @ParameterizedTest
  @ValueSource(strings = {"attend", "run", "inspect", "merge", "doctor"})
  void helpHasExamplesAndTheEnginesOptions(String command) {
    Cli cli = Cli.run(command, "--help");

    assertThat(cli.code()).isZero();
    assertThat(cli.err()).isEmpty();
    assertThat(cli.out())
        .contains("Examples:", "  broadhead " + command, "--backend=NAME", "--threads=N");
  }

  @Test
  void insideFlinkTheReasonIsThrown() {
    String[] arguments = {"inspect", temp.resolve("missing.arrow").toString()};

    assertThatThrownBy(() -> Main.main(arguments))
        .hasMessageMatching("broadhead inspect: .*missing.arrow: no such file or folder");
  }

  /** What is longer than a line would be wrapped, and not work as printed. */
  @ParameterizedTest
  @ValueSource(
      strings = {
        "attend",
        "run",
        "inspect",
        "compare",
        "merge",
        "doctor",
        "bench",
        "bench decode",
        "bench prefill",
        "bench mixed",
        "bench update",
        "bench step",
        "bench report"
      })
  void examplesCanBePasted(String command) {
    String help = Cli.run((Object[]) (command + " --help").split(" ")).out();
    String[] examples = help.substring(help.indexOf("Example")).split("\\R+");

    assertThat(examples).hasSizeGreaterThan(1);
    for (int i = 1; i < examples.length && examples[i].startsWith(" "); i++) {
      assertThat(examples[i])
          .startsWith(examples[i - 1].endsWith("\\") ? "      " : "  broadhead " + command);
    }
  }

  @Test
  void whatTheOverviewSaysToTryWorksInAClone() {
    String help = Cli.run("--help").out();
    String[] commands =
        help.replaceAll("\\\\\\R", "").split("java -jar flink-job/target/broadhead.jar ");
    Path output = temp.resolve("out.arrow");

    assertThat(commands).hasSize(3);
    for (String command : List.of(commands).subList(1, 3)) {
      Cli cli =
          Cli.run(
              (Object[])
                  command
                      .strip()
                      .replace("samples/", "../samples/")
                      .replace("out.arrow", output.toString())
                      .split(" +"));
      assertThat(cli.code()).as(cli.err()).isZero();
    }
  }

  @Test
  void versionAndOverview() {
    assertThat(Cli.run("--version").out()).startsWith("broadhead 0.");
    assertThat(Cli.run("--help").out()).contains("attend", "run", "inspect", "doctor");
  }

  @ParameterizedTest
  @CsvSource(
      delimiter = '|',
      value = {
        "attend --input i --output o                       | Missing required option: '--job=FILE'",
        "attend --job j --input i --output o --threads -1  | --threads: expected 0 or more, got -1",
        "attend --job j --input i --output o --threads two | --threads",
        "attend --job j --input i --output o --backend abc | --backend: expected one of auto, cuda, hip, cpu",
        "attend --job j --input i --output o --on-bad-row x | '--on-bad-row': expected one of fail, side-output, got 'x'",
        "attend --job j --input i --output o --compression x | '--compression': expected one of none, lz4, zstd, got 'x'",
        "bench decode --dtype float16,x                    | '--dtype' (TYPE): expected one of float16, bfloat16, float32, fp8, got 'x'",
        "run --job j --input i --output o --parallelism 0  | --parallelism: expected 1 to 32768, got 0",
        "run --job j --input i --output o --parallelism 1000000000 | --parallelism: expected 1 to 32768",
        "run --job j --input i --output o --parallelism 4 --shards 2 | --shards: expected 4 to 32768, at least one",
        "run --job j --input i --output o --shards 0       | --shards: expected 1 to 32768",
        "run --job j --input i --output o --shards 1000000 | --shards: expected 1 to 32768",
        "run --job j --input i --output o --checkpoint-interval 0.005 | --checkpoint-interval: expected a number of seconds from 0.01 on, got 0.005",
        "run --job j --input i --output o --watch-interval 0.0001 | --watch-interval: expected a number of seconds from 0.01 on",
        "run --job j --input i --output o --batch-max-tokens 64 --batch-max-delay 0.0005 | --batch-max-delay: expected 0 or a number of seconds from 0.001 on, with --batch-max-tokens only, got 5.0E-4",
        "run --job j --input i --output o --batch-max-delay 1 | --batch-max-delay: expected 0 or a number of seconds from 0.001 on, with --batch-max-tokens only, got 1.0",
        "run --job j --input i --output o -D broadhead.backend=cpu | -D: expected a Flink option",
        "run --job j --input i --output o --what           | Unknown option: '--what'",
        "run --job j --input i --output o --theads 2       | did you mean '--threads'?",
        "inspect                                           | Missing required parameter: 'PATH'",
        "inspect p --values -1                             | --values: expected 0 or more",
        "doctor --backend rocm9                            | --backend: expected one of auto, cuda, hip, cpu",
        "merge a --output o                                | PART",
        "observe                                           | Unmatched argument",
        "inspct                                            | did you mean 'inspect'?",
      })
  void usageErrorsAreExitCodeTwo(String args, String message) {
    Cli cli = Cli.run((Object[]) args.trim().split("\\s+"));

    assertThat(cli.code()).isEqualTo(2);
    assertThat(cli.out()).isEmpty();
    assertThat(cli.err()).contains(message.trim()).contains("--help");
  }

  @Test
  void noCommandIsAUsageError() {
    Cli cli = Cli.run();
    assertThat(cli.code()).isEqualTo(2);
    assertThat(cli.err()).contains("Usage: broadhead");
  }

  @Test
  void watchingNeedsAFolder() {
    Steps steps = Steps.small(1);
    Path job = steps.writeJob(temp.resolve("job.yaml"));
    Path file = steps.writeFile(temp.resolve("steps.arrow"));

    Cli cli = Cli.run(job, file, temp.resolve("out"), "--watch");

    assertThat(cli.code()).isEqualTo(2);
    assertThat(cli.err()).contains("--watch: expected --input to be a folder");
    assertThat(temp.resolve("out")).doesNotExist();
  }

  @Test
  void resourcesOfAClusterNeedOne() {
    Steps steps = Steps.small(1);
    Path job = steps.writeJob(temp.resolve("job.yaml"));
    Path file = steps.writeFile(temp.resolve("steps.arrow"));

    Cli cli = Cli.run(job, file, temp.resolve("out"), "--device-resource", "gpu");

    assertThat(cli.code()).isEqualTo(2);
    assertThat(cli.err()).contains("--device-resource: not on an embedded cluster");
    assertThat(temp.resolve("out")).doesNotExist();
  }

  @Test
  void outputInAFolderThatIsMissing() {
    Steps steps = Steps.small(1);
    Path job = steps.writeJob(temp.resolve("job.yaml"));
    Path file = steps.writeFile(temp.resolve("steps.arrow"));

    Cli cli = Cli.attend(job, file, temp.resolve("no/out.arrow"));

    assertThat(cli.code()).isEqualTo(1);
    assertThat(cli.err()).contains("--output", "there is no folder " + temp.resolve("no"));
  }

  @Test
  void overwritingNeverRemovesTheInput() {
    Steps steps = Steps.small(1);
    Path job = steps.writeJob(temp.resolve("job.yaml"));
    Path folder = steps.writeFolder(temp.resolve("steps"));
    int files = Results.files(folder).size();

    for (String command : List.of("attend", "run")) {
      Cli there = Cli.command(command, job, folder, folder, "--overwrite");
      Cli above = Cli.command(command, job, folder, temp, "--overwrite");

      assertThat(List.of(there.code(), above.code())).containsOnly(1);
      assertThat(there.err())
          .contains("--output " + folder + ": expected a folder other than that of the input");
      assertThat(above.err()).contains("--overwrite: expected the input outside the folder");
    }
    assertThat(Results.files(folder)).hasSize(files);
  }

  @Test
  void doctorTellsWhatIsHere() {
    Cli cli = Cli.run("doctor");

    assertThat(cli.code()).isZero();
    assertThat(cli.err()).isEmpty();
    assertThat(cli.out())
        .contains("versions   broadhead ", "java 17", "arrow 19", "flink 2", "javacpp 1")
        .contains("machine ", "memory ", "backend    cpu: usable", "chosen     backend cpu, tier ")
        .contains("jvm flags");
  }

  @Test
  void doctorSpeaksJson() {
    Cli cli = Cli.run("doctor", "--json", "--backend", "cpu", "--threads", 2);

    assertThat(cli.code()).isZero();
    assertThat(cli.out())
        .startsWith("{\"versions\": {\"broadhead\": \"0.")
        .contains(
            "\"backends\": [{\"name\": \"cuda\"",
            "{\"name\": \"cpu\"",
            "\"chosen\": {\"backend\": \"cpu\", \"tier\": \"",
            "\"threads\": 2,",
            "\"missing_jvm_flags\": [");
  }

  @Test
  void inspectShowsAFile() throws Exception {
    Steps steps = Steps.small(2);
    Path file = steps.writeFile(temp.resolve("steps.arrow"));

    Cli cli = Cli.run("inspect", file, "--values", 1);

    assertThat(cli.code()).isZero();
    assertThat(cli.out())
        .startsWith(file + System.lineSeparator())
        .containsPattern("query +list<tensor\\[4, 64\\]<float32>> not null")
        .containsPattern("block_table +list<int32> not null")
        .contains("batch 0: " + steps.steps.get(0).rows().size() + " rows")
        .containsPattern("layer +layer.0")
        .containsPattern("query +\\d+ tensors? \\[-?\\d")
        .doesNotContain("batch 1:")
        .contains(steps.steps.size() + " batches, ");
  }

  @Test
  void inspectShowsResultsToo() {
    Steps steps = Steps.small(3);
    Path job = steps.writeJob(temp.resolve("job.yaml"));
    Path output = temp.resolve("out.arrow");
    Cli.attend(job, steps.writeFile(temp.resolve("steps.arrow")), output);

    Cli cli = Cli.run("inspect", output);

    assertThat(cli.code()).isZero();
    assertThat(cli.out()).containsPattern("output +list<tensor\\[4, 64\\]<float32>> not null");
  }

  @Test
  void inspectFindsEveryProblem() throws Exception {
    Steps steps = Steps.small(4);
    steps.steps.get(1).rows().get(0).seqLen = -1;
    steps.steps.get(1).rows().get(2).table[0] = 9999;
    steps.steps.get(4).rows().get(1).slots[0] = 1L << 33;
    Path job = steps.writeJob(temp.resolve("job.yaml"));
    Path folder = Files.createDirectory(temp.resolve("steps"));
    Path file = steps.writeFile(folder.resolve("a.arrow"));
    Path broken = Files.writeString(folder.resolve("b.arrow"), "nothing of Arrow");

    Cli cli = Cli.run("inspect", folder, "--job", job);

    assertThat(cli.code()).isEqualTo(1);
    assertThat(cli.out().lines().filter(line -> line.startsWith("problem: ")))
        .satisfiesExactly(
            line -> assertThat(line).contains(file + ", batch 1, ", "row 0", "column seq_len"),
            line -> assertThat(line).contains(file + ", batch 1, ", "row 2", "column block_table"),
            line -> assertThat(line).contains(file + ", batch 4, ", "row 1", "column slot_mapping"),
            line -> assertThat(line).contains(broken + ": ", "Arrow IPC"));
    assertThat(cli.out()).contains("4 problems against " + job);
  }

  @Test
  void inspectIsContentWithGoodBatches() {
    Steps steps = Steps.small(5);
    Path job = steps.writeJob(temp.resolve("job.yaml"));
    Path file = steps.writeStream(temp.resolve("steps.arrows"));

    Cli cli = Cli.run("inspect", file, "--job", job);

    assertThat(cli.code()).isZero();
    assertThat(cli.out()).contains("0 problems against " + job);
  }
}
