// SPDX-License-Identifier: Apache-2.0
package io.broadhead.attention;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import io.broadhead.arrow.ArrowBatch;
import io.broadhead.arrow.BatchSchema;
import io.broadhead.arrow.DType;
import io.broadhead.arrow.TensorField;
import io.broadhead.attention.job.AttnType;
import io.broadhead.attention.job.Job;
import io.broadhead.attention.job.LayerSpec;
import io.broadhead.attention.job.RopeSpec;
import io.broadhead.attention.testing.ManagedRow;
import io.broadhead.attention.testing.ReferenceAttention;
import io.broadhead.attention.testing.Scenario;
import io.broadhead.attention.testing.StepBatches;
import io.broadhead.attention.testing.StepRow;
import io.broadhead.kernel.ErrorCode;
import java.util.ArrayList;
import java.util.List;
import org.apache.arrow.vector.types.pojo.ArrowType;
import org.apache.arrow.vector.types.pojo.Field;
import org.apache.arrow.vector.types.pojo.FieldType;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

/** Rows and batches that are refused, what is said of them, and what becomes of the others. */
class RefusedBatchesTest extends AttentionFixture {
  private static final AttentionConfig TWO_THREADS = new AttentionConfig("auto", 2, 0);

  private void refused(
      Job job, DType dtype, List<StepRow> rows, ErrorCode code, long row, String... parts) {
    try (PagedAttention attention = PagedAttention.open(job, TWO_THREADS, noLeaks.allocator());
        ArrowBatch batch = StepBatches.of(noLeaks.allocator(), job.layers().get(0), dtype, rows)) {
      assertThatThrownBy(() -> attention.step(batch))
          .isInstanceOfSatisfying(
              InvalidBatchException.class,
              e -> {
                assertThat(e.code()).isEqualTo(code);
                assertThat(e.row()).isEqualTo(row);
              })
          .hasMessageContainingAll(parts);
    }
  }

  private void expectRefused(PagedAttention attention, ArrowBatch batch, String... mentions) {
    try (batch) {
      assertThatThrownBy(() -> attention.step(batch))
          .isInstanceOf(InvalidBatchException.class)
          .hasMessageContainingAll(mentions);
    }
  }

  @Test
  void severalLayersNeedALayerColumn() {
    Job job = job(8, a, b);
    StepRow row = new Scenario(job, DType.FLOAT32, 1).next("s", a, 2).withLayer(null);

    refused(
        job,
        DType.FLOAT32,
        List.of(row),
        ErrorCode.SCHEMA_MISMATCH,
        -1,
        "column layer",
        "the job has 2 layers",
        "got no such column");
  }

  @ParameterizedTest
  @CsvSource(
      quoteCharacter = '"',
      delimiter = '|',
      nullValues = "null",
      value = {
        "b | expected the same layer in every row, 'a', got 'b'",
        "null | expected 'a', 'b', got no name"
      })
  void aRowOfAnotherLayerOrOfNoneIsRefused(String other, String problem) {
    Job job = job(8, a, b);
    Scenario scenario = new Scenario(job, DType.FLOAT32, 1);
    List<StepRow> rows =
        List.of(
            scenario.next("s", a, 2),
            scenario.next("t", a, 2).withLayer(other),
            scenario.next("u", a, 2));

    refused(
        job,
        DType.FLOAT32,
        rows,
        ErrorCode.INVALID_ROW,
        1,
        "sequence t, row 1",
        "column layer: " + problem);
  }

  @ParameterizedTest
  @CsvSource(
      quoteCharacter = '"',
      value = {"x,'x'", "\"\",no name"})
  void unknownLayersAreRefusedAndTheKnownOnesNamed(String name, String got) {
    Job job = job(8, a, b);
    StepRow row = new Scenario(job, DType.FLOAT32, 1).next("s", a, 2).withLayer(name);

    refused(
        job,
        DType.FLOAT32,
        List.of(row),
        ErrorCode.INVALID_ROW,
        0,
        "sequence s, row 0",
        "column layer: expected 'a', 'b', got " + got);
  }

  @Test
  void badValuesNameLayerSequenceRowAndColumn() {
    Job job = job(8, a);
    Scenario scenario = new Scenario(job, DType.FLOAT32, 1);
    List<StepRow> rows =
        List.of(scenario.next(41L, a, 2), scenario.next(42L, a, 1).withSlots(8 * 16));

    refused(
        job,
        DType.FLOAT32,
        rows,
        ErrorCode.INVALID_ROW,
        1,
        "layer 'a', sequence 42, row 1",
        "slot_mapping",
        "128");
  }

