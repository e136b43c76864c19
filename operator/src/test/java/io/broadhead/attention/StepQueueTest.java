// SPDX-License-Identifier: Apache-2.0
package io.broadhead.attention;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import com.sun.management.ThreadMXBean;
import io.broadhead.arrow.ArrowBatch;
import io.broadhead.arrow.DType;
import io.broadhead.attention.job.Job;
import io.broadhead.attention.job.KvCacheDtype;
import io.broadhead.attention.job.LayerSpec;
import io.broadhead.attention.testing.Closing;
import io.broadhead.attention.testing.Collected;
import io.broadhead.attention.testing.ManagedRow;
import io.broadhead.attention.testing.Scenario;
import io.broadhead.attention.testing.StepBatches;
import io.broadhead.attention.testing.StepRow;
import java.lang.management.ManagementFactory;
import java.util.ArrayList;
import java.util.List;
import java.util.stream.IntStream;
import java.util.stream.LongStream;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;

/** However a queue joins batches, their results are those of one step for each. */
class StepQueueTest extends QueueFixture {
  @ParameterizedTest
  @ValueSource(booleans = {true, false})
  void smallBatchesOfALayerAreOneStep(boolean managedTables) {
    Job job = job(a, b);
    Scenario scenario = new Scenario(job, DTYPE, 5);
    List<List<StepRow>> sent = new ArrayList<>();
    for (int step = 0; step < 3; step++) {
      for (int s = 0; s < 6; s++) {
        for (LayerSpec layer : job.layers()) {
          sent.add(List.of(scenario.next("s" + s, layer, step == 0 ? 3 + s : 1)));
        }
      }
    }
    List<StepReport> reports = new ArrayList<>();
    try (PagedAttention apart = open(job);
        PagedAttention joined = open(job);
        StepQueue queue = joined.queue(1000, reports::add)) {
      List<double[][][]> expected = new ArrayList<>();
      for (List<StepRow> rows : sent) {
        LayerSpec layer = job.layer(rows.get(0).layer()).orElseThrow();
        try (ArrowBatch batch =
            managedTables ? managed(layer, rows, true) : external(layer, rows)) {
          try (ArrowBatch result = apart.step(batch)) {
            expected.add(StepBatches.read(result, "output"));
          }
          queue.add(batch, collected);
        }
      }
      assertThat(queue.tokens()).isEqualTo(2 * (3 + 4 + 5 + 6 + 7 + 8 + 6 + 6));
      queue.drain();
      // External tables of one sequence in two steps write to a block that is read.
      assertThat(reports)
          .hasSize(managedTables ? 2 : 6)
          .allMatch(report -> report.stats().queryTokens() > 0);
      assertThat(collected.results).hasSize(sent.size());
      for (ArrowBatch result : collected.results) {
        int index = indexOf(sent, result);
        assertThat(StepBatches.read(result, "output")).isDeepEqualTo(expected.get(index));
      }
    }
  }

  private static int indexOf(List<List<StepRow>> batches, ArrowBatch result) {
    String request = result.column("request").getString(0);
    String layer = result.column("layer").getString(0);
    return IntStream.range(0, batches.size())
        .filter(
            i -> {
              StepRow row = batches.get(i).get(0);
              return row.layer().equals(layer)
                  && request.equals("for " + row.sequenceId() + " at " + row.seqLen());
            })
        .findFirst()
        .orElseThrow();
  }

