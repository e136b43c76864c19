// SPDX-License-Identifier: Apache-2.0
package io.broadhead.attention;

import static org.assertj.core.api.Assertions.assertThat;

import io.broadhead.attention.job.Job;
import io.broadhead.attention.testing.Scenario;
import io.broadhead.attention.testing.StepRow;
import java.util.ArrayList;
import java.util.Collections;
import java.util.List;
import java.util.Random;
import java.util.stream.IntStream;
import java.util.stream.LongStream;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;

/** Rows with block tables of their own that overtake others, and those that must not. */
class ExternalOrderTest extends QueueFixture {
  private static final int BLOCKS = 12;
  private static final int BLOCK_SIZE = 16;

  private final Job job = job(BLOCKS, a);

  private static StepRow at(StepRow row, int first, List<Integer> table) {
    int tokens = row.key().length;
    return row.withSeqLen(first + tokens)
        .withBlocks(table.stream().mapToInt(Integer::intValue).toArray())
        .withSlots(
            LongStream.range(first, first + tokens)
                .map(p -> (long) table.get((int) p / BLOCK_SIZE) * BLOCK_SIZE + p % BLOCK_SIZE)
                .toArray());
  }

  private StepRow row(String sequence, int tokens, int first, Integer... table) {
    return at(new Scenario(job(a), DTYPE, 5).next(sequence, a, tokens), first, List.of(table));
  }

  /** The sequences whose results came with the first step. */
  private List<String> first(int maxTokens) {
    try (PagedAttention attention = open(job);
        StepQueue queue = attention.queue(maxTokens)) {
      batches.forEach(batch -> queue.add(batch, collected));
      queue.step();
      return collected.results.stream()
          .map(result -> result.column("sequence_id").getString(0))
          .toList();
    }
  }

  @Test
  void aRowOfOtherBlocksDoesNotWaitForALongPrompt() {
    addExternal(a, row("long", 60, 0, 0, 1, 2, 3));
    addExternal(a, row("long", 1, 60, 0, 1, 2, 3), row("short", 1, 5, 4));
    addExternal(a, row("other", 2, 3, 5));
    assertThat(first(16)).containsExactly("other");
    assertQueueComputes(job, 16, 1000);
  }

  @Test
  void aRowThatReadsWhatIsNotYetWrittenWaits() {
    addExternal(a, row("long", 60, 0, 0, 1, 2, 3));
    addExternal(a, row("begins alike", 1, 32, 0, 1, 4));
    assertThat(first(16)).isEmpty();
    assertQueueComputes(job, 16, 1000);
  }

  @Test
  void aRowThatReadsWhatIsWrittenBySomeEarlierPieceDoesNotWaitForTheLastOne() {
    addExternal(a, row("long", 60, 0, 0, 1, 2, 3));
    addExternal(a, row("begins alike", 1, 16, 0, 4));
    try (PagedAttention attention = open(job);
        StepQueue queue = attention.queue(16)) {
      batches.forEach(batch -> queue.add(batch, collected));
      queue.step();
      assertThat(collected.results).isEmpty();
      queue.step();
      assertThat(collected.results).hasSize(1);
    }
    assertQueueComputes(job, 16, 1000);
  }

  /** The producer has given a block of the one to the other. */
  @Test
  void aRowThatWritesToABlockThatIsStillReadWaits() {
    addExternal(a, row("long", 60, 0, 0, 1, 2, 3));
    addExternal(a, row("next", 1, 0, 3));
    assertThat(first(16)).isEmpty();
    assertQueueComputes(job, 16, 1000);
  }

  @Test
  void whoeverWaitsIsWaitedForInTurn() {
    addExternal(a, row("long", 60, 0, 0, 1, 2, 3));
    addExternal(a, row("waits", 20, 60, 0, 1, 2, 3, 4));
    addExternal(a, row("reads", 1, 10, 4));
    addExternal(a, row("writes", 1, 0, 2));
    assertThat(first(16)).isEmpty();
    assertQueueComputes(job, 16, 1000);
  }

