// SPDX-License-Identifier: Apache-2.0
package io.broadhead.job;

import static org.assertj.core.api.Assertions.assertThat;

import io.broadhead.arrow.Allocators;
import io.broadhead.arrow.ArrowBatch;
import io.broadhead.arrow.ArrowBatchFileWriter;
import io.broadhead.arrow.Compression;
import io.broadhead.arrow.DType;
import io.broadhead.attention.job.Job;
import io.broadhead.attention.job.JobFile;
import io.broadhead.attention.job.LayerSpec;
import io.broadhead.attention.testing.ManagedRow;
import io.broadhead.attention.testing.NoLeaks;
import io.broadhead.attention.testing.Scenario;
import io.broadhead.attention.testing.StepBatches;
import io.broadhead.attention.testing.StepRow;
import java.io.IOException;
import java.io.RandomAccessFile;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.function.Consumer;
import java.util.stream.Stream;
import org.apache.arrow.memory.BufferAllocator;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.extension.ExtendWith;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.Arguments;
import org.junit.jupiter.params.provider.EnumSource;
import org.junit.jupiter.params.provider.MethodSource;

/** Every bad input ends in one line that says where, exit code 1, and no output. */
@ExtendWith(NoLeaks.class)
class BadInputTest {
  @TempDir Path temp;

  private Path job;
  private Path input;
  private Path output;

  enum Command {
    ATTEND,
    RUN
  }

  @BeforeEach
  void paths() {
    job = temp.resolve("job.yaml");
    input = temp.resolve("steps.arrow");
    output = temp.resolve("out.arrow");
  }

  private void assertFails(Command command, String... fragments) {
    Cli cli =
        command == Command.ATTEND ? Cli.attend(job, input, output) : Cli.run(job, input, output);
    assertThat(cli.code()).as(cli.err()).isEqualTo(1);
    assertThat(cli.out()).isEmpty();
    assertThat(cli.err().lines()).singleElement().asString().contains(fragments);
    assertThat(output).doesNotExist();
    try (Stream<Path> left = Files.walk(temp)) {
      assertThat(left.filter(Files::isRegularFile))
          .as("nothing beside the input, hidden or not")
          .allMatch(file -> file.equals(job) || file.equals(input));
    } catch (IOException e) {
      throw new AssertionError(e);
    }
  }

  static List<Arguments> badRows() {
    List<Arguments> cases = new ArrayList<>();
    for (Command command : Command.values()) {
      cases.add(
          Arguments.of(
              command,
              "slot beyond the pool",
              (Consumer<Steps.Row>) row -> row.slots[0] = 1L << 40,
              "column slot_mapping"));
      cases.add(
          Arguments.of(
              command,
              "block beyond the pool",
              (Consumer<Steps.Row>) row -> row.table[0] = 1_000_000,
              "column block_table"));
      cases.add(
          Arguments.of(
              command,
              "negative block",
              (Consumer<Steps.Row>) row -> row.table[0] = -1,
              "column block_table"));
      cases.add(
          Arguments.of(
              command,
              "short block table",
              (Consumer<Steps.Row>) row -> row.table = Arrays.copyOf(row.table, 0),
              "column block_table"));
      cases.add(
          Arguments.of(
              command,
              "negative length",
              (Consumer<Steps.Row>) row -> row.seqLen = -3,
              "column seq_len"));
      cases.add(
          Arguments.of(
              command,
              "fewer slots than keys",
              (Consumer<Steps.Row>) row -> row.slots = Arrays.copyOf(row.slots, 0),
              "column slot_mapping"));
    }
    return cases;
  }

  @ParameterizedTest(name = "{0}: {1}")
  @MethodSource("badRows")
  void badRow(Command command, String what, Consumer<Steps.Row> spoil, String column) {
    Steps steps = Steps.small(1);
    spoil.accept(steps.steps.get(3).rows().get(2));
    String sequence = steps.steps.get(3).rows().get(2).id;
    steps.writeJob(job);
    steps.writeFile(input);

    assertFails(
        command, input + ", batch 3, ", "row 2", "sequence " + sequence, column, "expected");
  }

  @ParameterizedTest
  @EnumSource(Command.class)
  void badJobFile(Command command) throws IOException {
    Steps steps = Steps.small(2);
    steps.writeFile(input);
    Files.writeString(job, steps.job().replace("head_size: 64", "head_size: 65"));
    assertFails(command, job + ":3", "head_size", "expected", "65");

    Files.writeString(job, steps.job().replace("block_size", "blok_size"));
    assertFails(command, job + ":1", "blok_size");
  }

