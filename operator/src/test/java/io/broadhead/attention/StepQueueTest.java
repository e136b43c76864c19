// SPDX-License-Identifier: Apache-2.0
package io.broadhead.attention;

import static org.assertj.core.api.Assertions.assertThat;

import io.broadhead.arrow.ArrowBatch;
import io.broadhead.arrow.DType;
import io.broadhead.attention.cache.KvCacheManager;
import io.broadhead.attention.job.AttnType;
import io.broadhead.attention.job.Job;
import io.broadhead.attention.job.KvCacheDtype;
import io.broadhead.attention.job.KvCacheSpec;
import io.broadhead.attention.job.LayerSpec;
import io.broadhead.attention.job.RopeSpec;
import io.broadhead.attention.testing.Collected;
import io.broadhead.attention.testing.ManagedRow;
import io.broadhead.attention.testing.NoLeaks;
import io.broadhead.attention.testing.Scenario;
import io.broadhead.attention.testing.StepBatches;
import io.broadhead.attention.testing.StepRow;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.function.Function;
import java.util.stream.LongStream;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.extension.RegisterExtension;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.EnumSource;
import org.junit.jupiter.params.provider.ValueSource;

/** However a queue joins and divides batches, their results are those of one step for each. */
class StepQueueTest {
  private static final DType DTYPE = DType.FLOAT16;

  @RegisterExtension private final NoLeaks noLeaks = new NoLeaks();
  private final LayerSpec a = layer("a");
  private final LayerSpec b = layer("b");
  private final List<ArrowBatch> batches = new ArrayList<>();
  private final Collected collected = new Collected();

  @AfterEach
  void close() {
    batches.forEach(ArrowBatch::close);
    collected.results.forEach(ArrowBatch::close);
  }

  private static LayerSpec layer(String name) {
    return LayerSpec.builder(name, 4, 64).numKvHeads(2).build();
  }

  private static Job job(LayerSpec... layers) {
    return new Job(new KvCacheSpec(16, 64, null), List.of(layers));
  }

  private PagedAttention open(Job job) {
    return PagedAttention.open(job, new AttentionConfig("cpu", 1, 0), noLeaks.allocator());
  }

  private void addManaged(LayerSpec layer, ManagedRow... rows) {
    batches.add(StepBatches.managed(noLeaks.allocator(), layer, DTYPE, true, List.of(rows)));
  }

  /** A batch for each layer of the job. */
  private void addManaged(Job job, Function<LayerSpec, ManagedRow> rowOf) {
    job.layers().forEach(layer -> addManaged(layer, rowOf.apply(layer)));
  }

  private void addExternal(LayerSpec layer, StepRow... rows) {
    batches.add(StepBatches.of(noLeaks.allocator(), layer, DTYPE, List.of(rows)));
  }

  /**
   * Computes the batches one by one, and all of them in a queue.
   *
   * @param waiting batches that may wait when another one is added
   */
  private void assertQueueComputes(Job job, int maxTokens, int waiting) {
    try (PagedAttention apart = open(job);
        PagedAttention queued = open(job);
        StepQueue queue = queued.queue(maxTokens)) {
      List<Collected> collected = new ArrayList<>();
      for (ArrowBatch batch : batches) {
        collected.add(new Collected());
        queue.add(batch, collected.get(collected.size() - 1));
        while (queue.batches() > waiting) {
          queue.step();
        }
      }
      queue.drain();
      for (int i = 0; i < batches.size(); i++) {
        Collected got = collected.get(i);
        assertThat(got.refused).as("refused rows of batch %s", i).isEmpty();
        try (ArrowBatch expected = apart.step(batches.get(i));
            ArrowBatch result = got.results.get(0)) {
          assertThat(
                  StepBatches.error(
                      StepBatches.read(expected, "output"), StepBatches.read(result, "output")))
              .as("error of batch %s", i)
              .isLessThan(StepBatches.tolerance(DTYPE));
        }
      }
      assertThat(queued.blockTables().map(KvCacheManager::sequences))
          .isEqualTo(apart.blockTables().map(KvCacheManager::sequences));
    }
  }

  /** Collects what a queue makes of all batches. */
  private void collect(Job job, int maxTokens) {
    try (PagedAttention attention = open(job);
        StepQueue queue = attention.queue(maxTokens)) {
      batches.forEach(batch -> queue.add(batch, collected));
      queue.drain();
    }
  }

  private void assertRefused(String... messages) {
    assertThat(collected.refused).extracting(RefusedRow::message).containsExactly(messages);
  }

