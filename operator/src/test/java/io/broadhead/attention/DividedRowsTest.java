// SPDX-License-Identifier: Apache-2.0
package io.broadhead.attention;

import static org.assertj.core.api.Assertions.assertThat;

import io.broadhead.arrow.ArrowBatch;
import io.broadhead.attention.job.AttnType;
import io.broadhead.attention.job.Job;
import io.broadhead.attention.job.LayerSpec;
import io.broadhead.attention.job.RopeSpec;
import io.broadhead.attention.testing.ManagedRow;
import io.broadhead.attention.testing.Scenario;
import io.broadhead.attention.testing.StepBatches;
import io.broadhead.attention.testing.StepRow;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.stream.LongStream;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.EnumSource;
import org.junit.jupiter.params.provider.ValueSource;

/** Rows of more tokens than a step may have: which are computed in pieces, and to what. */
class DividedRowsTest extends QueueFixture {
  @ParameterizedTest
  @ValueSource(booleans = {true, false})
  void aLongPromptIsComputedInPiecesBesideShortRows(boolean managedTables) {
    LayerSpec a = layer("a").returnLse(true).build();
    Job job = job(a);
    Scenario scenario = new Scenario(job, DTYPE, 5);
    StepRow begin = scenario.next("short", a, 4);
    StepRow prompt = scenario.next("long", a, 150);
    StepRow after = scenario.next("long", a, 1);
    List<StepRow> decode = List.of(scenario.next("short", a, 1));
    List<StepReport> reports = new ArrayList<>();
    try (PagedAttention whole = open(job);
        PagedAttention inPieces = open(job);
        StepQueue queue = inPieces.queue(32, reports::add)) {
      List<double[][][]> expected = new ArrayList<>();
      List<Integer> order = new ArrayList<>();
      for (List<StepRow> rows : List.of(List.of(begin), List.of(prompt), List.of(after), decode)) {
        try (ArrowBatch batch = managedTables ? managed(a, rows, true) : external(a, rows)) {
          try (ArrowBatch result = whole.step(batch)) {
            expected.add(StepBatches.read(result, "output"));
            expected.add(StepBatches.read(result, "lse"));
          }
          queue.add(batch, collected);
        }
      }
      while (!queue.isEmpty()) {
        queue.step();
        for (int i = order.size(); i < collected.results.size(); i++) {
          order.add(reports.size());
        }
      }
      assertThat(reports)
          .hasSize(6)
          .extracting(report -> report.stats().queryTokens())
          .allMatch(tokens -> tokens >= 1 && tokens <= 32);
      List<ArrowBatch> results = collected.results;
      // The decode row did not wait for the prompt; the prompt's own next row did. With external
      // tables it is in another step than the row before it, whose block it writes to.
      assertThat(results.get(1).column("sequence_id").getString(0)).isEqualTo("short");
      assertThat(order).containsExactly(1, managedTables ? 1 : 2, 5, 6);
      results.add(results.remove(1));
      for (int i = 0; i < results.size(); i++) {
        ArrowBatch result = results.get(i);
        assertThat(StepBatches.error(expected.get(2 * i), StepBatches.read(result, "output")))
            .isLessThan(StepBatches.tolerance(DTYPE));
        assertThat(StepBatches.error(expected.get(2 * i + 1), StepBatches.read(result, "lse")))
            .isLessThan(StepBatches.LSE_TOLERANCE);
      }
    }
  }

  @Test
  void aShortRowIsBegunInWhatIsLeftOfAStep() {
    Job job = job(a);
    Scenario scenario = new Scenario(job, DTYPE, 9);
    for (int tokens : new int[] {8, 4, 6, 2}) {
      addManaged(a, ManagedRow.of(scenario.next("s" + tokens, a, tokens)));
    }
    assertQueueComputes(job, 16, 1000);
  }

  @Test
  void aRowOfMoreThanHalfAStepDoesNotHoldUpShortOnes() {
    Job job = job(a);
    Scenario scenario = new Scenario(job, DTYPE, 9);
    addManaged(a, ManagedRow.of(scenario.next("long", a, 14)));
    addManaged(a, ManagedRow.of(scenario.next("short", a, 7)));
    try (PagedAttention attention = open(job);
        StepQueue queue = attention.queue(16)) {
      batches.forEach(batch -> queue.add(batch, collected));
      queue.step();
      assertThat(collected.results)
          .singleElement()
          .extracting(result -> result.column("sequence_id").getString(0))
          .isEqualTo("short");
      assertThat(queue.tokens()).isEqualTo(14 + 7 - 16);
    }
  }