  @ParameterizedTest
  @EnumSource(Command.class)
  void wrongSchema(Command command) throws IOException {
    Steps steps = Steps.small(3);
    steps.writeFile(input);
    Files.writeString(job, steps.job().replace("num_heads: 4", "num_heads: 8"));
    assertFails(command, input + ", batch 0", "column query", "expected", "got");
  }

  @ParameterizedTest
  @EnumSource(Command.class)
  void unknownLayer(Command command) throws IOException {
    Steps steps = Steps.small(4);
    steps.writeFile(input);
    Files.writeString(job, steps.job().replace("layer.0", "layer.one"));
    assertFails(command, input + ", batch 0", "column layer", "'layer.one'", "'layer.0'");
  }

  /** The input, with a job, to be damaged. */
  private RandomAccessFile goodFile() throws IOException {
    Steps steps = Steps.small(5);
    steps.writeJob(job);
    steps.writeFile(input);
    return new RandomAccessFile(input.toFile(), "rw");
  }

  @ParameterizedTest
  @EnumSource(Command.class)
  void truncatedFile(Command command) throws IOException {
    try (RandomAccessFile file = goodFile()) {
      file.setLength(file.length() - 100);
    }
    assertFails(command, input.toString(), "truncated");

    output = temp.resolve("folder");
    assertFails(command, input.toString(), "truncated");
  }

  @ParameterizedTest
  @EnumSource(Command.class)
  void damagedFooter(Command command) throws IOException {
    try (RandomAccessFile file = goodFile()) {
      long end = file.length() - "ARROW1".length() - Integer.BYTES;
      file.seek(end);
      int length = Integer.reverseBytes(file.readInt());
      file.seek(end - length);
      file.writeInt(-1); // where the root of the footer is
    }
    assertFails(command, input + ": the footer is damaged: offsets in it are wrong");
  }

  @ParameterizedTest
  @EnumSource(Command.class)
  void truncatedStream(Command command) throws IOException {
    Steps steps = Steps.small(6);
    steps.writeJob(job);
    steps.writeStream(input);
    try (RandomAccessFile file = new RandomAccessFile(input.toFile(), "rw")) {
      file.setLength(file.length() / 2);
    }
    assertFails(command, input.toString(), "batch ", "truncated");
  }

  @ParameterizedTest
  @EnumSource(Command.class)
  void emptyFile(Command command) throws IOException {
    Steps.small(7).writeJob(job);
    Files.createFile(input);
    assertFails(command, input.toString(), "expected a schema");
  }

  @ParameterizedTest
  @EnumSource(Command.class)
  void notArrowAtAll(Command command) throws IOException {
    Steps.small(8).writeJob(job);
    Files.writeString(input, "sequence_id,query\n1,2\n");
    assertFails(command, input.toString(), "Arrow IPC");
  }

  @ParameterizedTest
  @EnumSource(Command.class)
  void noBatches(Command command) {
    Steps steps = Steps.small(9);
    steps.writeJob(job);
    steps.steps.clear();
    steps.writeStream(input);
    assertFails(command, input.toString(), "expected at least one record batch, got none");
  }

  @ParameterizedTest
  @EnumSource(Command.class)
  void missingInput(Command command) {
    Steps.small(10).writeJob(job);
    assertFails(command, "--input " + input + ": no such file or folder");
  }

  @ParameterizedTest
  @EnumSource(Command.class)
  void missingJob(Command command) {
    Steps.small(10).writeFile(input);
    job = temp.resolve("other.yaml");
    assertFails(command, "--job " + job + ": no such file or folder");
  }

  @ParameterizedTest
  @EnumSource(Command.class)
  void emptyFolder(Command command) throws IOException {
    Steps.small(11).writeJob(job);
    input = temp.resolve("steps");
    Files.createDirectory(input);
    assertFails(command, input.toString(), "expected");
  }

