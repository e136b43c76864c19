// SPDX-License-Identifier: Apache-2.0
package io.broadhead.attention;

import static org.assertj.core.api.Assertions.assertThat;

import io.broadhead.arrow.ArrowBatch;
import io.broadhead.attention.job.Job;
import io.broadhead.attention.job.LayerSpec;
import io.broadhead.attention.testing.ManagedRow;
import io.broadhead.attention.testing.Scenario;
import io.broadhead.attention.testing.StepBatches;
import io.broadhead.attention.testing.StepRow;
import java.util.ArrayList;
import java.util.List;
import org.assertj.core.api.InstanceOfAssertFactories;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;

/** Sequences that end, and others of their ids after them. */
class EndedSequencesTest extends QueueFixture {
  @Test
  void blocksAreFreeWhenEveryLayerHasSeenTheEnd() {
    Job job = job(8, a, b);
    Scenario scenario = new Scenario(job, DTYPE, 1);
    try (PagedAttention attention = open(job, 1, OutOfBlocks.FAIL)) {
      run(attention, a, ManagedRow.of(scenario.next("s", a, 40)));
      run(attention, b, ManagedRow.of(scenario.next("s", b, 40)));
      assertThat(inUse(attention)).isEqualTo(3);
      run(attention, a, ManagedRow.of(scenario.next("s", a, 1)).last());
      assertThat(inUse(attention)).isEqualTo(3);
      run(attention, b, ManagedRow.of(scenario.next("s", b, 1)).last());
      assertThat(inUse(attention)).isZero();
      assertThat(tables(attention).sequences()).isZero();
    }
  }

  /** However its batch is divided into steps. */
  @ParameterizedTest
  @ValueSource(ints = {0, 4, 64})
  void aRowBehindTheEndOfItsSequenceBeginsItAnew(int maxTokens) {
    Job job = job(a);
    Scenario scenario = new Scenario(job, DTYPE, 5);
    ManagedRow first = ManagedRow.of(scenario.next("s", a, 2));
    ManagedRow last = ManagedRow.of(scenario.next("s", a, 1)).last();
    ManagedRow anew = ManagedRow.of(new Scenario(job, DTYPE, 6).next("s", a, 3));
    try (PagedAttention attention = open(job);
        PagedAttention other = open(job);
        StepQueue queue = attention.queue(maxTokens)) {
      ManagedRow atOnce = ManagedRow.of(scenario.next("s", a, 0)).last();
      for (ManagedRow[] rows :
          new ManagedRow[][] {{first}, {last, anew}, {atOnce, anew.last(), anew}}) {
        try (ArrowBatch batch =
            StepBatches.managed(noLeaks.allocator(), a, DTYPE, false, List.of(rows))) {
          queue.add(batch, collected);
        }
      }
      queue.drain();
      assertThat(collected.refused).isEmpty();
      try (ArrowBatch batch = managed(a, anew);
          ArrowBatch result = other.step(batch)) {
        double[][] expected = StepBatches.read(result, "output")[0];
        assertClose(StepBatches.read(collected.results.get(1), "output")[1], expected);
        assertClose(StepBatches.read(collected.results.get(2), "output")[1], expected);
        assertClose(StepBatches.read(collected.results.get(2), "output")[2], expected);
      }
    }
  }

  /** Which layer's row comes next cannot be told otherwise. */
  @ParameterizedTest
  @ValueSource(booleans = {true, false})
  void anIdDoesNotBeginAgainBeforeItsSequenceHasEndedInAllLayers(boolean forks) {
    Job job = job(8, a, b);
    Scenario scenario = new Scenario(job, DTYPE, 5);
    StepRow row = new Scenario(job, DTYPE, 6).next("s", a, 3).withSeqLen(forks ? 5 : 3);
    ManagedRow anew = forks ? ManagedRow.of(row).forkedFrom("parent") : ManagedRow.of(row);
    ManagedRow parent = ManagedRow.of(scenario.next("parent", a, 2));
    ManagedRow ended = ManagedRow.of(scenario.next("s", a, 21)).last();
    ManagedRow prompt = ManagedRow.of(scenario.next("s", b, 20));
    try (PagedAttention attention = open(job, 1, OutOfBlocks.FAIL);
        PagedAttention other = open(job, 1, OutOfBlocks.FAIL)) {
      for (PagedAttention each : List.of(attention, other)) {
        run(each, a, parent, ended);
        run(each, b, prompt);
      }
      List<RefusedRow> refused = new ArrayList<>();
      try (ArrowBatch batch = managed(a, anew)) {
        refused.addAll(attention.check(batch));
        attention.step(batch, refused::add).close();
      }
      assertThat(refused)
          .hasSize(2)
          .extracting(RefusedRow::message)
          .containsOnly(
              "column sequence_id: sequence s has ended in layer a and not in layer b; expected its"
                  + " last rows there before the id begins again, or a row without tokens that ends"
                  + " it");
      try (ArrowBatch last = managed(b, ManagedRow.of(scenario.next("s", b, 1)).last());
          ArrowBatch expected = other.step(last);
          ArrowBatch got = attention.step(last)) {
        assertSameBits(got, expected);
      }
      run(attention, a, anew);
      assertThat(tables(attention).sequences()).isEqualTo(2);
    }
  }

