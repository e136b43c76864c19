// SPDX-License-Identifier: Apache-2.0
package io.broadhead.arrow;

import static java.nio.charset.StandardCharsets.UTF_8;
import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import io.broadhead.testing.NoLeaks;
import io.broadhead.testing.StepBatchBuilder;
import java.io.ByteArrayInputStream;
import java.io.ByteArrayOutputStream;
import java.io.IOException;
import java.io.OutputStream;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.channels.Channels;
import java.nio.file.FileSystemException;
import java.nio.file.Files;
import java.nio.file.NoSuchFileException;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Random;
import java.util.stream.IntStream;
import java.util.stream.Stream;
import org.apache.arrow.compression.CommonsCompressionFactory;
import org.apache.arrow.memory.BufferAllocator;
import org.apache.arrow.memory.OutOfMemoryException;
import org.apache.arrow.vector.VectorSchemaRoot;
import org.apache.arrow.vector.compression.CompressionUtil.CodecType;
import org.apache.arrow.vector.compression.NoCompressionCodec;
import org.apache.arrow.vector.ipc.ArrowFileReader;
import org.apache.arrow.vector.ipc.ArrowStreamWriter;
import org.apache.arrow.vector.ipc.message.IpcOption;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.extension.ExtendWith;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.EnumSource;

@ExtendWith(NoLeaks.class)
class IpcFilesTest {
  @TempDir Path folder;

  private static StepBatchBuilder step(BufferAllocator allocator, int rows) {
    return StepBatchBuilder.decoderStep(allocator, rows, 2, 20, 4, 2, 32, 16, DType.FLOAT16)
        .int64("note", row -> row % 2 == 0 ? null : (long) row);
  }

  private Path write(String name, Compression compression, BufferAllocator allocator, int... rows)
      throws IOException {
    Path path = folder.resolve(name);
    try (ArrowBatchFileWriter writer = ArrowBatchFileWriter.create(path, compression, allocator)) {
      for (int count : rows) {
        try (ArrowBatch batch = step(allocator, count).build()) {
          writer.write(batch);
        }
      }
      writer.finish();
    }
    return path;
  }

  private static void expectStep(ArrowBatch batch, int rows, BufferAllocator allocator) {
    try (VectorSchemaRoot expected = step(allocator, rows).root();
        VectorSchemaRoot got = batch.toRoot(allocator)) {
      assertThat(got.equals(expected)).isTrue();
    }
  }

  @ParameterizedTest
  @EnumSource(Compression.class)
  void writtenFilesAreReadBack(Compression compression, BufferAllocator allocator)
      throws IOException {
    int[] rows = {3, 0, 40};
    Path path = write("steps.arrow", compression, allocator, rows);
    assertThat(ArrowFile.isFile(path)).isTrue();
    try (ArrowFile file = ArrowFile.open(path, allocator)) {
      assertThat(file.batchCount()).isEqualTo(3);
      for (int i : new int[] {2, 0, 1}) {
        try (ArrowBatch batch = file.read(i)) {
          expectStep(batch, rows[i], allocator);
          assertThat(batch.bytesCopied() == 0)
              .isEqualTo(compression == Compression.NONE || rows[i] == 0);
        }
      }
      assertThat(file.blockOffset(1)).isEqualTo(file.blockOffset(0) + file.blockLength(0));
      assertThatThrownBy(() -> file.read(3)).isInstanceOf(IndexOutOfBoundsException.class);
    }
  }

  @Test
  void gatheredPiecesAndLargeOnesKeepTheirOrder(BufferAllocator allocator) throws IOException {
    int[] rows = IntStream.range(0, 130).toArray(); // queries of 0 to 33 KiB
    Path path = write("steps.arrow", Compression.NONE, allocator, rows);
    try (ArrowFile file = ArrowFile.open(path, allocator)) {
      for (int i : rows) {
        try (ArrowBatch batch = file.read(i)) {
          expectStep(batch, i, allocator);
        }
      }
    }
  }

  @Test
  void batchesThatAreAlikeButForTheirNullsAreReadBack(BufferAllocator allocator)
      throws IOException {
    Path path = folder.resolve("nulls.arrow");
    int[] rowsWithNulls = {0, 1, 1, 2, 2, 0};
    try (ArrowBatchFileWriter writer =
        ArrowBatchFileWriter.create(path, Compression.NONE, allocator)) {
      for (int nulls : rowsWithNulls) {
        try (ArrowBatch batch =
            new StepBatchBuilder(allocator, 3)
                .int64("note", row -> row < nulls ? null : (long) row)
                .build()) {
          writer.write(batch);
        }
      }
      writer.finish();
    }
    try (ArrowFile file = ArrowFile.open(path, allocator)) {
      for (int i = 0; i < rowsWithNulls.length; i++) {
        try (ArrowBatch batch = file.read(i)) {
          assertThat(batch.column("note").nullCount()).isEqualTo(rowsWithNulls[i]);
          assertThat(batch.column("note").isNull(0)).isEqualTo(rowsWithNulls[i] > 0);
        }
      }
    }
  }

