// SPDX-License-Identifier: Apache-2.0
package io.broadhead.flink;

import static org.assertj.core.api.Assertions.assertThat;

import io.broadhead.arrow.ArrowBatch;
import io.broadhead.arrow.BatchSchema;
import io.broadhead.arrow.DType;
import io.broadhead.attention.job.Job;
import io.broadhead.attention.job.LayerSpec;
import io.broadhead.attention.testing.NoLeaks;
import io.broadhead.attention.testing.Scenario;
import io.broadhead.attention.testing.StepBatches;
import java.time.Duration;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import org.apache.arrow.memory.ArrowBuf;
import org.apache.arrow.vector.types.pojo.ArrowType;
import org.apache.arrow.vector.types.pojo.Field;
import org.apache.arrow.vector.types.pojo.Schema;
import org.apache.flink.configuration.Configuration;
import org.apache.flink.runtime.jobgraph.OperatorID;
import org.apache.flink.streaming.api.watermark.Watermark;
import org.apache.flink.streaming.runtime.streamrecord.LatencyMarker;
import org.apache.flink.streaming.runtime.tasks.mailbox.TaskMailbox;
import org.apache.flink.streaming.runtime.watermarkstatus.WatermarkStatus;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.extension.RegisterExtension;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;

/** Batches that wait for others to join them, and what ends their waiting. */
class WaitingBatchesTest {
  private static final int MAX_TOKENS = 4;
  private static final long MAX_DELAY = 50;

  @RegisterExtension private final NoLeaks noLeaks = new NoLeaks();

  private static final LayerSpec OTHER = LayerSpec.builder("b", 4, 64).numKvHeads(2).build();

  private final Job job = OperatorHarness.JOB;
  private final LayerSpec layer = job.layers().get(0);
  private final Scenario scenario = new Scenario(job, DType.FLOAT32, 5);
  private OperatorHarness harness;

  @BeforeEach
  void open() throws Exception {
    harness = open(job);
  }

  private static OperatorHarness open(Job job) throws Exception {
    OperatorHarness harness =
        new OperatorHarness(
            job,
            new Configuration()
                .set(PagedAttentionOptions.BATCH_MAX_TOKENS, MAX_TOKENS)
                .set(PagedAttentionOptions.BATCH_MAX_DELAY, Duration.ofMillis(MAX_DELAY)));
    harness.open();
    return harness;
  }

  @AfterEach
  void close() throws Exception {
    harness.closeResults();
    harness.close();
  }

  private void process(String sequence, long timestamp) throws Exception {
    process(layer, sequence, 1, timestamp);
  }

  private void process(LayerSpec layer, String sequence, int tokens, long timestamp)
      throws Exception {
    try (ArrowBatch batch = batch(layer, sequence, tokens)) {
      harness.processElement(batch, timestamp);
    }
  }

  private ArrowBatch batch(LayerSpec layer, String sequence, int tokens) {
    return StepBatches.of(
        noLeaks.allocator(), layer, DType.FLOAT32, List.of(scenario.next(sequence, layer, tokens)));
  }

  /** Adds a batch with so many columns of 100 MiB more, which pass through and share memory. */
  private void processLarge(int columns, long timestamp) throws Exception {
    int bytes = 100 << 20;
    ArrowBuf memory = noLeaks.allocator().buffer(bytes);
    memory.writerIndex(bytes);
    List<Field> fields = new ArrayList<>();
    List<ArrowBuf> buffers = new ArrayList<>();
    for (int i = 0; i < columns; i++) {
      fields.add(Field.notNullable("large" + i, new ArrowType.FixedSizeBinary(bytes)));
      buffers.addAll(List.of(noLeaks.allocator().getEmpty(), memory));
      memory.getReferenceManager().retain();
    }
    memory.close();
    long[] ones = new long[columns];
    Arrays.fill(ones, 1);
    try (ArrowBatch large =
            ArrowBatch.adopt(
                BatchSchema.of(new Schema(fields)),
                1,
                ones,
                new long[columns],
                buffers.toArray(ArrowBuf[]::new),
                0);
        ArrowBatch step = batch(layer, "s" + timestamp, 1)) {
      fields.addAll(0, step.schema().arrow().getFields());
      try (ArrowBatch both = ArrowBatch.join(BatchSchema.of(new Schema(fields)), step, large)) {
        harness.processElement(both, timestamp);
      }
    }
  }