  /** Only with the blocks of the one before it is there room for it. */
  @Test
  void whatIsBegunAnewHasTheBlocksOfTheSequenceThatHasEnded() {
    Job job = job(4, a, b);
    Scenario scenario = new Scenario(job, DTYPE, 5);
    try (PagedAttention attention = open(job, 1, OutOfBlocks.FAIL)) {
      run(attention, a, ManagedRow.of(scenario.next("s", a, 40)).last());
      run(
          attention,
          a,
          ManagedRow.of(scenario.next("s", a, 0)).last(),
          ManagedRow.of(scenario.next("other", a, 5)),
          ManagedRow.of(new Scenario(job, DTYPE, 6).next("s", a, 48)));
      assertThat(inUse(attention)).isEqualTo(4);
      assertThat(tables(attention).sequences()).isEqualTo(2);
    }
  }

  /** The other layer has as many tokens then, but has not seen its own last row. */
  @Test
  void theLastRowsNeedNotBringTokens() {
    Job job = job(8, a, b);
    Scenario scenario = new Scenario(job, DTYPE, 7);
    addManaged(job, layer -> ManagedRow.of(scenario.next("s", layer, 20)));
    addManaged(job, layer -> ManagedRow.of(scenario.next("s", layer, 2, 0)).last());
    assertQueueComputes(job, 64, 1000);
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
    LayerSpec owner = layer("owner").build();
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
  void paddingBehindTheEndInOneLayerLeavesTheOthersTheSequence() {
    Job job = job(8, a, b);
    Scenario scenario = new Scenario(job, DTYPE, 7);
    try (PagedAttention attention = open(job)) {
      for (LayerSpec layer : job.layers()) {
        run(attention, layer, ManagedRow.of(scenario.next("s", layer, 20)));
      }
      run(attention, a, ManagedRow.of(scenario.next("s", a, 1)).last());
      run(attention, a, ManagedRow.of(scenario.next("s", a, 0).withSeqLen(0)));
      assertThat(inUse(attention)).isEqualTo(2);
      run(attention, b, ManagedRow.of(scenario.next("s", b, 1)).last());
      assertThat(inUse(attention)).isZero();
    }
  }

  /** The rows are in two steps, and the parent has grown in the first. */
  @ParameterizedTest
  @ValueSource(booleans = {true, false})
  void anIdDoesNotEndAndForkInOneBatch(boolean isRehearsed) {
    Job job = job(a);
    Scenario first = new Scenario(job, DTYPE, 7);
    Scenario second = new Scenario(job, DTYPE, 8);
    StepRow child = second.next("s", a, 1).withSeqLen(4);
    try (PagedAttention attention = open(job)) {
      ManagedRow parent = ManagedRow.of(first.next("parent", a, 3));
      run(attention, a, parent, ManagedRow.of(first.next("s", a, 2)));
      List<RefusedRow> refused = new ArrayList<>();
      try (ArrowBatch batch =
          managed(
              a,
              ManagedRow.of(first.next("parent", a, 5)),
              ManagedRow.of(first.next("s", a, 1)).last(),
              ManagedRow.of(child).forkedFrom("parent"))) {
        if (isRehearsed) {
          refused.addAll(attention.rehearse(batch));
        } else {
          attention.step(batch, refused::add).close();
        }
      }
      assertThat(refused)
          .singleElement()
          .extracting(RefusedRow::message, InstanceOfAssertFactories.STRING)
          .isEqualTo(
              "column parent_sequence_id: sequence s ends in an earlier row of the batch, expected"
                  + " null, or this row in a later batch, got parent");
    }
  }
}