  @ParameterizedTest
  @EnumSource(Compression.class)
  void arrowsOwnReaderAgrees(Compression compression, BufferAllocator allocator)
      throws IOException {
    Path path = write("steps.arrow", compression, allocator, 3, 5);
    try (var channel = Files.newByteChannel(path);
        ArrowFileReader reader =
            new ArrowFileReader(channel, allocator, CommonsCompressionFactory.INSTANCE)) {
      assertThat(reader.getRecordBlocks()).hasSize(2);
      for (int rows : new int[] {3, 5}) {
        assertThat(reader.loadNextBatch()).isTrue();
        try (VectorSchemaRoot expected = step(allocator, rows).root()) {
          assertThat(reader.getVectorSchemaRoot().equals(expected)).isTrue();
        }
      }
    }
  }

  @Test
  void mappedBatchesAreAlignedSlicesOfTheFile(BufferAllocator allocator) throws IOException {
    Path path = write("steps.arrow", Compression.NONE, allocator, 3, 5);
    ArrowBatch kept;
    try (ArrowFile file = ArrowFile.open(path, allocator)) {
      kept = file.read(1);
      assertThat(kept.bytesCopied()).isZero();
      for (int b = 0; b < kept.schema().bufferCount(); b++) {
        if (kept.buffer(b).readableBytes() > 0) {
          assertThat(file.isMapped(kept.bufferAddress(b))).isTrue();
          assertThat(kept.bufferAddress(b) % 64).isZero();
        }
      }
    }
    // The mapping lives as long as the batch.
    try (kept) {
      expectStep(kept, 5, allocator);
    }
  }

  @Test
  void filesLargerThanAWindow(BufferAllocator allocator) throws IOException {
    Path path = write("steps.arrow", Compression.NONE, allocator, 3, 1, 8, 2, 5);
    for (long window : new long[] {1, 5000, 10_000}) {
      try (ArrowFile file = ArrowFile.open(path, allocator, window);
          ArrowBatch first = file.read(0)) {
        int index = 0;
        for (int rows : new int[] {3, 1, 8, 2, 5}) {
          try (ArrowBatch batch = file.read(index++)) {
            expectStep(batch, rows, allocator);
          }
        }
        expectStep(first, 3, allocator);
      }
    }
  }

  @ParameterizedTest
  @EnumSource(Compression.class)
  void streamsOfArrowsOwnWriter(Compression compression, BufferAllocator allocator)
      throws IOException {
    byte[] bytes = stream(compression, allocator);
    try (ArrowStreamBatches batches =
        new ArrowStreamBatches("test", new ByteArrayInputStream(bytes), allocator)) {
      assertThat(batches.index()).isEqualTo(-1);
      for (int rows : new int[] {4, 4}) {
        try (ArrowBatch batch = batches.next()) {
          expectStep(batch, rows, allocator);
          assertThat(batch.bytesCopied()).isPositive();
        }
      }
      assertThat(batches.next()).isNull();
      assertThat(batches.index()).isEqualTo(1);
    }
  }

  private static byte[] stream(Compression compression, BufferAllocator allocator)
      throws IOException {
    ByteArrayOutputStream out = new ByteArrayOutputStream();
    try (VectorSchemaRoot root = step(allocator, 4).root();
        ArrowStreamWriter writer =
            compression == Compression.NONE
                ? new ArrowStreamWriter(
                    root,
                    null,
                    Channels.newChannel(out),
                    IpcOption.DEFAULT,
                    NoCompressionCodec.Factory.INSTANCE,
                    CodecType.NO_COMPRESSION)
                : new ArrowStreamWriter(
                    root,
                    null,
                    Channels.newChannel(out),
                    IpcOption.DEFAULT,
                    CommonsCompressionFactory.INSTANCE,
                    compression == Compression.LZ4 ? CodecType.LZ4_FRAME : CodecType.ZSTD)) {
      writer.start();
      writer.writeBatch();
      writer.writeBatch();
      writer.end();
    }
    return out.toByteArray();
  }

  @Test
  void otherFormatsAreNoStreams(BufferAllocator allocator) {
    byte[] gzip = {0x1f, (byte) 0x8b, 8, 8, 0, 0, 0, 0, 0, 3};
    for (byte[] bytes : List.of("PAR1 and more".getBytes(UTF_8), gzip)) {
      assertThatThrownBy(
              () ->
                  new ArrowStreamBatches("other", new ByteArrayInputStream(bytes), allocator)
                      .close())
          .isInstanceOf(MalformedArrowException.class)
          .hasMessageStartingWith("other: neither an Arrow IPC file nor a stream")
          .hasMessageContaining("expected the length of a message");
    }
  }

