// SPDX-License-Identifier: Apache-2.0
package io.broadhead.arrow;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import io.broadhead.testing.NoLeaks;
import io.broadhead.testing.StepBatchBuilder;
import java.io.ByteArrayInputStream;
import java.io.ByteArrayOutputStream;
import java.io.DataInputStream;
import java.io.DataOutputStream;
import java.io.EOFException;
import java.io.IOException;
import java.util.Arrays;
import org.apache.arrow.memory.BufferAllocator;
import org.apache.arrow.vector.VectorSchemaRoot;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.extension.ExtendWith;

@ExtendWith(NoLeaks.class)
class ArrowBatchCodecTest {
  private final ArrowBatchCodec codec = new ArrowBatchCodec();

  private static StepBatchBuilder step(BufferAllocator allocator, int rows) {
    return StepBatchBuilder.decoderStep(allocator, rows, 3, 20, 4, 2, 32, 16, DType.BFLOAT16);
  }

  private byte[] bytes(ArrowBatch batch) throws IOException {
    ByteArrayOutputStream out = new ByteArrayOutputStream();
    codec.write(batch, new DataOutputStream(out));
    return out.toByteArray();
  }

  private ArrowBatch read(byte[] bytes, BufferAllocator allocator) throws IOException {
    return codec.read(new DataInputStream(new ByteArrayInputStream(bytes)), allocator);
  }

  @Test
  void batchesComeBackEqualAndAligned(BufferAllocator allocator) throws IOException {
    for (int rows : new int[] {0, 1, 7, 200}) {
      try (ArrowBatch batch =
              step(allocator, rows).int64("note", row -> row % 3 == 0 ? null : 5L).build();
          ArrowBatch back = read(bytes(batch), allocator);
          VectorSchemaRoot expected = batch.toRoot(allocator);
          VectorSchemaRoot got = back.toRoot(allocator)) {
        assertThat(back.schema()).isSameAs(batch.schema());
        assertThat(back.isReceived()).isTrue();
        assertThat(back.bytesCopied()).isEqualTo(rows == 0 ? back.bytesCopied() : bodyOf(batch));
        assertThat(got.equals(expected)).isTrue();
        for (int b = 0; b < back.schema().bufferCount(); b++) {
          if (back.buffer(b).readableBytes() > 0) {
            assertThat(back.bufferAddress(b) % 64).isZero();
          }
        }
      }
    }
  }

  @Test
  void whoeverPassesAReceivedBatchOnIsItsCreator(BufferAllocator allocator) throws IOException {
    try (ArrowBatch batch = step(allocator, 5).build();
        ArrowBatch own = batch.take()) {
      assertThat(own).isSameAs(batch);
      ArrowBatch received = read(bytes(batch), allocator);
      try (ArrowBatch taken = received.take();
          VectorSchemaRoot expected = batch.toRoot(allocator);
          VectorSchemaRoot got = taken.toRoot(allocator)) {
        assertThat(received.isClosed()).isTrue();
        assertThat(taken.isReceived()).isFalse();
        assertThat(taken.bytesCopied()).isEqualTo(received.bytesCopied());
        assertThat(got.equals(expected)).isTrue();
      }
    }
  }

  private static long bodyOf(ArrowBatch batch) {
    long size = 0;
    for (int b = 0; b < batch.schema().bufferCount(); b++) {
      size += Allocators.roundUp(batch.buffer(b).readableBytes());
    }
    return size;
  }

  @Test
  void batchesFollowEachOtherInOneStream(BufferAllocator allocator) throws IOException {
    ByteArrayOutputStream out = new ByteArrayOutputStream();
    try (ArrowBatch first = step(allocator, 2).build();
        ArrowBatch second = step(allocator, 3).utf8("tag", row -> "t").build()) {
      for (ArrowBatch batch : new ArrowBatch[] {first, second, first}) {
        codec.write(batch, new DataOutputStream(out));
      }
    }
    ByteArrayOutputStream copied = new ByteArrayOutputStream();
    DataInputStream source = new DataInputStream(new ByteArrayInputStream(out.toByteArray()));
    for (int i = 0; i < 3; i++) {
      codec.copy(source, new DataOutputStream(copied));
    }
    assertThat(copied.toByteArray()).isEqualTo(out.toByteArray());
    DataInputStream in = new DataInputStream(new ByteArrayInputStream(copied.toByteArray()));
    for (int rows : new int[] {2, 3, 2}) {
      try (ArrowBatch batch = codec.read(in, allocator)) {
        assertThat(batch.numRows()).isEqualTo(rows);
      }
    }
    assertThat(in.read()).isEqualTo(-1);
  }

  @Test
  void otherVersionsAreRefused(BufferAllocator allocator) throws IOException {
    try (ArrowBatch batch = step(allocator, 2).build()) {
      byte[] bytes = bytes(batch);
      assertThat(bytes[0]).isEqualTo((byte) 1);
      bytes[0] = 9;
      assertThatThrownBy(() -> read(bytes, allocator))
          .isInstanceOf(MalformedArrowException.class)
          .hasMessage("batch bytes: expected version 1, got 9");
    }
  }

  @Test
  void truncatedBytesFailWithoutALeak(BufferAllocator allocator) throws IOException {
    try (ArrowBatch batch = step(allocator, 2).build()) {
      byte[] bytes = bytes(batch);
      for (int length = 0; length < bytes.length; length += 97) {
        byte[] part = Arrays.copyOf(bytes, length);
        assertThatThrownBy(() -> read(part, allocator))
            .isInstanceOfAny(EOFException.class, MalformedArrowException.class);
      }
    }
  }
}