  @ParameterizedTest
  @ValueSource(ints = {16, 1000})
  void aSharingLayerDoesNotOvertakeWhatItReads(int maxTokens) {
    LayerSpec owner = layer("owner");
    LayerSpec sharing = sharing("sharing", "owner");
    Job job = job(owner, sharing);
    Scenario scenario = new Scenario(job, DTYPE, 3);
    for (int tokens : new int[] {11, 1, 1, 1}) {
      addManaged(job, layer -> ManagedRow.of(scenario.next("s", layer, tokens)));
    }
    assertQueueComputes(job, maxTokens, 2);
  }

  @Test
  void aSharingLayerWaitsForTokensThatComeBehindItsRows() {
    LayerSpec owner = layer("owner");
    LayerSpec sharing = sharing("sharing", "owner");
    Job job = job(owner, sharing);
    Scenario scenario = new Scenario(job, DTYPE, 4);
    addManaged( // a step
        owner,
        ManagedRow.of(scenario.next("s", owner, 4)),
        ManagedRow.of(scenario.next("other", owner, 4)));
    addManaged(sharing, ManagedRow.of(scenario.next("s", sharing, 4)));
    addManaged(job, layer -> ManagedRow.of(scenario.next("s", layer, 1)));
    assertQueueComputes(job, 8, 1000);
  }

  /** The producer has given the blocks of one sequence to another. */
  @Test
  void whatASharingLayerReadsIsNotOverwrittenBeforeItsTurn() {
    LayerSpec owner = layer("owner");
    LayerSpec sharing = sharing("sharing", "owner");
    Job job = job(owner, sharing);
    Scenario scenario = new Scenario(job, DTYPE, 4);
    StepRow first = scenario.next("first", owner, 10);
    addExternal(owner, first, scenario.next("other", owner, 10)); // a step
    addExternal(owner, scenario.next("other", owner, 1));
    addExternal(sharing, scenario.next("first", sharing, 10));
    StepRow second = scenario.next("second", owner, 10);
    addExternal(owner, second.withBlocks(first.blocks()).withSlots(first.slots()));
    assertQueueComputes(job, 20, 1000);
  }