  @Test
  void metadataThatIsNoTextIsToldAsDamage(BufferAllocator allocator) throws IOException {
    byte[] bytes = stream(Compression.NONE, allocator);
    byte[] name = StepColumns.SEQUENCE_ID.getBytes(UTF_8);
    for (int at = 0; at < bytes.length - name.length; at++) {
      if (Arrays.equals(bytes, at, at + name.length, name, 0, name.length)) {
        bytes[at] = (byte) 0xff;
      }
    }
    assertThatThrownBy(
            () -> new ArrowStreamBatches("x", new ByteArrayInputStream(bytes), allocator).close())
        .isInstanceOf(MalformedArrowException.class)
        .hasMessageContainingAll("x: the message metadata is damaged", "UTF-8");
  }

  @Test
  void truncatedStreamsSayWhere(BufferAllocator allocator) throws IOException {
    byte[] bytes = stream(Compression.NONE, allocator);
    for (int length = 1; length < bytes.length - 8; length += 61) {
      byte[] part = Arrays.copyOf(bytes, length);
      boolean[] ended = {false};
      assertThatThrownBy(
              () -> {
                try (ArrowStreamBatches batches =
                    new ArrowStreamBatches(
                        "part.arrows", new ByteArrayInputStream(part), allocator)) {
                  for (ArrowBatch b = batches.next(); b != null; b = batches.next()) {
                    b.close();
                  }
                  ended[0] = true;
                }
                if (ended[0]) {
                  throw new MalformedArrowException("part.arrows ended between two messages");
                }
              })
          .isInstanceOf(MalformedArrowException.class)
          .hasMessageContaining("part.arrows");
    }
  }

  @Test
  void truncatedFilesSayHow(BufferAllocator allocator) throws IOException {
    byte[] bytes = Files.readAllBytes(write("whole.arrow", Compression.NONE, allocator, 3));
    for (int length : new int[] {0, 3, 7, 12, 17, 1000, bytes.length - 1}) {
      Path path = Files.write(folder.resolve("part.arrow"), Arrays.copyOf(bytes, length));
      assertThatThrownBy(() -> ArrowFile.open(path, allocator))
          .isInstanceOf(MalformedArrowException.class)
          .hasMessageContaining("part.arrow")
          .hasMessageContaining(length < 6 ? "expected an Arrow IPC file" : "truncated");
    }
  }

  @Test
  void absurdDecompressedSizesAreRefused(BufferAllocator allocator) throws IOException {
    byte[] bytes = Files.readAllBytes(write("whole.arrow", Compression.ZSTD, allocator, 64));
    ByteBuffer file = ByteBuffer.wrap(bytes).order(ByteOrder.LITTLE_ENDIAN);
    for (int at = 0; at < bytes.length - 8; at += 8) {
      if (file.getLong(at) == 64 * Long.BYTES && file.getInt(at + 8) == 0xFD2FB528) {
        file.putLong(at, Long.MAX_VALUE); // before a ZSTD frame
      }
    }
    Path path = Files.write(folder.resolve("absurd.arrow"), bytes);
    try (ArrowFile absurd = ArrowFile.open(path, allocator)) {
      assertThatThrownBy(() -> absurd.read(0))
          .isInstanceOf(MalformedArrowException.class)
          .hasMessageContainingAll(
              "absurd.arrow", "no memory for " + Long.MAX_VALUE + " decompressed bytes");
    }
  }

  @ParameterizedTest
  @EnumSource(Compression.class)
  void damagedFilesNeverDoWorseThanAnIoException(Compression compression, BufferAllocator allocator)
      throws IOException {
    byte[] bytes = Files.readAllBytes(write("whole.arrow", compression, allocator, 3, 5));
    Random random = new Random(11);
    Path path = folder.resolve("damaged.arrow");
    int refused = 0;
    for (int i = 0; i < 600; i++) {
      byte[] damaged = bytes.clone();
      int hits = 1 + random.nextInt(4);
      for (int hit = 0; hit < hits; hit++) {
        damaged[random.nextInt(damaged.length)] = (byte) random.nextInt(256);
      }
      Files.write(path, damaged);
      try (ArrowFile file = ArrowFile.open(path, allocator)) {
        for (int b = 0; b < file.batchCount(); b++) {
          file.read(b).close();
        }
      } catch (IOException e) {
        assertThat(e).hasMessageContaining("damaged.arrow");
        assertThat(e.getMessage()).as("what a user reads").doesNotContain("java.", "Exception");
        refused++;
      }
      assertThat(allocator.getAllocatedMemory()).isZero();
    }
    assertThat(refused).isPositive();
  }