  @Test
  void eachPieceOfARowHasItsTokenIds() {
    Job job = job(a);
    Scenario scenario = new Scenario(job, DTYPE, 9);
    for (String sequence : List.of("in pieces", "whole")) {
      ManagedRow prompt = ManagedRow.of(scenario.next(sequence, a, 40));
      addManaged(a, prompt.withTokenIds(LongStream.range(0, 40).toArray()));
    }
    try (PagedAttention attention = open(job);
        StepQueue queue = attention.queue(16)) {
      queue.add(batches.get(0), collected);
      queue.drain();
      attention.step(batches.get(1)).close();
      assertThat(attention.blockTables().orElseThrow().counters().tokensHit()).isEqualTo(32);
    }
  }

  @Test
  void aForkBeginsWithWhatItsParentHadBeforeABatchThatIsDivided() {
    Job job = job(a);
    Scenario scenario = new Scenario(job, DTYPE, 5);
    addManaged(a, ManagedRow.of(scenario.next("parent", a, 20)));
    ManagedRow parent = ManagedRow.of(scenario.next("parent", a, 40));
    ManagedRow child = ManagedRow.of(scenario.next("child", a, 30).withSeqLen(50));
    addManaged(a, parent.last(), child.forkedFrom("parent"));
    assertQueueComputes(job, 16, 0);
  }

  @ParameterizedTest
  @ValueSource(booleans = {true, false})
  void manyQueriesWithoutKeysSeeWhatTheySeeInOneStep(boolean seqLens) {
    Job job = job(a);
    Scenario scenario = new Scenario(job, DTYPE, 19);
    for (StepRow row : List.of(scenario.next("s", a, 40), scenario.next("s", a, 30, 0))) {
      batches.add(
          StepBatches.managed(noLeaks.allocator(), a, DTYPE, seqLens, List.of(ManagedRow.of(row))));
    }
    assertQueueComputes(job, 16, 0);
  }

  @ParameterizedTest
  @EnumSource(
      value = AttnType.class,
      names = {"ENCODER", "ENCODER_ONLY", "ENCODER_DECODER"})
  void rowsWhoseTokensSeeWhatIsBehindThemAreNotDivided(AttnType type) {
    LayerSpec layer = a.toBuilder().attnType(type).build();
    Job job = job(layer);
    addExternal(layer, new Scenario(job, DTYPE, 12).next("s", layer, 40));
    assertQueueComputes(job, 16, 0);
  }

  @Test
  void aRowWithFewerQueriesThanKeysIsNotDivided() {
    Job job = job(a);
    Scenario scenario = new Scenario(job, DTYPE, 12);
    addManaged(a, ManagedRow.of(scenario.next("s", a, 20, 40)));
    addManaged(a, ManagedRow.of(scenario.next("s", a, 0, 3)));
    addManaged(a, ManagedRow.of(scenario.next("s", a, 1)));
    assertQueueComputes(job, 16, 0);
  }

  @ParameterizedTest
  @ValueSource(longs = {0, -1})
  void paddingIsNotDivided(long slot) {
    Job job = job(a);
    StepRow row = new Scenario(job, DTYPE, 13).next("s", a, 40);
    long[] slots = new long[40];
    Arrays.fill(slots, slot);
    addExternal(a, row.withSeqLen(0).withSlots(slots));
    assertQueueComputes(job, 16, 0);
  }

  @Test
  void tokensThatShareASlotStayTogether() {
    Job job = job(a);
    StepRow prompt = new Scenario(job, DTYPE, 12).next("s", a, 40);
    int[] table = prompt.blocks();
    table[1] = table[0];
    long[] slots = prompt.slots();
    System.arraycopy(slots, 0, slots, 16, 16);
    addExternal(a, prompt.withBlocks(table).withSlots(slots));
    assertQueueComputes(job, 16, 0);
  }

  @Test
  void tokensThatGoElsewhereThanToTheirPositionsStayTogether() {
    Job job = job(a);
    Scenario scenario = new Scenario(job, DTYPE, 11);
    StepRow prompt = scenario.next("s", a, 40);
    long[] slots = prompt.slots();
    long first = slots[0];
    slots[0] = slots[39];
    slots[39] = first;
    addExternal(a, prompt.withSlots(slots));
    assertQueueComputes(job, 16, 0);
  }

