// SPDX-License-Identifier: Apache-2.0
package io.broadhead.job.source;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import io.broadhead.arrow.ArrowBatch;
import io.broadhead.arrow.ArrowFile;
import io.broadhead.arrow.Compression;
import io.broadhead.attention.testing.NoLeaks;
import io.broadhead.job.Steps;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardCopyOption;
import java.nio.file.StandardOpenOption;
import java.util.ArrayList;
import java.util.Collections;
import java.util.List;
import java.util.stream.LongStream;
import org.apache.flink.configuration.Configuration;
import org.apache.flink.connector.file.src.FileSourceSplit;
import org.apache.flink.connector.file.src.FileSourceSplitSerializer;
import org.apache.flink.connector.file.src.reader.BulkFormat;
import org.apache.flink.connector.file.src.util.CheckpointedPosition;
import org.apache.flink.connector.file.src.util.RecordAndPosition;
import org.apache.flink.metrics.SimpleCounter;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.extension.ExtendWith;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.EnumSource;
import org.junit.jupiter.params.provider.ValueSource;

@ExtendWith(NoLeaks.class)
class ArrowIpcFormatTest {
  @TempDir Path temp;

  private final Steps steps = Steps.small(11);

  /** What identifies a batch: its row count and the tokens of its first sequence. */
  private static String describe(ArrowBatch batch) {
    return batch.numRows() + "/" + batch.column("request").getLong(0);
  }

  private List<String> expected() {
    return steps.steps.stream()
        .map(step -> step.rows().size() + "/" + step.rows().get(0).seqLen * 10L)
        .toList();
  }

  private static List<FileSourceSplit> splits(Path file, long bytes) throws IOException {
    return new ArrayList<>(
        new StepFileEnumerator(bytes)
            .enumerateSplits(
                new org.apache.flink.core.fs.Path[] {
                  new org.apache.flink.core.fs.Path(file.toUri())
                },
                1));
  }

  /** Reads up to {@code limit} batches; the position behind the last goes to {@code position}. */
  private static List<String> read(
      ArrowIpcFormat format, FileSourceSplit split, int limit, List<CheckpointedPosition> position)
      throws IOException {
    List<String> batches = new ArrayList<>();
    Configuration none = new Configuration();
    try (BulkFormat.Reader<ArrowBatch> reader =
        split.getReaderPosition().isPresent()
            ? format.restoreReader(none, split)
            : format.createReader(none, split)) {
      while (batches.size() < limit) {
        BulkFormat.RecordIterator<ArrowBatch> iterator = reader.readBatch();
        if (iterator == null) {
          break;
        }
        RecordAndPosition<ArrowBatch> record;
        while (batches.size() < limit && (record = iterator.next()) != null) {
          batches.add(describe(record.getRecord()));
          position.add(new CheckpointedPosition(record.getOffset(), record.getRecordSkipCount()));
        }
        iterator.releaseBatch();
      }
    }
    return batches;
  }

  @ParameterizedTest
  @ValueSource(longs = {700, 5_000, 20_000, 100_000, Long.MAX_VALUE})
  void splitsOfAnySizeTogetherGiveEveryBatchOnceAndInOrder(long bytes) throws IOException {
    Path file = steps.writeFile(temp.resolve("steps.arrow"));
    List<String> batches = new ArrayList<>();
    try (SourceMemory memory = new SourceMemory(new SimpleCounter())) {
      ArrowIpcFormat format = new ArrowIpcFormat(memory, new FetcherThreads());
      for (FileSourceSplit split : splits(file, bytes)) {
        batches.addAll(read(format, split, Integer.MAX_VALUE, new ArrayList<>()));
      }
    }
    assertThat(batches).containsExactlyElementsOf(expected());
  }

  @Test
  void aBatchIsOfTheRangeThatItBeginsIn() throws IOException {
    Path file = steps.writeFile(temp.resolve("steps.arrow"));
    try (SourceMemory memory = new SourceMemory(new SimpleCounter());
        ArrowFile open = ArrowFile.open(file, memory.allocator())) {
      List<FileSourceSplit> ranges = splits(file, open.blockOffset(2));
      ArrowIpcFormat format = new ArrowIpcFormat(memory, new FetcherThreads());
      assertThat(read(format, ranges.get(0), Integer.MAX_VALUE, new ArrayList<>()))
          .containsExactlyElementsOf(expected().subList(0, 2));
      assertThat(read(format, ranges.get(1), 1, new ArrayList<>()))
          .containsExactly(expected().get(2));
    }
  }

  @Test
  void positionsGoOnFromOneHandOverToTheNext() throws IOException {
    List<Steps.Step> many =
        Collections.nCopies(100, steps.steps).stream().flatMap(List::stream).toList();
    Path file = steps.writeFile(temp.resolve("steps.arrow"), Compression.NONE, many);
    List<CheckpointedPosition> positions = new ArrayList<>();
    try (SourceMemory memory = new SourceMemory(new SimpleCounter())) {
      FileSourceSplit whole = splits(file, Long.MAX_VALUE).get(0);
      ArrowIpcFormat format = new ArrowIpcFormat(memory, new FetcherThreads());
      read(format, whole, Integer.MAX_VALUE, positions);
    }
    assertThat(positions)
        .extracting(CheckpointedPosition::getRecordsAfterOffset)
        .containsExactlyElementsOf(LongStream.rangeClosed(1, many.size()).boxed().toList());
  }

