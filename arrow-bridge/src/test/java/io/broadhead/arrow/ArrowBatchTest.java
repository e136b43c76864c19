// SPDX-License-Identifier: Apache-2.0
package io.broadhead.arrow;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import io.broadhead.testing.NoLeaks;
import io.broadhead.testing.StepBatchBuilder;
import org.apache.arrow.memory.ArrowBuf;
import org.apache.arrow.memory.BufferAllocator;
import org.apache.arrow.vector.VectorSchemaRoot;
import org.apache.arrow.vector.types.pojo.ArrowType;
import org.apache.arrow.vector.types.pojo.Field;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.extension.ExtendWith;

@ExtendWith(NoLeaks.class)
class ArrowBatchTest {
  private static StepBatchBuilder rows(BufferAllocator allocator) {
    return new StepBatchBuilder(allocator, 3)
        .utf8("sequence_id", row -> "s" + row)
        .tensors("query", DType.FLOAT32, new int[] {2}, new float[2], new float[0], new float[4])
        .int64("note", row -> row == 1 ? null : (long) row);
  }

  @Test
  void sharesTheRootsBuffers(BufferAllocator allocator) {
    try (VectorSchemaRoot root = rows(allocator).root();
        ArrowBatch batch = ArrowBatch.of(root)) {
      assertThat(batch.bytesCopied()).isZero();
      assertThat(batch.isReceived()).isFalse();
      assertThat(batch.bufferAddress(batch.schema().firstBuffer(2) + 1))
          .isEqualTo(root.getVector("note").getDataBuffer().memoryAddress());
      try (VectorSchemaRoot back = batch.toRoot(allocator)) {
        assertThat(back.equals(root)).isTrue();
        assertThat(back.getVector("note").getDataBuffer().memoryAddress())
            .isEqualTo(root.getVector("note").getDataBuffer().memoryAddress());
      }
    }
  }

  @Test
  void buffersGoWithTheLastReference(BufferAllocator allocator) {
    ArrowBatch batch = rows(allocator).build();
    assertThat(batch.retain()).isSameAs(batch);
    batch.close();
    assertThat(batch.isClosed()).isFalse();
    assertThat(allocator.getAllocatedMemory()).isPositive();
    batch.close();
    assertThat(batch.isClosed()).isTrue();
    assertThat(allocator.getAllocatedMemory()).isZero();
    assertThatThrownBy(() -> batch.buffer(0)).isInstanceOf(IllegalStateException.class);
    assertThatThrownBy(batch::retain).isInstanceOf(IllegalStateException.class);
    assertThatThrownBy(batch::close).isInstanceOf(IllegalStateException.class);
  }

  @Test
  void everyReferenceIsGivenBackInWhateverOrderBuffersAre(BufferAllocator allocator) {
    ArrowBuf first = allocator.buffer(64);
    ArrowBuf second = allocator.buffer(64);
    first.getReferenceManager().retain(3);
    ArrowBuf empty = allocator.getEmpty();
    ArrowBatch.release(new ArrowBuf[] {first, first, second, null, empty, first});
    assertThat(second.refCnt()).isZero();
    assertThat(first.refCnt()).isOne();
    ArrowBatch.release(new ArrowBuf[] {null, first});
    assertThat(allocator.getAllocatedMemory()).isZero();
  }

  @Test
  void columnsReadValues(BufferAllocator allocator) {
    try (ArrowBatch batch =
        rows(allocator)
            .int32("seq_len", 5, -6, 7)
            .bool("end_of_sequence", row -> row == 2)
            .build()) {
      assertThat(batch.column("sequence_id").getString(1)).isEqualTo("s1");
      assertThat(batch.column("seq_len").getInt(1)).isEqualTo(-6);
      assertThat(batch.column("seq_len").getLong(1)).isEqualTo(-6);
      assertThat(batch.column("end_of_sequence").getBoolean(1)).isFalse();
      assertThat(batch.column("end_of_sequence").getBoolean(2)).isTrue();
      assertThat(batch.column("note").isNull(1)).isTrue();
      assertThat(batch.column("note").nullCount()).isOne();
      assertThat(batch.column("query").listSize(2)).isEqualTo(2);
      assertThat(batch.column("query").child().length()).isEqualTo(3);
      assertThat(batch.byteSize()).isPositive();
      assertThatThrownBy(() -> batch.column("key"))
          .isInstanceOf(IllegalArgumentException.class)
          .hasMessageContaining("column key")
          .hasMessageContaining("sequence_id");
    }
  }