  /** What is told is what the command failed of. */
  @ParameterizedTest
  @EnumSource(Command.class)
  void rowsThatAreLeftOutHideNoFailure(Command command) throws IOException {
    Steps steps = Steps.small(1);
    steps.steps.get(0).rows().get(0).seqLen = -1;
    steps.writeJob(job);
    Path folder = Files.createDirectory(temp.resolve("steps"));
    steps.writeFile(folder.resolve("1.arrow"));
    Path otherType = folder.resolve("2.arrow");
    Steps.generate(1, DType.FLOAT16, 16, 64, steps.layers, 3, 4).writeFile(otherType);

    String name = command == Command.ATTEND ? "attend" : "run";
    Cli cli = Cli.command(name, job, folder, output, "--quiet", "--on-bad-row", "side-output");

    assertThat(cli.code()).isEqualTo(1);
    assertThat(cli.err().lines())
        .singleElement()
        .asString()
        .contains(otherType + ", batch 0", "column query: expected float32", "got float16");
  }

  @Test
  void theFirstBadBatchIsFoundAmongShardsToo() {
    Steps steps = Steps.generate(12, DType.FLOAT32, 16, 64, Steps.small(1).layers, 8, 6);
    steps.steps.get(2).rows().get(5).seqLen = -1;
    String sequence = steps.steps.get(2).rows().get(5).id;
    steps.writeJob(job);
    steps.writeFile(input);

    Cli cli = Cli.run(job, input, output, "--parallelism", 2, "--shards", 4);

    assertThat(cli.code()).isEqualTo(1);
    assertThat(cli.err().lines())
        .singleElement()
        .asString()
        .contains(input + ", batch 2, ", "row 5", "sequence " + sequence, "column seq_len");
    assertThat(output).doesNotExist();
  }

  @Test
  void aForkFromAnotherShardIsFound() throws IOException {
    Files.writeString(
        job,
        """
        kv_cache: {block_size: 16, num_blocks: 64}
        layers:
          - {name: a, num_heads: 2, num_kv_heads: 1, head_size: 32}
        """);
    Job parsed = JobFile.load(job);
    LayerSpec layer = parsed.layers().get(0);
    Scenario scenario = new Scenario(parsed, DType.FLOAT32, 1);
    ManagedRow parent = ManagedRow.of(scenario.next("parent", layer, 3));
    List<ManagedRow> children = new ArrayList<>();
    for (int i = 0; i < 8; i++) {
      StepRow row = scenario.next("child-" + i, layer, 2).withSeqLen(5);
      children.add(ManagedRow.of(row).forkedFrom("parent"));
    }
    Path folder = Files.createDirectory(temp.resolve("steps"));
    Path forks = folder.resolve("2.arrow");
    writeManaged(folder.resolve("1.arrow"), layer, List.of(parent));
    writeManaged(forks, layer, children);
    assertThat(Cli.run(job, folder, output).code()).isZero();

    Cli cli = Cli.run(job, folder, temp.resolve("other"), "--parallelism", 2, "--shards", 4);

    assertThat(cli.code()).isEqualTo(1);
    assertThat(cli.err().lines())
        .singleElement()
        .asString()
        .contains(forks + ", batch 0, ", "parent_sequence_id", "need the same sequence_group");
  }

  private static void writeManaged(Path file, LayerSpec layer, List<ManagedRow> rows)
      throws IOException {
    try (BufferAllocator allocator = Allocators.root();
        ArrowBatch batch = StepBatches.managed(allocator, layer, DType.FLOAT32, true, rows);
        ArrowBatchFileWriter writer =
            ArrowBatchFileWriter.create(file, Compression.NONE, allocator)) {
      writer.write(batch);
      writer.finish();
    }
  }

  @Test
  void whatOneSubtaskHasCommittedIsRemovedWhenAnotherFails() {
    Steps steps = Steps.generate(14, DType.FLOAT32, 16, 64, Steps.small(1).layers, 8, 200);
    steps.steps.get(199).rows().get(0).seqLen = -1;
    Steps.Step last = steps.steps.get(199);
    last.rows().removeIf(row -> row != last.rows().get(0));
    steps.writeJob(job);
    steps.writeFile(input);

    Cli cli = Cli.run(job, input, output, "--parallelism", 2, "--shards", 2);

    assertThat(cli.code()).isEqualTo(1);
    assertThat(cli.err()).contains(input + ", batch 199, ");
    assertThat(output).doesNotExist();
  }

  @Test
  void verbosePrintsTheStackTrace() {
    Steps steps = Steps.small(13);
    steps.steps.get(0).rows().get(0).seqLen = -1;
    steps.writeJob(job);
    steps.writeFile(input);

    Cli cli = Cli.attend(job, input, output, "--verbose");

    assertThat(cli.code()).isEqualTo(1);
    assertThat(cli.err()).contains("column seq_len").contains("\tat io.broadhead.");
  }
}