  private static LayerSpec sharing(String name, String target) {
    return layer(name).toBuilder().kvSharingTargetLayerName(target).build();
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
  void aForkBeginsWithWhatItsParentHadBeforeABatchThatIsDivided() {
    Job job = job(a);
    Scenario scenario = new Scenario(job, DTYPE, 5);
    addManaged(a, ManagedRow.of(scenario.next("parent", a, 20)));
    ManagedRow parent = ManagedRow.of(scenario.next("parent", a, 40));
    ManagedRow child = ManagedRow.of(scenario.next("child", a, 30).withSeqLen(50));
    addManaged(a, parent.last(), child.forkedFrom("parent"));
    assertQueueComputes(job, 16, 0);
  }

  @Test
  void anIdBeginsAgainWhenAllLayersAreDoneWithIt() {
    Job job = job(a, b);
    Scenario first = new Scenario(job, DTYPE, 7);
    Scenario second = new Scenario(job, DTYPE, 8);
    addManaged(job, layer -> ManagedRow.of(first.next("s", layer, 50)).last());
    addManaged(job, layer -> ManagedRow.of(second.next("s", layer, 20)));
    assertQueueComputes(job, 32, 1000);
  }

  @Test
  void anIdThatBeginsAgainInOneLayerWaitsForItsEndInTheOther() {
    Job job = job(a, b);
    Scenario first = new Scenario(job, DTYPE, 7);
    Scenario second = new Scenario(job, DTYPE, 8);
    addManaged(job, layer -> ManagedRow.of(first.next("s", layer, 3)));
    addManaged(a, ManagedRow.of(first.next("s", a, 1)).last());
    addManaged(
        b,
        ManagedRow.of(first.next("one", b, 4)), // two that fill a step
        ManagedRow.of(first.next("two", b, 4)),
        ManagedRow.of(first.next("s", b, 1)).last());
    addManaged(job, layer -> ManagedRow.of(second.next("s", layer, 4)));
    assertQueueComputes(job, 8, 1);
  }

  @Test
  void sequencesThatBeginAndEndWaitForEachOther() {
    Job job = job(a);
    Scenario scenario = new Scenario(job, DTYPE, 7);
    addManaged(a, ManagedRow.of(scenario.next("s", a, 2)).last());
    addManaged(a, ManagedRow.of(scenario.next("t", a, 3)).last());
    try (PagedAttention attention = open(job);
        StepQueue queue = attention.queue(16)) {
      batches.forEach(batch -> queue.add(batch, collected));
      assertThat(queue.batches()).isEqualTo(2);
      queue.step();
      assertThat(queue.isEmpty()).isTrue();
    }
  }

  @Test
  void anIdThatBeginsAgainDoesNotOvertakeItsEndInASharingLayer() {
    LayerSpec owner = layer("owner");
    LayerSpec sharing = sharing("sharing", "owner");
    Job job = job(owner, sharing);
    Scenario first = new Scenario(job, DTYPE, 7);
    Scenario second = new Scenario(job, DTYPE, 8);
    addManaged(owner, ManagedRow.of(first.next("s", owner, 20)).last());
    addManaged(owner, ManagedRow.of(first.next("other", owner, 100)));
    addManaged(sharing, ManagedRow.of(first.next("s", sharing, 20)).last());
    addManaged(job, layer -> ManagedRow.of(second.next("s", layer, 10)));
    assertQueueComputes(job, 32, 1000);
  }

  @Test
  void anEndWithoutTokensMayNameTheParentInEveryLayer() {
    Job job = job(a, b);
    Scenario scenario = new Scenario(job, DTYPE, 9);
    addManaged(job, layer -> ManagedRow.of(scenario.next("parent", layer, 3)).last());
    addManaged(
        job,
        layer ->
            ManagedRow.of(scenario.next("child", layer, 0).withSeqLen(3))
                .last()
                .forkedFrom("parent"));
    assertQueueComputes(job, 0, 0);
  }

  @Test
  void anEndWithoutTokensFollowsWhatOtherLayersHad() {
    Job job = job(a, b);
    Scenario scenario = new Scenario(job, DTYPE, 7);
    addManaged(job, layer -> ManagedRow.of(scenario.next("s", layer, 20)));
    addManaged(a, ManagedRow.of(scenario.next("s", a, 0)).last());
    assertQueueComputes(job, 64, 1000);
  }

  @Test
  void resultsOfASequenceKeepTheirOrder() {
    Job job = job(a);
    Scenario scenario = new Scenario(job, DTYPE, 8);
    StepRow prompt = scenario.next("long", a, 150);
    addManaged(a, ManagedRow.of(scenario.next("s", a, 3)), ManagedRow.of(prompt));
    addManaged(a, ManagedRow.of(scenario.next("s", a, 1)));
    addManaged(a, ManagedRow.of(scenario.next("other", a, 2)));
    collect(job, 32);
    assertThat(collected.results)
        .extracting(result -> result.column("sequence_id").getString(0))
        .containsExactly("other", "s", "s");
    assertThat(collected.results.get(1).numRows()).isEqualTo(2);
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
  void whatALaterBatchReadsIsWrittenBefore() {
    Job job = job(a);
    Scenario scenario = new Scenario(job, DTYPE, 9);
    StepRow prompt = scenario.next("first", a, 64);
    StepRow next = scenario.next("second", a, 1);
    int[] table = {prompt.blocks()[0], prompt.blocks()[1], next.blocks()[0]};
    addExternal(a, prompt);
    addExternal(a, next.withBlocks(table).withSeqLen(33));
    assertQueueComputes(job, 16, 1000);
  }

  @Test
  void batchesOfOtherElementTypesAreApart() {
    LayerSpec mixed = a.toBuilder().kvCacheDtype(KvCacheDtype.FLOAT32).build();
    Job job = job(mixed);
    Scenario scenario = new Scenario(job, DTYPE, 9);
    for (DType dtype : List.of(DTYPE, DType.FLOAT32, DTYPE)) {
      ManagedRow row = ManagedRow.of(scenario.next("s", mixed, 3));
      batches.add(StepBatches.managed(noLeaks.allocator(), mixed, dtype, true, List.of(row)));
    }
    assertQueueComputes(job, 1000, 1000);
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

  @Test
  void keysWithoutQueriesCountAsTokens() {
    Job job = job(a);
    addManaged(a, ManagedRow.of(new Scenario(job, DTYPE, 12).next("s", a, 0, 3)));
    try (PagedAttention attention = open(job);
        StepQueue queue = attention.queue(16)) {
      queue.add(batches.get(0), collected);
      assertThat(queue.tokens()).isEqualTo(3);
      assertThat(queue.bytes()).isEqualTo(batches.get(0).byteSize());
      queue.drain();
      assertThat(queue.tokens()).isZero();
      assertThat(queue.bytes()).isZero();
    }
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
  void aBlockIsNotOverwrittenInTheStepThatReadsIt() {
    Job job = job(a);
    Scenario scenario = new Scenario(job, DTYPE, 12);
    for (String sequence : new String[] {"before", "after"}) {
      StepRow row = scenario.next(sequence, a, 16);
      addExternal(a, row.withBlocks(0).withSlots(LongStream.range(0, 16).toArray()));
    }
    assertQueueComputes(job, 1000, 1000);
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
  void aRowWithABadTokenIsRefusedBeforeAnyOfItIsComputed() {
    LayerSpec a = layer("a").toBuilder().rope(new RopeSpec(64, 50, 10000, true)).build();
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
    LayerSpec owner = layer("owner");
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
}