  @Test
  void enoughTokensMakeAStep() throws Exception {
    for (int i = 0; i < MAX_TOKENS; i++) {
      assertThat(harness.emitted()).isEmpty();
      process("s" + i, i);
    }
    harness.awaitResults();
    assertThat(harness.emitted()).containsExactly(0L, 1L, 2L, 3L);
  }

  @Test
  void theDelayEndsTheWaiting() throws Exception {
    process("s", 7);
    harness.setProcessingTime(MAX_DELAY - 1);
    assertThat(harness.emitted()).isEmpty();
    harness.setProcessingTime(MAX_DELAY);
    harness.awaitResults();
    assertThat(harness.emitted()).containsExactly(7L);
  }

  @Test
  void theDelayEndsTheWaitingInEveryCache() throws Exception {
    harness.close();
    harness = open(new Job(job.kvCache(), List.of(layer, OTHER)));
    process(layer, "s", 1, 7);
    process(OTHER, "s", 1, 8);
    harness.setProcessingTime(MAX_DELAY);
    harness.awaitResults();
    assertThat(harness.emitted()).containsExactly(7L, 8L);
  }

  @Test
  void theDelayIsThatOfTheOldestBatch() throws Exception {
    process("s", 7);
    harness.setProcessingTime(MAX_DELAY - 1);
    process("t", 8);
    harness.setProcessingTime(MAX_DELAY);
    harness.awaitResults();
    assertThat(harness.emitted()).containsExactly(7L, 8L);
  }

  @ParameterizedTest
  @ValueSource(booleans = {false, true})
  void theDelayOfComputedBatchesIsForgotten(boolean drained) throws Exception {
    for (int i = 0; i < (drained ? 1 : MAX_TOKENS); i++) {
      process("s" + i, i);
    }
    if (drained) {
      harness.prepareSnapshotPreBarrier(1);
    }
    harness.awaitResults();
    harness.closeResults();
    harness.getOutput().clear();
    harness.setProcessingTime(MAX_DELAY - 1);
    process("t", 7);
    harness.setProcessingTime(2 * MAX_DELAY - 2);
    assertThat(harness.emitted()).isEmpty();
    harness.setProcessingTime(2 * MAX_DELAY - 1);
    harness.awaitResults();
    assertThat(harness.emitted()).containsExactly(7L);
  }

  /** Whatever the timer was set for: the next step of a long prompt is due at once. */
  @Test
  void longPromptsAreComputedStepByStepWithOtherWorkBetween() throws Exception {
    process("s", 7);
    process(layer, "long", 4 * MAX_TOKENS - 1, 8);
    awaitFirstResults();
    assertThat(harness.emitted()).containsExactly(7L);
    harness.awaitResults();
    assertThat(harness.emitted()).containsExactly(7L, 8L);
  }

  private void awaitFirstResults() throws Exception {
    while (harness.emitted().isEmpty()) {
      harness.getTaskMailbox().take(TaskMailbox.MIN_PRIORITY).run();
    }
  }

  /** A step for each of them would have most of them wait for the whole prompt. */
  @Test
  void batchesJoinTheNextStepOfALongPrompt() throws Exception {
    process(layer, "long", 3 * MAX_TOKENS, 7);
    process(layer, "s", 1, 8);
    process(layer, "t", 1, 9);
    assertThat(harness.emitted()).isEmpty();
    harness.setProcessingTime(1);
    harness.awaitResults();
    assertThat(harness.emitted()).containsExactly(8L, 9L);
    harness.setProcessingTime(MAX_DELAY);
    harness.awaitResults();
    assertThat(harness.emitted()).containsExactly(8L, 9L, 7L);
  }