  @Test
  void theLastOfTwoRowsThatWriteToASlotIsTheOneThatCameLast() {
    addExternal(a, row("long", 60, 0, 0, 1, 2, 3));
    addExternal(a, row("waits", 1, 60, 0, 1, 2, 3).withSlots(5 * BLOCK_SIZE));
    StepRow last = new Scenario(job, DTYPE, 6).next("last", a, 1);
    addExternal(a, at(last, 0, List.of(6)).withSlots(5 * BLOCK_SIZE));
    assertThat(first(16)).isEmpty();
    addExternal(a, row("reads", 1, BLOCK_SIZE - 1, 5).withoutKeys());
    assertQueueComputes(job, 16, 1000);
  }

  @Test
  void rowsThatBelongTogetherWaitTogether() {
    addExternal(a, row("long", 60, 0, 0, 1, 2, 3));
    StepRow waits = row("long", 1, 60, 0, 1, 2, 3).withSlots(5 * BLOCK_SIZE);
    addExternal(a, waits, row("reads it", 1, 15, 5));
    addExternal(a, row("short", 1, 0, 6));
    assertThat(first(16)).isEmpty();
    assertQueueComputes(job, 16, 1000);
  }

  /** Prefixes are shared, blocks handed on, and some rows write wherever they like. */
  @ParameterizedTest
  @ValueSource(ints = {4, 16, 33})
  void resultsAreThoseOfTheOrderInWhichBatchesCame(int maxTokens) {
    for (int seed = 0; seed < 40; seed++) {
      Random random = new Random(seed);
      List<List<Integer>> tables = new ArrayList<>();
      List<Integer> lengths = new ArrayList<>();
      for (int batch = 0; batch < 12; batch++) {
        List<StepRow> rows = new ArrayList<>();
        for (int r = random.nextInt(3); r >= 0; r--) {
          rows.add(next(random, tables, lengths));
        }
        addExternal(a, rows.toArray(StepRow[]::new));
      }
      for (int block = 0; block < BLOCKS; block++) {
        addExternal(a, row("reads", 1, BLOCK_SIZE - 1, block).withoutKeys());
      }
      assertQueueComputes(job, maxTokens, random.nextInt(12));
      close();
      batches.clear();
    }
  }

  private StepRow next(Random random, List<List<Integer>> tables, List<Integer> lengths) {
    int tokens = random.nextInt(3) == 0 ? 1 + random.nextInt(40) : 1 + random.nextInt(3);
    int sequence = random.nextInt(5);
    if (sequence >= tables.size() || random.nextInt(5) == 0 || lengths.get(sequence) > 100) {
      sequence = begin(random, tables, lengths, sequence);
    }
    List<Integer> table = tables.get(sequence);
    List<Integer> free =
        new ArrayList<>(
            IntStream.range(0, BLOCKS)
                .filter(block -> tables.stream().noneMatch(t -> t.contains(block)))
                .boxed()
                .toList());
    Collections.shuffle(free, random);
    int first = lengths.get(sequence);
    tokens = Math.min(tokens, (table.size() + free.size()) * BLOCK_SIZE - first);
    for (int i = 0; table.size() * BLOCK_SIZE < first + tokens; i++) {
      table.add(free.get(i));
    }
    lengths.set(sequence, first + tokens);
    StepRow row =
        at(
            new Scenario(job(a), DTYPE, random.nextLong()).next("s" + sequence, a, tokens),
            first,
            table);
    return random.nextInt(12) == 0
        ? row.withSlots(random.longs(tokens, -1, BLOCKS * BLOCK_SIZE).toArray())
        : row;
  }

  /** Another sequence in the place of one that ends, or none; perhaps with the prefix of one. */
  private static int begin(
      Random random, List<List<Integer>> tables, List<Integer> lengths, int sequence) {
    int place = Math.min(sequence, tables.size());
    List<Integer> table = new ArrayList<>();
    if (!tables.isEmpty() && random.nextBoolean()) {
      int other = random.nextInt(tables.size());
      table.addAll(
          tables.get(other).subList(0, random.nextInt(lengths.get(other) / BLOCK_SIZE + 1)));
    }
    if (place == tables.size()) {
      tables.add(null);
      lengths.add(null);
    }
    tables.set(place, table);
    lengths.set(place, table.size() * BLOCK_SIZE);
    return place;
  }
}
