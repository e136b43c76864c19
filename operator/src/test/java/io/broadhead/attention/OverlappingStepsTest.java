// SPDX-License-Identifier: Apache-2.0
package io.broadhead.attention;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import io.broadhead.arrow.ArrowBatch;
import io.broadhead.arrow.DType;
import io.broadhead.attention.job.Job;
import io.broadhead.attention.job.KvCacheSpec;
import io.broadhead.attention.job.LayerSpec;
import io.broadhead.attention.testing.Closing;
import io.broadhead.attention.testing.Collected;
import io.broadhead.attention.testing.EmulatedDevice;
import io.broadhead.attention.testing.ManagedRow;
import io.broadhead.attention.testing.NoLeaks;
import io.broadhead.attention.testing.Overlap;
import io.broadhead.attention.testing.ReferenceAttention;
import io.broadhead.attention.testing.Scenario;
import io.broadhead.attention.testing.StepBatches;
import io.broadhead.attention.testing.StepRow;
import io.broadhead.kernel.ErrorCode;
import io.broadhead.kernel.KernelException;
import java.util.ArrayList;
import java.util.List;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.extension.RegisterExtension;

/** Steps that a device computes while the caller begins the next one. */
class OverlappingStepsTest {
  private static final DType DTYPE = DType.FLOAT16;
  private static final LayerSpec LAYER = LayerSpec.builder("a", 4, 64).numKvHeads(2).build();
  private static final LayerSpec OTHER = LayerSpec.builder("b", 4, 64).numKvHeads(2).build();
  private static final Job JOB = new Job(new KvCacheSpec(16, 32, null), List.of(LAYER, OTHER));

  @RegisterExtension private final NoLeaks noLeaks = new NoLeaks();

  private final Scenario scenario = new Scenario(JOB, DTYPE, 5);
  private final ReferenceAttention reference = new ReferenceAttention(JOB, DTYPE);
  private final Collected collecting = new Collected();
  private final List<ArrowBatch> results = collecting.results;
  private PagedAttention attention;

  @BeforeEach
  void open() {
    Overlap.assumeHere();
    attention = PagedAttention.open(JOB, new AttentionConfig("auto", 1, 0), noLeaks.allocator());
  }

  @AfterEach
  void close() {
    results.forEach(ArrowBatch::close);
    if (attention != null) {
      attention.close();
    }
  }

  private void add(StepQueue queue, boolean managed, StepHandler handler, StepRow... rows) {
    LayerSpec layer = JOB.layer(rows[0].layer()).orElseThrow();
    List<ManagedRow> managedRows = List.of(rows).stream().map(ManagedRow::of).toList();
    try (ArrowBatch batch =
        managed
            ? StepBatches.managed(noLeaks.allocator(), layer, DTYPE, true, managedRows)
            : StepBatches.of(noLeaks.allocator(), layer, DTYPE, List.of(rows))) {
      queue.add(batch, handler);
    }
  }

  private List<Object> sequences() {
    return results.stream()
        .map(result -> (Object) result.column("sequence_id").getString(0))
        .toList();
  }

  @Test
  void aResultComesWhenTheNextStepWasBegun() {
    for (boolean joined : new boolean[] {false, true}) {
      List<double[][][]> expected = new ArrayList<>();
      List<StepReport> reports = new ArrayList<>();
      try (PagedAttention own =
              PagedAttention.open(JOB, new AttentionConfig("auto", 1, 0), noLeaks.allocator());
          StepQueue queue = own.queue(joined ? 64 : 0, reports::add)) {
        Scenario rows = new Scenario(JOB, DTYPE, 7);
        ReferenceAttention exact = new ReferenceAttention(JOB, DTYPE);
        for (int step = 0; step < 12; step++) {
          // Each layer has a cache of its own; the second sequence begins late.
          LayerSpec layer = step % 3 == 2 ? OTHER : LAYER;
          StepRow[] batch = {
            rows.next("s", layer, step < 3 ? 20 : 1), rows.next("t", layer, step < 3 ? 2 : 1)
          };
          expected.add(exact.step(layer, List.of(batch)).output());
          add(queue, true, collecting, batch);
          assertThat(queue.batches()).isOne();
          queue.step();
          assertThat(queue.batches()).isZero();
          assertThat(queue.inFlight()).isPresent();
          assertThat(reports).hasSize(step).allMatch(report -> report.rows() == 2);
          assertThat(results).hasSize(step);
        }
        assertThat(queue.isEmpty()).isFalse();
        queue.drain();
        assertThat(queue.isEmpty()).isTrue();
      }
      assertThat(results).hasSize(expected.size());
      for (int i = 0; i < results.size(); i++) {
        double[][][] got = StepBatches.read(results.get(i), "output");
        assertThat(StepBatches.error(expected.get(i), got))
            .as("step %d", i)
            .isLessThan(StepBatches.tolerance(DTYPE));
        results.get(i).close();
      }
      results.clear();
    }
  }

  @Test
  void whoAwaitedAStepSettlesItAndNoLaterOne() throws Exception {
    try (StepQueue queue = attention.queue(0)) {
      add(queue, false, collecting, scenario.next("s", LAYER, 3));
      queue.step();
      StepQueue.InFlight first = queue.inFlight().orElseThrow();
      Thread waiter = new Thread(first::await);
      waiter.start();
      waiter.join();
      queue.settle(first);
      assertThat(results).hasSize(1);
      add(queue, false, collecting, scenario.next("s", LAYER, 1));
      queue.step();
      first.await();
      queue.settle(first);
      assertThat(results).hasSize(1);
      queue.drain();
      assertThat(results).hasSize(2);
    }
  }

