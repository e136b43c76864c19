// SPDX-License-Identifier: Apache-2.0
package io.broadhead.attention;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import io.broadhead.arrow.ArrowBatch;
import io.broadhead.arrow.DType;
import io.broadhead.attention.job.AttnType;
import io.broadhead.attention.job.Job;
import io.broadhead.attention.job.KvCacheSpec;
import io.broadhead.attention.job.LayerSpec;
import io.broadhead.attention.testing.NoLeaks;
import io.broadhead.attention.testing.ReferenceAttention;
import io.broadhead.attention.testing.Scenario;
import io.broadhead.attention.testing.StepBatches;
import io.broadhead.attention.testing.StepRow;
import io.broadhead.kernel.ErrorCode;
import java.util.Arrays;
import java.util.List;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.extension.RegisterExtension;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.EnumSource;

class PartialResultsTest {
  private static final AttentionConfig ONE_THREAD = new AttentionConfig("auto", 1, 0);
  private static final LayerSpec LAYER =
      LayerSpec.builder("a", 4, 64)
          .numKvHeads(2)
          .attnType(AttnType.ENCODER)
          .returnLse(true)
          .build();
  private static final Job JOB = new Job(new KvCacheSpec(16, 8, null), List.of(LAYER));

  @RegisterExtension private final NoLeaks noLeaks = new NoLeaks();

  private ArrowBatch batch(DType dtype, StepRow... rows) {
    return StepBatches.of(noLeaks.allocator(), LAYER, dtype, List.of(rows));
  }

  /** The row with its keys from {@code from} to {@code to} only. */
  private static StepRow keys(StepRow row, int from, int to) {
    return new StepRow(
        row.sequenceId(),
        row.layer(),
        row.query(),
        Arrays.copyOfRange(row.key(), from, to),
        Arrays.copyOfRange(row.value(), from, to),
        to - from,
        row.slots(),
        row.blocks(),
        row.positions());
  }

  @ParameterizedTest
  @EnumSource(names = {"FLOAT32", "FLOAT16", "BFLOAT16"})
  void disjointKeysMergeToAttentionOverAll(DType dtype) {
    Scenario scenario = new Scenario(JOB, dtype, 3);
    StepRow s = scenario.next("s", LAYER, 4, 50);
    StepRow t = scenario.next("t", LAYER, 2, 31);
    ReferenceAttention.Result expected =
        new ReferenceAttention(JOB, dtype).step(LAYER, List.of(s, t));
    // The first part sees none of the keys of row t.
    try (PagedAttention attention = PagedAttention.open(JOB, ONE_THREAD, noLeaks.allocator());
        PartialResults results = PartialResults.open(ONE_THREAD, noLeaks.allocator());
        ArrowBatch leftSteps = batch(dtype, keys(s, 0, 25), keys(t, 0, 0));
        ArrowBatch rightSteps = batch(dtype, keys(s, 25, 50), keys(t, 0, 31));
        ArrowBatch left = attention.step(leftSteps);
        ArrowBatch right = attention.step(rightSteps);
        ArrowBatch merged = results.merge(List.of(left, right));
        ArrowBatch again = attention.merge(List.of(right, left))) {
      for (ArrowBatch result : List.of(merged, again)) {
        // The parts were rounded, too.
        assertThat(StepBatches.error(expected.output(), StepBatches.read(result, "output")))
            .isLessThanOrEqualTo(2 * StepBatches.tolerance(dtype));
        assertThat(StepBatches.error(expected.lse(), StepBatches.read(result, "lse")))
            .isLessThanOrEqualTo(StepBatches.LSE_TOLERANCE);
      }
      assertThat(merged.column("request").getString(1)).isEqualTo("for t at 0");
    }
  }

  @Test
  void noKeysAtAllGiveZeros() {
    StepRow row = keys(new Scenario(JOB, DType.FLOAT16, 3).next("s", LAYER, 2, 3), 0, 0);
    try (PagedAttention attention = PagedAttention.open(JOB, ONE_THREAD, noLeaks.allocator());
        ArrowBatch steps = batch(DType.FLOAT16, row);
        ArrowBatch part = attention.step(steps);
        ArrowBatch merged = attention.merge(List.of(part, part))) {
      for (double[] token : StepBatches.read(merged, "output")[0]) {
        assertThat(token).containsOnly(0);
      }
      for (double[] token : StepBatches.read(merged, "lse")[0]) {
        assertThat(token).containsOnly(Double.NEGATIVE_INFINITY);
      }
    }
  }

  @Test
  void partsThatDoNotFitAreInvalidBatches() {
    Scenario scenario = new Scenario(JOB, DType.FLOAT16, 3);
    try (PagedAttention attention = PagedAttention.open(JOB, ONE_THREAD, noLeaks.allocator());
        ArrowBatch s = batch(DType.FLOAT16, scenario.next("s", LAYER, 2));
        ArrowBatch t = batch(DType.FLOAT16, scenario.next("t", LAYER, 2));
        ArrowBatch left = attention.step(s);
        ArrowBatch right = attention.step(t)) {
      assertThatThrownBy(() -> attention.merge(List.of(left, right)))
          .isInstanceOfSatisfying(
              InvalidBatchException.class,
              e -> {
                assertThat(e.code()).isEqualTo(ErrorCode.INVALID_ROW);
                assertThat(e.row()).isZero();
              })
          .hasMessage("part 2, row 0, column sequence_id: expected 's', as part 1 has, got 't'");
    }
  }
}