  @Test
  void rowsWithoutASequenceAreRefused() {
    Job job = job(8, a);
    Scenario scenario = new Scenario(job, DType.FLOAT32, 1);
    List<StepRow> rows =
        List.of(scenario.next("s", a, 2), scenario.next(null, a, 2), scenario.next("t", a, 2));
    List<RefusedRow> refused = new ArrayList<>();
    try (PagedAttention attention = PagedAttention.open(job, TWO_THREADS, noLeaks.allocator());
        ArrowBatch batch = StepBatches.of(noLeaks.allocator(), a, DType.FLOAT32, rows);
        ArrowBatch result = attention.step(batch, refused::add)) {
      assertThat(result.numRows()).isEqualTo(2);
      assertThatThrownBy(() -> attention.step(batch))
          .hasMessageContainingAll("row 1", "column sequence_id", "got null");
    }
    assertThat(refused).extracting(RefusedRow::row).containsExactly(1L);
  }

  @Test
  void badRowsLeaveAndTheOthersGoOn() {
    Job job = job(16, a, b);
    Scenario scenario = new Scenario(job, DType.FLOAT32, 1);
    StepRow good = scenario.next("good", a, 5);
    StepRow alsoGood = scenario.next("also good", a, 1);
    List<StepRow> rows =
        List.of(
            scenario.next("lost", a, 2).withLayer("b"),
            good,
            scenario.next("block", a, 2).withBlocks(99),
            scenario.next("slot", a, 1).withSlots(1 << 20),
            alsoGood,
            scenario.next("negative", a, 1).withSeqLen(-1));
    double[][][] expected =
        new ReferenceAttention(job, DType.FLOAT32).step(a, List.of(good, alsoGood)).output();
    List<RefusedRow> refused = new ArrayList<>();
    // Row 0 decides the a, so it comes second here.
    List<StepRow> ordered = new ArrayList<>(rows);
    ordered.set(0, rows.get(1));
    ordered.set(1, rows.get(0));
    try (PagedAttention attention = PagedAttention.open(job, TWO_THREADS, noLeaks.allocator());
        ArrowBatch batch = StepBatches.of(noLeaks.allocator(), a, DType.FLOAT32, ordered);
        ArrowBatch result = attention.step(batch, refused::add)) {
      assertThat(StepBatches.error(expected, StepBatches.read(result, "output"))).isLessThan(1e-5);
      assertThat(result.column("sequence_id").getString(1)).isEqualTo("also good");
      assertThat(attention.check(batch)).isEqualTo(refused);
      long movedOutput = 4 * 64 * 4; // that of "also good", which comes behind refused rows
      assertThat(bytesMoved(attention)).isBetween(movedOutput, movedOutput + 1024L);
      try (ArrowBatch alone =
          StepBatches.of(noLeaks.allocator(), a, DType.FLOAT32, List.of(good))) {
        attention.step(alone).close();
      }
      assertThat(bytesMoved(attention)).isZero();
    }
    assertThat(refused)
        .extracting(RefusedRow::sequenceId)
        .containsExactly("lost", "block", "slot", "negative");
    assertThat(refused).extracting(RefusedRow::row).containsExactly(1L, 2L, 3L, 5L);
    assertThat(refused).extracting(RefusedRow::code).containsOnly(ErrorCode.INVALID_ROW);
    assertThat(refused.get(0).layer()).isEqualTo("b");
    assertThat(refused.get(1).message()).contains("block_table", "99");
  }

  /** Bytes copied, without those that a GPU stages. */
  private static long bytesMoved(PagedAttention attention) {
    return attention.lastBytesCopied() - attention.lastStep().bytesStaged();
  }

  @Test
  void aBatchOfBadRowsGivesAnEmptyResult() {
    Job job = job(8, a, b);
    StepRow row = new Scenario(job, DType.FLOAT32, 1).next("s", a, 2).withLayer("x");
    List<StepRow> rows = List.of(row, row.withSequenceId(null));
    List<RefusedRow> refused = new ArrayList<>();
    try (PagedAttention attention = PagedAttention.open(job, TWO_THREADS, noLeaks.allocator());
        ArrowBatch batch = StepBatches.of(noLeaks.allocator(), a, DType.FLOAT32, rows);
        ArrowBatch result = attention.step(batch, refused::add)) {
      assertThat(result.numRows()).isZero();
      assertThat(refused)
          .extracting(RefusedRow::message)
          .containsExactly(
              "column layer: expected 'a', 'b', got 'x'", StepBatchSchema.NULL_SEQUENCE);
    }
  }