  @Test
  void aRowIsRefusedWhenItsStepIsBegunAndWhatCameBeforeStillComes() {

    try (StepQueue queue = attention.queue(0)) {
      add(queue, false, collecting, scenario.next("good", LAYER, 3));
      queue.step();
      add(queue, false, new Closing(), scenario.next("bad", LAYER, 1).withSlots(1 << 20));
      assertThatThrownBy(queue::step)
          .isInstanceOf(InvalidBatchException.class)
          .hasMessageContainingAll("sequence bad, row 0", "slot_mapping");
      assertThat(sequences()).containsExactly("good");
    }
  }

  @Test
  void resultsKeepTheirOrderAroundRefusedBatches() {
    try (StepQueue queue = attention.queue(0)) {
      add(queue, false, collecting, scenario.next("first", LAYER, 3));
      queue.step();
      StepRow some = scenario.next("some", LAYER, 2);
      add(queue, false, collecting, some, scenario.next("bad", LAYER, 1).withSlots(1 << 20));
      while (queue.batches() > 0) {
        queue.step();
      }
      StepRow nowhere = scenario.next("nowhere", LAYER, 1).withLayer("c");
      try (ArrowBatch batch = StepBatches.of(noLeaks.allocator(), LAYER, DTYPE, List.of(nowhere))) {
        queue.add(batch, collecting);
      }
      assertThat(results).extracting(ArrowBatch::numRows).containsExactly(1, 1, 0);
      assertThat(collecting.refused)
          .extracting(RefusedRow::sequenceId)
          .containsExactly("bad", "nowhere");
      assertThat(queue.isEmpty()).isTrue();
    }
    double[][][] expected = reference.step(LAYER, List.of(scenarioAgain("first", 3))).output();
    assertThat(StepBatches.error(expected, StepBatches.read(results.get(0), "output")))
        .isLessThan(StepBatches.tolerance(DTYPE));
  }

  /** The first row of a scenario like the one of the test. */
  private static StepRow scenarioAgain(String sequence, int tokens) {
    return new Scenario(JOB, DTYPE, 5).next(sequence, LAYER, tokens);
  }

  @Test
  void closingDropsAStepInFlight() {
    StepQueue queue = attention.queue(0);
    add(queue, true, collecting, scenario.next("s", LAYER, 3));
    queue.step();
    StepQueue.InFlight step = queue.inFlight().orElseThrow();
    queue.close();
    assertThat(queue.isEmpty()).isTrue();
    assertThat(results).isEmpty();
    step.await();
    queue.settle(step);
    assertThat(results).isEmpty();
  }

  /** What a device that fails says, at the end of a step of layer a. */
  private static void assertDeviceFailed(Throwable failure) {
    assertThat(failure)
        .isInstanceOfSatisfying(
            KernelException.class, e -> assertThat(e.code()).isEqualTo(ErrorCode.DEVICE_ERROR))
        .hasMessageContainingAll("layer 'a'", "launch failure");
  }

  @Test
  void aDeviceThatFailsIsToldAtTheEndOfTheStep() {
    EmulatedDevice.assumeHere();
    try (StepQueue queue = attention.queue(0)) {
      add(queue, true, collecting, scenario.next("s", LAYER, 3));
      queue.step();
      add(queue, true, collecting, scenario.next("t", LAYER, 3));
      EmulatedDevice.fail();
      assertThatThrownBy(queue::step).satisfies(OverlappingStepsTest::assertDeviceFailed);
      assertThat(results).isEmpty();
      assertThat(queue.inFlight()).as("the younger step").isPresent();
      queue.drain();
      assertThat(sequences()).containsExactly("t");
    }
  }

  @Test
  void aRefusedRowDoesNotHideADeviceThatFailed() {
    EmulatedDevice.assumeHere();
    try (StepQueue queue = attention.queue(0)) {
      add(queue, false, collecting, scenario.next("good", LAYER, 3));
      queue.step();
      add(queue, false, new Closing(), scenario.next("bad", LAYER, 1).withSlots(1 << 20));
      EmulatedDevice.fail();
      assertThatThrownBy(queue::step)
          .isInstanceOf(InvalidBatchException.class)
          .hasMessageContaining("sequence bad, row 0")
          .satisfies(
              e ->
                  assertThat(e.getSuppressed())
                      .singleElement()
                      .satisfies(OverlappingStepsTest::assertDeviceFailed));
      assertThat(results).isEmpty();
    }
  }

  @Test
  void aCancelledStepFailsAtItsEnd() {
    try (StepQueue queue = attention.queue(0)) {
      add(queue, false, collecting, scenario.next("s", LAYER, 3));
      queue.step();
      attention.cancel();
      assertThatThrownBy(queue::drain)
          .isInstanceOfSatisfying(
              KernelException.class, e -> assertThat(e.code()).isEqualTo(ErrorCode.CANCELLED))
          .hasMessageContaining("layer 'a'");
      assertThat(results).isEmpty();
      assertThat(queue.isEmpty()).isTrue();
    }
  }
}
