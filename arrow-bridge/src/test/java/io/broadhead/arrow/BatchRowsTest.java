// SPDX-License-Identifier: Apache-2.0
package io.broadhead.arrow;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import io.broadhead.testing.NoLeaks;
import io.broadhead.testing.StepBatchBuilder;
import java.util.Arrays;
import java.util.Random;
import java.util.stream.IntStream;
import org.apache.arrow.memory.BufferAllocator;
import org.apache.arrow.memory.OutOfMemoryException;
import org.apache.arrow.vector.FieldVector;
import org.apache.arrow.vector.LargeVarCharVector;
import org.apache.arrow.vector.NullVector;
import org.apache.arrow.vector.VectorSchemaRoot;
import org.apache.arrow.vector.complex.ListVector;
import org.apache.arrow.vector.complex.StructVector;
import org.apache.arrow.vector.complex.impl.UnionListWriter;
import org.apache.arrow.vector.complex.writer.BaseWriter.StructWriter;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.extension.ExtendWith;

@ExtendWith(NoLeaks.class)
class BatchRowsTest {
  private static final int ROWS = 23;

  /** Every layout that a batch may have, with nulls. */
  private static ArrowBatch every(BufferAllocator allocator) {
    Random random = new Random(5);
    StepBatchBuilder builder =
        StepBatchBuilder.decoderStep(allocator, ROWS, 2, 20, 4, 2, 32, 16, DType.FLOAT16)
            .int64("note", row -> row % 3 == 0 ? null : (long) row)
            .bool("flag", row -> row % 5 == 0);
    LargeVarCharVector large = new LargeVarCharVector("large", allocator);
    large.allocateNew();
    StructVector struct = StructVector.empty("struct", allocator);
    struct.allocateNew();
    StructWriter writer = struct.getWriter();
    ListVector lists = ListVector.empty("lists", allocator);
    lists.allocateNew();
    UnionListWriter listWriter = lists.getWriter();
    for (int row = 0; row < ROWS; row++) {
      if (row % 4 != 0) {
        large.setSafe(row, "v".repeat(row).getBytes(java.nio.charset.StandardCharsets.UTF_8));
        writer.setPosition(row);
        writer.start();
        writer.bigInt("a").writeBigInt(row);
        writer.varChar("b").writeVarChar("b" + row);
        writer.end();
        listWriter.setPosition(row);
        listWriter.startList();
        for (int i = random.nextInt(4); i > 0; i--) {
          listWriter.integer().writeInt(row * 10 + i);
        }
        listWriter.endList();
      }
    }
    large.setValueCount(ROWS);
    struct.setValueCount(ROWS);
    lists.setValueCount(ROWS);
    return builder
        .vector(large)
        .vector(struct)
        .vector(lists)
        .vector(new NullVector("nothing", ROWS))
        .build();
  }

  @Test
  void takenRowsHaveTheirValues(BufferAllocator allocator) {
    Random random = new Random(3);
    try (ArrowBatch batch = every(allocator);
        VectorSchemaRoot all = batch.toRoot(allocator)) {
      for (int count : new int[] {0, 1, 5, ROWS, 40}) {
        int[] rows = random.ints(count, 0, ROWS).toArray();
        try (ArrowBatch taken = BatchRows.take(batch, rows, allocator);
            VectorSchemaRoot root = taken.toRoot(allocator)) {
          assertThat(taken.numRows()).isEqualTo(count);
          for (FieldVector vector : root.getFieldVectors()) {
            for (int row = 0; row < count; row++) {
              assertThat(vector.getObject(row))
                  .as(vector.getName() + " row " + row)
                  .isEqualTo(all.getVector(vector.getName()).getObject(rows[row]));
            }
          }
        }
      }
    }
  }

  @Test
  void allRowsInOrderShareTheBatch(BufferAllocator allocator) {
    try (ArrowBatch batch = every(allocator)) {
      int[] rows = IntStream.range(0, ROWS).toArray();
      try (ArrowBatch taken = BatchRows.take(batch, rows, allocator)) {
        assertThat(taken).isSameAs(batch);
      }
      ArrowBatch[] parts = BatchRows.split(batch, new int[ROWS], 3, allocator);
      assertThat(parts).containsExactly(batch, null, null);
      parts[0].close();
    }
  }

  @Test
  void everyRowGoesToItsShard(BufferAllocator allocator) {
    int[] shards = new int[ROWS];
    for (int row = 0; row < ROWS; row++) {
      shards[row] = row * 7 % 3;
    }
    try (ArrowBatch batch = every(allocator)) {
      ArrowBatch[] parts = BatchRows.split(batch, shards, 4, allocator);
      assertThat(parts[3]).isNull();
      int total = 0;
      for (int shard = 0; shard < 3; shard++) {
        try (ArrowBatch part = parts[shard]) {
          assertThat(part.bytesCopied()).isPositive();
          assertThat(part.schema()).isSameAs(batch.schema());
          long last = -1;
          for (int row = 0; row < part.numRows(); row++) {
            long id = part.column("sequence_id").getLong(row);
            assertThat(shards[(int) id]).isEqualTo(shard);
            assertThat(id).isGreaterThan(last);
            last = id;
          }
          total += part.numRows();
        }
      }
      assertThat(total).isEqualTo(ROWS);
    }
  }

  @Test
  void aSplitThatRunsOutOfMemoryLeavesNothingBehind(BufferAllocator allocator) {
    int[] shards = IntStream.range(0, ROWS).map(row -> row % 3).toArray();
    try (ArrowBatch batch = every(allocator)) {
      long before = allocator.getAllocatedMemory();
      ArrowBatch[] parts = BatchRows.split(batch, shards, 3, allocator);
      long needed = allocator.getAllocatedMemory() - before;
      Arrays.stream(parts).forEach(ArrowBatch::close);
      for (long limit = 0; limit < needed; limit += needed / 50) {
        try (BufferAllocator small = allocator.newChildAllocator("small", 0, limit)) {
          assertThatThrownBy(() -> BatchRows.split(batch, shards, 3, small))
              .isInstanceOf(OutOfMemoryException.class);
          assertThat(small.getAllocatedMemory()).isZero();
        }
      }
    }
  }

  @Test
  void rowsAndShardsOutOfRangeAreNamed(BufferAllocator allocator) {
    try (ArrowBatch batch = every(allocator)) {
      assertThatThrownBy(() -> BatchRows.take(batch, new int[] {0, ROWS}, allocator))
          .hasMessage("row 23: expected one of 23 rows");
      int[] shards = new int[ROWS];
      shards[4] = 2;
      assertThatThrownBy(() -> BatchRows.split(batch, shards, 2, allocator))
          .hasMessage("row 4: expected a shard from 0 to 1, got 2");
    }
  }
}