  @Test
  void joinPutsColumnsSideBySide(BufferAllocator allocator) {
    try (ArrowBatch left = rows(allocator).build();
        ArrowBatch right = new StepBatchBuilder(allocator, 3).int32("seq_len", 1, 2, 3).build();
        ArrowBatch both = ArrowBatch.join(left.schema().join(right.schema()), left, right)) {
      assertThat(both.schema().columnCount()).isEqualTo(4);
      assertThat(both.column("seq_len").getInt(2)).isEqualTo(3);
      assertThat(both.column("sequence_id").values().memoryAddress())
          .isEqualTo(left.column("sequence_id").values().memoryAddress());
    }
  }

  @Test
  void shortBuffersAreNamed(BufferAllocator allocator) {
    BatchSchema schema =
        BatchSchema.of(
            Field.notNullable("seq_len", new ArrowType.Int(32, true)),
            TensorField.list("query", DType.FLOAT16, 4));
    long[] nulls = new long[4];
    // Two rows: 8 bytes of lengths, 12 of offsets, three tensors of 8 bytes.
    check(allocator, schema, 2, new long[] {2, 2, 3, 12}, nulls, 0, 8, 0, 12, 0, 0, 24);
    refused(
        "column seq_len: expected at least 8 bytes in buffer 1 for 2 elements, got 4",
        () -> check(allocator, schema, 2, new long[] {2, 2, 3, 12}, nulls, 0, 4, 0, 12, 0, 0, 24));
    refused(
        "column query: expected at least 12 bytes in buffer 1 for 2 elements, got 8",
        () -> check(allocator, schema, 2, new long[] {2, 2, 3, 12}, nulls, 0, 8, 0, 8, 0, 0, 24));
    refused(
        "column query.item.item: expected at least 24 bytes in buffer 1 for 12 elements, got 16",
        () -> check(allocator, schema, 2, new long[] {2, 2, 3, 12}, nulls, 0, 8, 0, 12, 0, 0, 16));
    refused(
        "column query.item.item: expected at least 12 elements, got 8",
        () -> check(allocator, schema, 2, new long[] {2, 2, 3, 8}, nulls, 0, 8, 0, 12, 0, 0, 24));
    refused(
        "column query: expected 2 rows, got 1",
        () -> check(allocator, schema, 2, new long[] {2, 1, 3, 12}, nulls, 0, 8, 0, 12, 0, 0, 24));
    refused(
        "column seq_len: expected a null count of 0 to 2, got 3",
        () ->
            check(
                allocator,
                schema,
                2,
                new long[] {2, 2, 3, 12},
                new long[] {3, 0, 0, 0},
                1,
                8,
                0,
                12,
                0,
                0,
                24));
    refused(
        "column seq_len: expected at least 1 bytes in buffer 0 for 2 elements, got 0",
        () ->
            check(
                allocator,
                schema,
                2,
                new long[] {2, 2, 3, 12},
                new long[] {1, 0, 0, 0},
                0,
                8,
                0,
                12,
                0,
                0,
                24));
    refused(
        "column query, row 1: expected offset 2 between 1 and 1 (child elements), got 3",
        () -> check(allocator, schema, 2, new long[] {2, 2, 1, 4}, nulls, 0, 8, 0, 12, 0, 0, 8));
  }

  private static void refused(String message, Runnable check) {
    assertThatThrownBy(check::run).hasMessage(message);
  }

  /** Zeroed buffers of the given sizes, with the offsets 0, 1, 3 in the query. */
  private static void check(
      BufferAllocator allocator,
      BatchSchema schema,
      long rows,
      long[] lengths,
      long[] nulls,
      long... sizes) {
    ArrowBuf[] buffers = new ArrowBuf[sizes.length];
    for (int i = 0; i < sizes.length; i++) {
      buffers[i] = allocator.buffer(sizes[i]);
      buffers[i].setZero(0, buffers[i].capacity());
      buffers[i].writerIndex(sizes[i]);
    }
    if (sizes[3] >= 12) {
      buffers[3].setInt(4, 1);
      buffers[3].setInt(8, 3);
    }
    try {
      ArrowBatch.adoptChecked(schema, rows, lengths, nulls, buffers, 0, false).close();
    } catch (MalformedArrowException e) {
      throw new IllegalStateException(e.getMessage(), e);
    }
  }

  @Test
  void allocatorsAlignTheirBuffers(BufferAllocator allocator) {
    try (BufferAllocator child = Allocators.child(allocator, "child")) {
      for (int size : new int[] {1, 63, 64, 65, 1000, 100_000}) {
        try (ArrowBuf buffer = child.buffer(size)) {
          assertThat(buffer.memoryAddress() % 64).isZero();
          assertThat(buffer.capacity()).isEqualTo(Allocators.roundUp(size));
        }
      }
    }
  }
}