  private enum Form {
    FILE,
    COMPRESSED,
    STREAM
  }

  @ParameterizedTest
  @EnumSource(Form.class)
  void aRestoredReaderGoesOnBehindTheLastEmittedBatch(Form form) throws IOException {
    Path file =
        switch (form) {
          case FILE -> steps.writeFile(temp.resolve("steps.arrow"));
          case COMPRESSED ->
              steps.writeFile(temp.resolve("steps.arrow"), Compression.ZSTD, steps.steps);
          case STREAM -> steps.writeStream(temp.resolve("steps.arrows"));
        };
    for (int before = 1; before <= steps.steps.size(); before++) {
      List<CheckpointedPosition> positions = new ArrayList<>();
      List<String> batches;
      try (SourceMemory memory = new SourceMemory(new SimpleCounter())) {
        FileSourceSplit split = splits(file, Long.MAX_VALUE).get(0);
        batches = read(new ArrowIpcFormat(memory, new FetcherThreads()), split, before, positions);
        FileSourceSplit checkpointed =
            split.updateWithCheckpointedPosition(positions.get(before - 1));
        FileSourceSplit restored =
            FileSourceSplitSerializer.INSTANCE.deserialize(
                FileSourceSplitSerializer.INSTANCE.getVersion(),
                FileSourceSplitSerializer.INSTANCE.serialize(checkpointed));
        batches.addAll(
            read(
                new ArrowIpcFormat(memory, new FetcherThreads()),
                restored,
                Integer.MAX_VALUE,
                new ArrayList<>()));
      }
      assertThat(batches).containsExactlyElementsOf(expected());
    }
  }

  /** As when a file is corrected in its place while the job waits, or fails at it. */
  @Test
  void ofAFileThatWasReplacedEveryBatchIsReadOrNone() throws IOException {
    Path file = steps.writeFile(temp.resolve("steps.arrow"));
    List<FileSourceSplit> ranges = splits(file, 10_000);
    Path shorter =
        steps.writeFile(temp.resolve("s.arrow"), Compression.NONE, steps.steps.subList(0, 2));
    FileSourceSplit whole = splits(shorter, Long.MAX_VALUE).get(0);
    Files.copy(file, shorter, StandardCopyOption.REPLACE_EXISTING);
    Files.write(file, new byte[8], StandardOpenOption.APPEND);
    try (SourceMemory memory = new SourceMemory(new SimpleCounter())) {
      ArrowIpcFormat format = new ArrowIpcFormat(memory, new FetcherThreads());
      List<CheckpointedPosition> positions = new ArrayList<>();

      assertThat(read(format, whole, Integer.MAX_VALUE, positions))
          .containsExactlyElementsOf(expected());

      assertThatThrownBy(() -> read(format, ranges.get(1), 1, new ArrayList<>()))
          .hasMessageContaining("steps.arrow: expected ")
          .hasMessageContaining("it is read in ranges");

      FileSourceSplit atItsEnd =
          whole.updateWithCheckpointedPosition(positions.get(positions.size() - 1));
      steps.writeFile(shorter, Compression.NONE, steps.steps.subList(0, 2));
      assertThatThrownBy(() -> read(format, atItsEnd, 1, new ArrayList<>()))
          .hasMessageContaining("s.arrow has become shorter since the checkpoint");
    }
  }

  @Test
  void smallBatchesOfAnUncompressedFileAreHandedOverTogetherAndReleasedOneByOne()
      throws IOException {
    Path file = steps.writeFile(temp.resolve("steps.arrow"));
    try (SourceMemory memory = new SourceMemory(new SimpleCounter());
        BulkFormat.Reader<ArrowBatch> reader =
            new ArrowIpcFormat(memory, new FetcherThreads())
                .createReader(new Configuration(), splits(file, Long.MAX_VALUE).get(0))) {
      BulkFormat.RecordIterator<ArrowBatch> iterator = reader.readBatch();
      ArrowBatch first = iterator.next().getRecord();
      assertThat(first.bytesCopied()).isZero();
      ArrowBatch second = iterator.next().getRecord();
      assertThat(first.isClosed()).isTrue();
      assertThat(second.isClosed()).isFalse();
      iterator.releaseBatch();
      assertThat(second.isClosed()).isTrue();
    }
  }

  @Test
  void whatACancelledTaskDropsIsReleased() throws IOException {
    Path file = steps.writeFile(temp.resolve("steps.arrow"));
    FileSourceSplit split = splits(file, Long.MAX_VALUE).get(0);
    SourceMemory memory = new SourceMemory(new SimpleCounter());
    ArrowIpcFormat format = new ArrowIpcFormat(memory, new FetcherThreads());
    try (BulkFormat.Reader<ArrowBatch> reader = format.createReader(new Configuration(), split);
        BulkFormat.Reader<ArrowBatch> late = format.createReader(new Configuration(), split)) {
      ArrowBatch taken = reader.readBatch().next().getRecord();

      memory.close();

      assertThatThrownBy(() -> taken.column("request").getLong(0))
          .isInstanceOf(IllegalStateException.class);
      assertThatThrownBy(late::readBatch).hasMessageContaining("closed");
    }
  }
}
