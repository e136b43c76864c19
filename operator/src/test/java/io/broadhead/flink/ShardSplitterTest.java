// SPDX-License-Identifier: Apache-2.0
package io.broadhead.flink;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import io.broadhead.arrow.ArrowBatch;
import io.broadhead.arrow.BatchSchema;
import io.broadhead.arrow.DType;
import io.broadhead.arrow.TensorField;
import io.broadhead.attention.InvalidBatchException;
import io.broadhead.attention.job.Job;
import io.broadhead.attention.job.JobFile;
import io.broadhead.attention.job.LayerSpec;
import io.broadhead.attention.testing.ManagedRow;
import io.broadhead.attention.testing.NoLeaks;
import io.broadhead.attention.testing.Scenario;
import io.broadhead.attention.testing.StepBatches;
import io.broadhead.attention.testing.StepRow;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.function.Consumer;
import java.util.stream.LongStream;
import java.util.stream.Stream;
import org.apache.arrow.memory.ArrowBuf;
import org.apache.arrow.vector.types.pojo.ArrowType;
import org.apache.arrow.vector.types.pojo.Field;
import org.apache.flink.core.memory.DataInputDeserializer;
import org.apache.flink.core.memory.DataOutputSerializer;
import org.apache.flink.runtime.state.KeyGroupRangeAssignment;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.extension.RegisterExtension;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

class ShardSplitterTest {
  private static final ShardKey KEY = new ShardKey(4, 128);

  @RegisterExtension private final NoLeaks noLeaks = new NoLeaks();

  private final Job job =
      JobFile.parse(
          """
          kv_cache: {num_blocks: 64}
          layers: [{name: a, num_heads: 2, num_kv_heads: 1, head_size: 32}]
          """,
          "job.yaml");
  private final LayerSpec layer = job.layers().get(0);

  private ArrowBatch batch(long... ids) {
    Scenario scenario = new Scenario(job, DType.FLOAT16, 5);
    List<StepRow> rows =
        LongStream.of(ids).mapToObj(id -> scenario.next(id, layer, (int) (1 + id % 3))).toList();
    return StepBatches.of(noLeaks.allocator(), layer, DType.FLOAT16, rows);
  }

  /** By shard. */
  private static void split(ArrowBatch batch, Consumer<ArrowBatch> out) {
    ShardSplitter.split(batch, KEY, new int[] {0, 1, 2, 3}, out);
  }

  /** What is saved is found in the shard of its sequence, also by later versions. */
  @Test
  void theShardOfASequenceNeverChanges() {
    assertThat(LongStream.of(1, 2, 3, -1, 1L << 40).map(id -> ShardKey.shardOf(id, 1 << 20)))
        .containsExactly(722405L, 726154L, 272624L, 769403L, 422904L);
    assertThat(
            Stream.of("s0", "request-1", "\u00e4")
                .map(id -> ShardKey.shardOf(id.getBytes(StandardCharsets.UTF_8), 1 << 20)))
        .containsExactly(440272, 192114, 531405);
  }

  @Test
  void everyRowGoesToTheBatchOfItsShardInOrder() {
    long[] ids = LongStream.range(0, 40).toArray();
    List<Long> seen = new ArrayList<>();
    List<Integer> keys = new ArrayList<>();
    try (ArrowBatch batch = batch(ids)) {
      split(
          batch,
          part -> {
            keys.add(KEY.getKey(part));
            long last = -1;
            for (int row = 0; row < part.numRows(); row++) {
              long id = part.column("sequence_id").getLong(row);
              assertThat(id).isGreaterThan(last);
              assertThat(part.column("query").listSize(row)).isEqualTo(1 + id % 3);
              last = id;
              seen.add(id);
              try (ArrowBatch alone = batch(id)) {
                assertThat(KEY.getKey(alone)).isEqualTo(KEY.getKey(part));
              }
            }
          });
    }
    assertThat(seen).hasSize(40).doesNotHaveDuplicates();
    assertThat(keys).hasSize(4).doesNotHaveDuplicates();
  }

  @Test
  void rowsWithoutAGroupGoWhereTheirSequencesGo() {
    Scenario scenario = new Scenario(job, DType.FLOAT16, 5);
    List<ManagedRow> rows =
        LongStream.range(0, 20)
            .mapToObj(id -> ManagedRow.of(scenario.next(id, layer, 1)))
            .map(row -> row.row().sequenceId().equals(7L) ? row.inGroup(100L) : row)
            .toList();
    try (ArrowBatch batch =
        StepBatches.managed(noLeaks.allocator(), layer, DType.FLOAT16, false, rows)) {
      assertThat(KEY.shards(batch))
          .containsExactly(
              LongStream.range(0, 20)
                  .mapToInt(id -> ShardKey.shardOf(id == 7 ? 100 : id, 4))
                  .toArray());
    }
  }