  @Test
  void unfinishedFilesDoNotAppear(BufferAllocator allocator) throws IOException {
    Path path = folder.resolve("steps.arrow");
    try (ArrowBatchFileWriter writer =
            ArrowBatchFileWriter.create(path, Compression.NONE, allocator);
        ArrowBatch batch = step(allocator, 2).build()) {
      writer.write(batch);
      assertThat(path).doesNotExist();
      assertThat(names()).singleElement().asString().startsWith("steps.arrow.tmp-");
    }
    assertThat(names()).isEmpty();
  }

  private List<String> names() throws IOException {
    try (Stream<Path> entries = Files.list(folder)) {
      return entries.map(entry -> entry.getFileName().toString()).sorted().toList();
    }
  }

  @Test
  void anotherSchemaIsRefused(BufferAllocator allocator) throws IOException {
    try (ArrowBatchFileWriter writer =
            ArrowBatchFileWriter.to(
                OutputStream.nullOutputStream(), "none", Compression.NONE, allocator);
        ArrowBatch batch = step(allocator, 2).build();
        ArrowBatch other = step(allocator, 2).utf8("tag", row -> "t").build()) {
      writer.write(batch);
      assertThatThrownBy(() -> writer.write(other))
          .isInstanceOf(IllegalArgumentException.class)
          .hasMessageContaining("batch 1")
          .hasMessageContaining("tag");
    }
  }

  @Test
  void aFullDiskIsToldWithTheFile(BufferAllocator allocator) throws IOException {
    try (OutputStream disk = Files.newOutputStream(Path.of("/dev/full"));
        ArrowBatchFileWriter writer =
            ArrowBatchFileWriter.to(disk, "out.arrow", Compression.NONE, allocator);
        ArrowBatch batch = step(allocator, 2).build()) {
      writer.write(batch);
      assertThatThrownBy(writer::finish)
          .isInstanceOf(FileSystemException.class)
          .hasMessage("out.arrow: No space left on device");
    }
  }

  /** The batch is the caller's alone then, and its memory is free when it is closed. */
  @ParameterizedTest
  @EnumSource(
      value = Compression.class,
      names = {"LZ4", "ZSTD"})
  void noMemoryToCompressLeavesNothingBehind(Compression compression, BufferAllocator allocator)
      throws IOException {
    try (BufferAllocator little = allocator.newChildAllocator("little", 0, 100);
        ArrowBatchFileWriter writer =
            ArrowBatchFileWriter.create(folder.resolve("little.arrow"), compression, little);
        ArrowBatch batch = step(allocator, 8).build()) {
      assertThatThrownBy(() -> writer.write(batch)).isInstanceOf(OutOfMemoryException.class);
    }
    assertThat(allocator.getAllocatedMemory()).isZero();
  }

  @Test
  void filesWithoutBatches(BufferAllocator allocator) throws IOException {
    Path path = folder.resolve("empty.arrow");
    BatchSchema schema = BatchSchema.of(TensorField.list("query", DType.FLOAT16, 2, 4));
    try (ArrowBatchFileWriter writer =
        ArrowBatchFileWriter.create(path, Compression.ZSTD, allocator)) {
      writer.start(schema);
      writer.finish();
    }
    try (ArrowFile file = ArrowFile.open(path, allocator)) {
      assertThat(file.batchCount()).isZero();
      assertThat(file.schema()).isSameAs(schema);
    }
  }

  @Test
  void foldersAreReadInTheOrderOfNames(BufferAllocator allocator) throws IOException {
    write("b.arrow", Compression.NONE, allocator, 1, 2);
    write("c.arrow", Compression.ZSTD, allocator, 3);
    Files.write(folder.resolve("a.arrows"), stream(Compression.NONE, allocator));
    Files.write(folder.resolve("_SUCCESS"), new byte[0]);
    Files.write(folder.resolve(".hidden"), new byte[0]);
    Files.write(folder.resolve("d.arrow.tmp-1"), new byte[0]);
    List<String> origins = new ArrayList<>();
    try (StepInput input = StepInput.open(folder, allocator)) {
      for (ArrowBatch batch = input.next(); batch != null; batch = input.next()) {
        origins.add(
            input.origin().file().getFileName()
                + " "
                + input.origin().batch()
                + " "
                + batch.numRows());
        batch.close();
      }
    }
    assertThat(origins)
        .containsExactly(
            "a.arrows 0 4", "a.arrows 1 4", "b.arrow 0 1", "b.arrow 1 2", "c.arrow 0 3");
    assertThatThrownBy(() -> StepInput.open(folder.resolve("missing"), allocator))
        .isInstanceOf(NoSuchFileException.class)
        .hasMessageContaining("missing");
  }
}