  /** A batch of no layer must not be taken for one of a layer that only has the same shape. */
  @Test
  void batchesOfNoLayerSettleNothing() {
    LayerSpec rotating = layer("a").rope(new RopeSpec(16, 64, 10000, true)).build();
    LayerSpec layer = layer("b").build();
    Job job = job(8, rotating, layer);
    StepRow stray = new Scenario(job, DType.FLOAT32, 1).next("s", layer, 2).withLayer("x");
    List<RefusedRow> refused = new ArrayList<>();
    try (PagedAttention attention = PagedAttention.open(job, TWO_THREADS, noLeaks.allocator());
        ArrowBatch empty = StepBatches.of(noLeaks.allocator(), layer, DType.FLOAT32, List.of());
        ArrowBatch strays =
            StepBatches.of(noLeaks.allocator(), layer, DType.FLOAT32, List.of(stray));
        ArrowBatch ofEmpty = attention.step(empty);
        ArrowBatch ofStrays = attention.step(strays, refused::add)) {
      assertThat(ofEmpty.numRows()).isZero();
      assertThat(ofStrays.numRows()).isZero();
      assertThat(refused).singleElement().satisfies(row -> assertThat(row.layer()).isEqualTo("x"));
      assertThat(attention.check(empty)).isEmpty();
      assertThat(attention.check(strays)).hasSize(1);
      assertThat(attention.cacheBytes()).isZero();
      assertThat(attention.blockTables()).isEmpty();
    }
  }

  @Test
  void wrongSchemasNameTheColumn() {
    LayerSpec wide = LayerSpec.builder("a", 8, 64).numKvHeads(2).build();
    Job job = job(8, layer("a").build());
    StepRow row = new Scenario(job, DType.FLOAT32, 1).next("s", wide, 2);
    try (PagedAttention attention = PagedAttention.open(job, TWO_THREADS, noLeaks.allocator());
        ArrowBatch batch = StepBatches.of(noLeaks.allocator(), wide, DType.FLOAT32, List.of(row))) {
      for (int again = 0; again < 2; again++) {
        assertThatThrownBy(() -> attention.step(batch))
            .isInstanceOfSatisfying(
                InvalidBatchException.class,
                e -> assertThat(e.code()).isEqualTo(ErrorCode.SCHEMA_MISMATCH))
            .hasMessageContainingAll("layer 'a'", "query");
      }
    }
  }

  @Test
  void columnsThatChooseTheLayerAreCheckedFirst() {
    BatchSchema noIds = BatchSchema.of(TensorField.list("query", DType.FLOAT32, 4, 64));
    assertThatThrownBy(() -> new StepBatchSchema(noIds))
        .hasMessage("column sequence_id: expected int64 or utf8, got no such column");
    BatchSchema idsAsTensors =
        BatchSchema.of(TensorField.list("sequence_id", DType.FLOAT32, 4, 64));
    assertThatThrownBy(() -> new StepBatchSchema(idsAsTensors))
        .hasMessage("column sequence_id: expected int64 or utf8, got list<tensor[4, 64]<float32>>");
    Field ids = new Field("sequence_id", FieldType.notNullable(new ArrowType.Int(64, true)), null);
    BatchSchema noTensors = BatchSchema.of(ids);
    assertThatThrownBy(() -> new StepBatchSchema(noTensors))
        .hasMessage("column query: expected it, or key and value, got neither");
    BatchSchema layersAsTensors =
        BatchSchema.of(ids, TensorField.list("layer", DType.FLOAT32, 4, 64));
    assertThatThrownBy(() -> new StepBatchSchema(layersAsTensors))
        .hasMessage("column layer: expected utf8, got list<tensor[4, 64]<float32>>");
  }

