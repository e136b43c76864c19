// SPDX-License-Identifier: Apache-2.0
package io.broadhead.flink;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import io.broadhead.arrow.ArrowBatch;
import io.broadhead.arrow.DType;
import io.broadhead.attention.job.Job;
import io.broadhead.attention.job.LayerSpec;
import io.broadhead.attention.testing.EmulatedDevice;
import io.broadhead.attention.testing.ManagedRow;
import io.broadhead.attention.testing.NoLeaks;
import io.broadhead.attention.testing.Overlap;
import io.broadhead.attention.testing.Scenario;
import io.broadhead.attention.testing.StepBatches;
import io.broadhead.kernel.ErrorCode;
import io.broadhead.kernel.KernelException;
import java.time.Duration;
import java.util.List;
import org.apache.flink.configuration.Configuration;
import org.apache.flink.runtime.execution.CancelTaskException;
import org.apache.flink.streaming.api.watermark.Watermark;
import org.apache.flink.streaming.runtime.watermarkstatus.WatermarkStatus;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.Timeout;
import org.junit.jupiter.api.extension.RegisterExtension;

/** Steps that a GPU computes while the task takes the next input, and what emits their results. */
@Timeout(60)
class OverlappingOperatorTest {
  @RegisterExtension private final NoLeaks noLeaks = new NoLeaks();

  private final Job job = OperatorHarness.JOB;
  private final LayerSpec layer = job.layers().get(0);
  private final Scenario scenario = new Scenario(job, DType.FLOAT32, 5);
  private OperatorHarness harness;

  @BeforeEach
  void open() throws Exception {
    Overlap.assumeHere();
    harness = new OperatorHarness(job, new Configuration());
    harness.open();
  }

  @AfterEach
  void close() throws Exception {
    if (harness != null) {
      harness.closeResults();
      harness.close();
    }
    assertThat(Thread.getAllStackTraces().keySet())
        .extracting(Thread::getName)
        .noneMatch(name -> name.startsWith("Broadhead steps of"));
  }

  private void process(long timestamp) throws Exception {
    try (ArrowBatch batch =
        StepBatches.of(
            noLeaks.allocator(), layer, DType.FLOAT32, List.of(scenario.next("s", layer, 1)))) {
      harness.processElement(batch, timestamp);
    }
  }

  @Test
  void aResultIsEmittedWhenTheNextStepWasBegun() throws Exception {
    for (long i = 0; i < 5; i++) {
      process(i);
      assertThat(harness.emitted()).hasSize((int) i);
    }
    harness.endInput();
    assertThat(harness.emitted()).containsExactly(0L, 1L, 2L, 3L, 4L);
  }

  /** A fork begins the steps of what it is forked from, and waits itself. */
  @Test
  void aResultIsEmittedThoughABatchThatForksWaits() throws Exception {
    harness.close();
    harness =
        new OperatorHarness(
            job,
            new Configuration()
                .set(PagedAttentionOptions.BATCH_MAX_TOKENS, 64)
                .set(PagedAttentionOptions.BATCH_MAX_DELAY, Duration.ofHours(1)));
    harness.open();
    ManagedRow parent = ManagedRow.of(scenario.next("parent", layer, 3));
    ManagedRow child = ManagedRow.of(scenario.next("child", layer, 1).withSeqLen(4));
    processManaged(7, parent);
    processManaged(8, child.forkedFrom("parent"));
    harness.awaitResults();
    assertThat(harness.emitted()).containsExactly(7L);
  }

  private void processManaged(long timestamp, ManagedRow row) throws Exception {
    try (ArrowBatch batch =
        StepBatches.managed(noLeaks.allocator(), layer, DType.FLOAT32, true, List.of(row))) {
      harness.processElement(batch, timestamp);
    }
  }

  @Test
  void aResultIsEmittedThoughNoInputFollows() throws Exception {
    process(7);
    assertThat(harness.emitted()).isEmpty();
    harness.awaitResults();
    assertThat(harness.emitted()).containsExactly(7L);
  }

  @Test
  void resultsComeBeforeTheWatermarkThatFollowedTheirBatch() throws Exception {
    process(7);
    harness.processWatermark(new Watermark(8));
    assertThat(harness.emitted()).containsExactly(7L, new Watermark(8));
  }

  @Test
  void resultsComeBeforeIdleness() throws Exception {
    process(7);
    harness.processWatermarkStatus(WatermarkStatus.IDLE);
    assertThat(harness.emitted()).containsExactly(7L, WatermarkStatus.IDLE);
  }

  @Test
  void resultsComeBeforeTheBarrier() throws Exception {
    process(7);
    harness.prepareSnapshotPreBarrier(1);
    assertThat(harness.emitted()).containsExactly(7L);
  }

  @Test
  void aTaskThatIsCancelledDoesNotFail() throws Exception {
    process(7);
    ((PagedAttentionOperator) harness.getOneInputOperator()).attention().cancel();
    assertThatThrownBy(() -> harness.processWatermark(new Watermark(8)))
        .isInstanceOf(CancelTaskException.class);
    assertThat(harness.emitted()).isEmpty();
  }

  @Test
  void aDeviceThatFailsFailsTheTaskThoughNoInputFollows() throws Exception {
    EmulatedDevice.assumeHere();
    process(7);
    EmulatedDevice.fail();
    assertThatThrownBy(harness::awaitResults)
        .isInstanceOfSatisfying(
            KernelException.class, e -> assertThat(e.code()).isEqualTo(ErrorCode.DEVICE_ERROR))
        .hasMessageContaining("layer 'a'");
    assertThat(harness.emitted()).isEmpty();
  }

  @Test
  void closingDropsAStepInFlight() throws Exception {
    process(7);
    // close() finds it, and what was taken from memory.
  }
}