  @Test
  void noMoreJoinALongPromptThanAStepComputes() throws Exception {
    process(layer, "long", 3 * MAX_TOKENS, 7);
    for (int i = 0; i < MAX_TOKENS; i++) {
      assertThat(harness.emitted()).isEmpty();
      process(layer, "s" + i, 1, 8 + i);
    }
    awaitFirstResults();
    assertThat(harness.emitted()).containsExactly(8L, 9L);
  }

  /** They were there before the steps of those in front of them. */
  @Test
  void theLastTokensOfALongPromptDoNotWaitAnew() throws Exception {
    process(layer, "long", 3 * MAX_TOKENS - 1, 7);
    harness.setProcessingTime(MAX_DELAY); // as if the first steps had taken so long
    harness.awaitResults();
    assertThat(harness.emitted()).containsExactly(7L);
  }

  @Test
  void theLastTokensOfALongPromptWaitAsLongAsABatchDoes() throws Exception {
    process(layer, "long", 2 * MAX_TOKENS - 1, 7);
    harness.setProcessingTime(MAX_DELAY - 1);
    harness.awaitResults();
    assertThat(harness.emitted()).isEmpty();
    harness.setProcessingTime(MAX_DELAY);
    harness.awaitResults();
    assertThat(harness.emitted()).containsExactly(7L);
  }

  @Test
  void whatAFullStepLeavesHasADelayOfItsOwn() throws Exception {
    process("s", 7);
    harness.setProcessingTime(MAX_DELAY - 1);
    for (String sequence : new String[] {"t", "u"}) {
      process(layer, sequence, 2, 8);
    }
    harness.setProcessingTime(2 * MAX_DELAY - 2);
    harness.awaitResults();
    assertThat(harness.emitted()).containsExactly(7L, 8L);
    harness.setProcessingTime(2 * MAX_DELAY - 1);
    harness.awaitResults();
    assertThat(harness.emitted()).containsExactly(7L, 8L, 8L);
  }

  @Test
  void fewLargeBatchesWait() throws Exception {
    processLarge(1, 1);
    processLarge(1, 2);
    assertThat(harness.emitted()).isEmpty();
    processLarge(1, 3);
    harness.awaitResults();
    assertThat(harness.emitted()).containsExactly(1L, 2L, 3L);
  }

  @Test
  void oneBatchWaitsHoweverLargeItIs() throws Exception {
    processLarge(3, 1);
    assertThat(harness.emitted()).isEmpty();
    process("s", 2);
    harness.awaitResults();
    assertThat(harness.emitted()).containsExactly(1L, 2L);
  }

  @Test
  void resultsComeBeforeTheWatermarkThatFollowedTheirBatch() throws Exception {
    process("s", 7);
    harness.processWatermark(new Watermark(8));
    assertThat(harness.emitted()).containsExactly(7L, new Watermark(8));
  }

  @Test
  void resultsComeBeforeIdleness() throws Exception {
    process("s", 7);
    harness.processWatermarkStatus(WatermarkStatus.IDLE);
    assertThat(harness.emitted()).containsExactly(7L, WatermarkStatus.IDLE);
  }

  @Test
  void resultsComeBeforeTheBarrier() throws Exception {
    process("s", 7);
    harness.prepareSnapshotPreBarrier(1);
    assertThat(harness.emitted()).containsExactly(7L);
  }

  @Test
  void resultsComeBeforeTheEndOfInput() throws Exception {
    process("s", 7);
    harness.endInput();
    assertThat(harness.emitted()).containsExactly(7L);
  }

  /** The task runs the mails that it has at its end, and takes no more. */
  @Test
  void noMailIsSentForWhatTheEndOfInputHasComputed() throws Exception {
    process(layer, "long", 3 * MAX_TOKENS, 7);
    harness.endInput();
    harness.getTaskMailbox().quiesce();
    harness.awaitResults();
    assertThat(harness.emitted()).containsExactly(7L);
  }

  @Test
  void latencyMarkersDoNotWait() throws Exception {
    LatencyMarker marker = new LatencyMarker(1, new OperatorID(), 0);
    process("s", 7);
    harness.getOneInputOperator().processLatencyMarker(marker);
    assertThat(harness.emitted()).containsExactly(marker);
  }
}