  @Test
  void messagesNameColumnExpectedAndGot() {
    LayerSpec cross = layer("cross").attnType(AttnType.ENCODER_DECODER).build();
    Job job = job(8, a, cross);
    Scenario scenario = new Scenario(job, DTYPE, 5);
    try (PagedAttention attention = open(job)) {
      run(attention, a, ManagedRow.of(scenario.next("s", a, 5)));
      StepRow next = scenario.next("s", a, 1);
      expectRefused(
          attention,
          managed(a, ManagedRow.of(next.withSeqLen(-3))),
          "sequence s, row 0: column seq_len: -3, expected 0 or more");
      expectRefused(
          attention,
          managed(a, ManagedRow.of(next).forkedFrom("t")),
          "column parent_sequence_id: sequence s has begun already, expected null, got t");
      expectRefused(
          attention,
          managed(a, ManagedRow.of(next.withSequenceId("c").withSeqLen(6)).forkedFrom("nobody")),
          "column parent_sequence_id: expected a sequence in the cache, got nobody",
          "sequence_group");
      expectRefused(
          attention,
          managed(a, ManagedRow.of(next).withTokenIds(1, 2)),
          "column token_ids: 2 entries, expected 1 (one for each key)");
      expectRefused(
          attention,
          managed(
              a,
              ManagedRow.of(next.withSequenceId("n").withSeqLen(1)).withTokenIds(StepBatches.NULL)),
          "column token_ids: entry 0 is null, expected the token's id");
      expectRefused(
          attention,
          managed(a, List.of(scenario.next("nobody", a, 1, 0)), false),
          "column key: sequence nobody is not in the cache, expected its first tokens, got none");
      expectRefused(
          attention,
          managed(cross, ManagedRow.of(scenario.next("s", cross, 3)).withTokenIds(1, 2, 3)),
          "layer 'cross'",
          "column token_ids",
          "encoder_decoder");
      expectRefused(
          attention,
          external(a, List.of(next)),
          "layer 'a'",
          "block_table and slot_mapping: expected neither");
    }
  }

  @Test
  void messagesOfTheBackendNameARowOnce() {
    Job job = job(8, a);
    Scenario scenario = new Scenario(job, DTYPE, 5);
    StepRow good = scenario.next("s", a, 2);
    StepRow bad = scenario.next("bad", a, 2);
    try (PagedAttention attention = open(job)) {
      for (List<Object> slotAndMessage :
          List.<List<Object>>of(
              List.of(500L, "entry 1 is slot 500, expected below 128 (8 blocks of 16)"),
              List.of(StepBatches.NULL, "expected no nulls inside lists, got some"))) {
        long slot = (Long) slotAndMessage.get(0);
        try (ArrowBatch batch = external(a, List.of(good, bad.withSlots(3, slot)))) {
          assertThatThrownBy(() -> attention.step(batch))
              .isInstanceOf(InvalidBatchException.class)
              .hasMessage(
                  "layer 'a', sequence bad, row 1: column slot_mapping: " + slotAndMessage.get(1));
        }
      }
    }
  }

  @Test
  void columnsOfTheWrongTypeAreNamed() {
    Job job = job(8, a);
    StepRow row = new Scenario(job, DTYPE, 5).next("s", a, 1);
    try (PagedAttention attention = open(job)) {
      for (String column :
          List.of(
              "seq_len", "end_of_sequence", "parent_sequence_id", "token_ids", "sequence_group")) {
        try (ArrowBatch right = managed(a, List.of(row), false);
            ArrowBatch queries = right.select(right.schema().index("query"));
            ArrowBatch wrong =
                ArrowBatch.join(
                    right.schema().join(BatchSchema.of(renamed(queries.schema().field(0), column))),
                    right,
                    queries)) {
          assertThatThrownBy(() -> attention.step(wrong))
              .isInstanceOf(InvalidBatchException.class)
              .hasMessageContaining("column " + column + ": expected ")
              .hasMessageEndingWith(", got list<tensor[4, 64]<float16>>");
        }
      }
    }
  }

  private static Field renamed(Field field, String name) {
    return new Field(name, field.getFieldType(), field.getChildren());
  }

  @Test
  void managedTablesCannotFollowExternalOnes() {
    Job job = job(8, a);
    Scenario scenario = new Scenario(job, DTYPE, 5);
    try (PagedAttention attention = open(job);
        ArrowBatch external = external(a, List.of(scenario.next("s", a, 2)));
        ArrowBatch managed = managed(a, ManagedRow.of(scenario.next("s", a, 1)))) {
      attention.step(external).close();
      assertThatThrownBy(() -> attention.step(managed))
          .isInstanceOf(InvalidBatchException.class)
          .hasMessageContaining("block_table and slot_mapping: expected them");
    }
  }
}