  @ParameterizedTest
  @ValueSource(ints = {16, 1000})
  void aSharingLayerDoesNotOvertakeWhatItReads(int maxTokens) {
    LayerSpec owner = layer("owner").build();
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
    LayerSpec owner = layer("owner").build();
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
    LayerSpec owner = layer("owner").build();
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
  void aBlockIsNotOverwrittenInTheStepThatReadsIt() {
    Job job = job(a);
    Scenario scenario = new Scenario(job, DTYPE, 12);
    for (String sequence : new String[] {"before", "after"}) {
      StepRow row = scenario.next(sequence, a, 16);
      addExternal(a, row.withBlocks(0).withSlots(LongStream.range(0, 16).toArray()));
    }
    assertQueueComputes(job, 1000, 1000);
  }

  @Test
  void aRefusedRowOfOneBatchLeavesTheOthersAlone() {
    Job job = job(a);
    Scenario scenario = new Scenario(job, DTYPE, 5);
    try (PagedAttention attention = open(job);
        StepQueue queue = attention.queue(100)) {
      for (List<StepRow> rows :
          List.of(
              List.of(scenario.next("a", a, 2)),
              List.of(scenario.next("b", a, 2), scenario.next("c", a, 1).withSlots(1 << 20)),
              List.of(scenario.next("d", a, 2).withBlocks(77)),
              List.of(scenario.next("e", a, 2)))) {
        try (ArrowBatch batch = external(a, rows)) {
          queue.add(batch, collected);
        }
      }
      queue.drain();
      assertThat(collected.refused).extracting(RefusedRow::sequenceId).containsExactly("c", "d");
      assertThat(collected.refused).extracting(RefusedRow::row).containsExactly(1L, 0L);
      assertThat(collected.results)
          .extracting(ArrowBatch::numRows)
          .containsExactlyInAnyOrder(1, 1, 0, 1);
    }
  }

  @Test
  void anAbsurdBlockIdIsRefusedAndCostsNoMemory() {
    Job job = job(8, a);
    StepRow row = new Scenario(job, DTYPE, 5).next("s", a, 2).withBlocks(Integer.MAX_VALUE);
    ThreadMXBean threads = (ThreadMXBean) ManagementFactory.getThreadMXBean();
    try (PagedAttention attention = open(job);
        StepQueue queue = attention.queue(100);
        ArrowBatch batch = external(a, List.of(row))) {
      long before = threads.getCurrentThreadAllocatedBytes();
      queue.add(batch, collected);
      queue.drain();
      assertThat(threads.getCurrentThreadAllocatedBytes() - before).isLessThan(32 << 20);
      assertThat(collected.refused).extracting(RefusedRow::row).containsExactly(0L);
    }
  }

  @Test
  void stepsThatAForkNeedsAreToldAlsoIfTheLastOneFails() {
    Job job = job(8, a, b);
    Scenario scenario = new Scenario(job, DTYPE, 5);
    ManagedRow parent = ManagedRow.of(scenario.next("parent", a, 3));
    ManagedRow child =
        ManagedRow.of(scenario.next("child", a, 1).withSeqLen(4)).forkedFrom("parent");
    ManagedRow bad = ManagedRow.of(scenario.next("bad", b, 1).withSeqLen(4));
    List<StepReport> reports = new ArrayList<>();
    try (PagedAttention attention = open(job);
        StepQueue queue = attention.queue(100, reports::add);
        ArrowBatch first = managed(a, parent);
        ArrowBatch refused = managed(b, bad);
        ArrowBatch second = managed(a, child)) {
      queue.add(first, new Closing());
      queue.add(refused, new Closing());
      assertThat(reports).isEmpty();
      assertThatThrownBy(() -> queue.add(second, new Closing()))
          .isInstanceOf(InvalidBatchException.class)
          .hasMessageContaining("sequence bad, row 0");
      assertThat(reports)
          .singleElement()
          .satisfies(report -> assertThat(report.stats().queryTokens()).isEqualTo(3));
    }
  }

  @Test
  void closingAQueueDropsWhatWaits() {
    Job job = job(8, a);
    try (PagedAttention attention = open(job);
        StepQueue queue = attention.queue(100);
        ArrowBatch batch = managed(a, ManagedRow.of(new Scenario(job, DTYPE, 5).next("s", a, 2)))) {
      queue.add(batch, new Collected());
      assertThat(queue.isEmpty()).isFalse();
      queue.close();
      assertThat(queue.isEmpty()).isTrue();
    }
  }
}