  @Test
  void aBatchOfOneShardIsNotCopied() {
    List<ArrowBatch> parts = new ArrayList<>();
    try (ArrowBatch batch = batch(7, 7)) {
      split(batch, parts::add);
      assertThat(parts).containsExactly(batch);
      assertThat(batch.bytesCopied()).isZero();
    }
  }

  @Test
  void aBatchWithoutRowsGoesOn() {
    List<ArrowBatch> parts = new ArrayList<>();
    try (ArrowBatch batch = batch()) {
      split(batch, parts::add);
      assertThat(parts).containsExactly(batch);
      assertThat(KEY.getKey(batch)).isNotNull();
    }
  }

  @Test
  void aReceivedBatchIsClosedAndItsPartsAreTheSplitters() throws Exception {
    for (long[] ids : new long[][] {{7, 7}, {1, 2, 3, 4, 5}}) {
      DataOutputSerializer out = new DataOutputSerializer(64);
      try (ArrowBatch batch = batch(ids)) {
        new ArrowBatchSerializer().serialize(batch, out);
      }
      ArrowBatch received =
          new ArrowBatchSerializer().deserialize(new DataInputDeserializer(out.getCopyOfBuffer()));
      split(received, part -> assertThat(part.isReceived()).isFalse());
      assertThat(received.isClosed()).isTrue();
    }
  }

  @Test
  void aFailureDownstreamReleasesAllParts() {
    try (ArrowBatch batch = batch(1, 2, 3, 4, 5, 6, 7, 8)) {
      assertThatThrownBy(
              () ->
                  split(
                      batch,
                      part -> {
                        throw new IllegalStateException("downstream");
                      }))
          .hasMessage("downstream");
    }
  }

  private void assertRefused(Field ids, String got) {
    BatchSchema schema = BatchSchema.of(ids);
    ArrowBuf[] buffers = new ArrowBuf[schema.bufferCount()];
    Arrays.fill(buffers, noLeaks.allocator().getEmpty());
    long[] lengths = new long[schema.nodeCount()];
    try (ArrowBatch batch =
        ArrowBatch.adopt(schema, 1, lengths, new long[lengths.length], buffers, 0)) {
      assertThatThrownBy(() -> split(batch, part -> {}))
          .isInstanceOf(InvalidBatchException.class)
          .hasMessage("column sequence_id: expected int64 or utf8, got " + got);
    }
  }

  @Test
  void aBatchWithoutSequenceIdsIsRefused() {
    assertRefused(TensorField.list("query", DType.FLOAT32, 4, 64), "no such column");
  }

  /** Eight bytes of an id of four would be read past the buffer's end. */
  @Test
  void idsOfAnotherWidthAreRefused() {
    assertRefused(Field.notNullable("sequence_id", new ArrowType.Int(32, true)), "int32");
  }

  @ParameterizedTest
  @CsvSource({"1, 1, 128", "2, 2, 128", "4, 2, 128", "6, 3, 128", "100, 100, 128", "7, 7, 7"})
  void shardsAreSpreadEvenlyOverSubtasks(int shards, int parallelism, int maxParallelism) {
    ShardKey key = new ShardKey(shards, maxParallelism);
    int[] perSubtask = new int[parallelism];
    List<Integer> keys = new ArrayList<>();
    for (long id = 0; keys.size() < shards; id++) {
      try (ArrowBatch batch = batch(id)) {
        Integer k = key.getKey(batch);
        if (!keys.contains(k)) {
          keys.add(k);
          perSubtask[
              KeyGroupRangeAssignment.assignKeyToParallelOperator(
                  k, maxParallelism, parallelism)]++;
        }
      }
    }
    assertThat(perSubtask).containsOnly(shards / parallelism);
  }

  @Test
  void hashesSpreadNeighbouringIds() {
    int[] counts = new int[8];
    for (long id = 0; id < 8000; id++) {
      counts[ShardKey.shardOf(id, 8)]++;
      counts[ShardKey.shardOf(("request-" + id).getBytes(), 8)]++;
    }
    for (int count : counts) {
      assertThat(count).isBetween(1800, 2200);
    }
  }

  @Test
  void moreShardsThanKeyGroupsAreRefused() {
    assertThatThrownBy(() -> new ShardKey(129, 128))
        .hasMessage("broadhead.shards: expected 1 to the maximum parallelism 128, got 129");
  }
}