  @Test
  void rowsThatReadWhatOthersOfTheirBatchWriteStayTogether() {
    Job job = job(a);
    Scenario scenario = new Scenario(job, DTYPE, 9);
    StepRow prompt = scenario.next("first", a, 64);
    StepRow alike = scenario.next("second", a, 40);
    int[] table = alike.blocks();
    long[] slots = alike.slots();
    for (int block = 0; block < 2; block++) { // a prefix that is computed in this very step
      table[block] = prompt.blocks()[block];
    }
    for (int i = 0; i < 32; i++) {
      slots[i] = -1;
    }
    addExternal(a, alike.withBlocks(table).withSlots(slots), prompt);
    assertQueueComputes(job, 16, 0);
  }

  @Test
  void noPieceOfARowIsComputedWhoseSeqLenIsWrong() {
    Job job = job(a);
    StepRow prompt = new Scenario(job, DTYPE, 3).next("s", a, 20);
    int firstPiece = 16;
    // What the first piece would have is 1 below nothing.
    StepRow wrong = prompt.withSeqLen(20 - firstPiece - 1);
    addManaged(a, ManagedRow.of(wrong));
    addManaged(a, ManagedRow.of(prompt));
    collect(job, firstPiece);
    assertRefused("column seq_len: 3, expected 20 (0 tokens in the cache and 20 new ones)");
  }

  @Test
  void theSeqLenOfALongRowIsThatOfTheWholeRow() {
    Job job = job(a);
    Scenario scenario = new Scenario(job, DTYPE, 18);
    addManaged(a, ManagedRow.of(scenario.next("s", a, 3)));
    StepRow good = scenario.next("s", a, 40);
    addManaged(a, ManagedRow.of(good.withSeqLen(50)));
    addManaged(a, ManagedRow.of(good));
    collect(job, 16);
    assertRefused("column seq_len: 50, expected 43 (3 tokens in the cache and 40 new ones)");
    batches.remove(1).close();
    assertQueueComputes(job, 16, 1000);
  }

  @Test
  void aRowWithABadTokenIsRefusedBeforeAnyOfItIsComputed() {
    LayerSpec a = layer("a").rope(new RopeSpec(64, 50, 10000, true)).build();
    Job job = job(a);
    Scenario scenario = new Scenario(job, DTYPE, 15);
    StepRow good = scenario.next("s", a, 40);
    int[] positions = good.positions().clone();
    positions[39] = 50;
    StepRow bad = good.withPositions(positions);
    StepRow withFewValues = good.withValue(Arrays.copyOf(good.value(), 39));
    addManaged(a, ManagedRow.of(bad), ManagedRow.of(scenario.next("other", a, 1)));
    addManaged(a, ManagedRow.of(withFewValues), ManagedRow.of(scenario.next("other", a, 1)));
    addManaged(a, ManagedRow.of(good));
    collect(job, 16);
    assertRefused(
        "column position: entry 39 is 50, expected 0 .. 49 (rope.max_position 50)",
        "column value: 39 entries, expected 40 (as many as key)");
    assertThat(collected.results).extracting(ArrowBatch::numRows).containsExactly(1, 1, 1);
  }

  @Test
  void aLongRowWhoseTokensAreNotAllThereIsRefusedBeforeAnyOfItIsComputed() {
    LayerSpec owner = layer("owner").build();
    LayerSpec sharing = sharing("sharing", "owner");
    Job job = job(owner, sharing);
    Scenario scenario = new Scenario(job, DTYPE, 16);
    addManaged(owner, ManagedRow.of(scenario.next("s", owner, 30)));
    StepRow tooLong = new Scenario(job, DTYPE, 17).next("s", sharing, 40);
    addManaged(sharing, ManagedRow.of(tooLong));
    addManaged(sharing, ManagedRow.of(scenario.next("s", sharing, 30)));
    collect(job, 16);
    assertRefused(
        "column sequence_id: sequence s has 30 tokens in the cache that layer sharing reads,"
            + " expected 40 (those of owner come first)");
    batches.remove(1).close();
    assertQueueComputes(job, 16, 1000);
  }
}
