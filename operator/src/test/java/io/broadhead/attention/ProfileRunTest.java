// SPDX-License-Identifier: Apache-2.0
package io.broadhead.attention;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import io.broadhead.arrow.ArrowBatch;
import io.broadhead.arrow.DType;
import io.broadhead.arrow.TensorField;
import io.broadhead.attention.job.Job;
import io.broadhead.attention.job.KvCacheSpec;
import io.broadhead.attention.job.LayerSpec;
import io.broadhead.attention.testing.NoLeaks;
import io.broadhead.attention.testing.Scenario;
import io.broadhead.attention.testing.StepBatches;
import io.broadhead.kernel.ErrorCode;
import java.util.Arrays;
import java.util.List;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.extension.RegisterExtension;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.EnumSource;

class ProfileRunTest {
  @RegisterExtension private final NoLeaks noLeaks = new NoLeaks();

  private static Job job(LayerSpec... layers) {
    return new Job(new KvCacheSpec(16, 8, null), List.of(layers));
  }

  private static LayerSpec.Builder layer(String name) {
    return LayerSpec.builder(name, 4, 64).numKvHeads(2);
  }

  private PagedAttention open(Job job) {
    return PagedAttention.open(job, new AttentionConfig("auto", 1, 0), noLeaks.allocator());
  }

  /** Two rows of three queries and one. */
  private ArrowBatch steps(Job job, DType dtype) {
    LayerSpec layer = job.layers().get(0);
    Scenario scenario = new Scenario(job, dtype, 1);
    return StepBatches.of(
        noLeaks.allocator(),
        layer,
        dtype,
        List.of(scenario.next("s", layer, 3), scenario.next("t", layer, 1)));
  }

  @ParameterizedTest
  @EnumSource(names = {"FLOAT32", "FLOAT16", "BFLOAT16"})
  void queriesAloneGiveZerosAndNoCache(DType dtype) {
    Job job = job(layer("a").build());
    try (PagedAttention attention = open(job);
        ArrowBatch steps = steps(job, dtype);
        ArrowBatch queries = StepBatches.select(steps, "query");
        ArrowBatch result = attention.profile(queries)) {
      assertThat(result.schema().arrow().getFields())
          .extracting(field -> field.getName())
          .containsExactly("output");
      assertZeros(result, dtype);
      assertThat(attention.cacheBytes()).isZero();
      assertThat(attention.lastStep()).isNull();
    }
  }

  private static void assertZeros(ArrowBatch result, DType dtype) {
    assertThat(TensorField.of(result.schema().field(result.schema().index("output"))))
        .hasValueSatisfying(
            tensor -> {
              assertThat(tensor.dtype()).isEqualTo(dtype);
              assertThat(tensor.shape()).containsExactly(4, 64);
            });
    double[][][] output = StepBatches.read(result, "output");
    assertThat(output).hasNumberOfRows(2);
    assertThat(output[0]).hasDimensions(3, 256);
    assertThat(output[1]).hasDimensions(1, 256);
    for (double[][] row : output) {
      for (double[] token : row) {
        assertThat(Arrays.stream(token)).allMatch(x -> x == 0);
      }
    }
  }

  @Test
  void quantisedOutputAndLseHaveTheirShapes() {
    Job job = job(layer("a").outputScale(0.1f).returnLse(true).build());
    try (PagedAttention attention = open(job);
        ArrowBatch steps = steps(job, DType.FLOAT16);
        ArrowBatch result = attention.profile(steps)) {
      assertZeros(result, DType.FLOAT8_E4M3FN);
      assertThat(result.column("request").getString(0)).isEqualTo("for s at 3");
      double[][][] lse = StepBatches.read(result, "lse");
      assertThat(lse[0]).hasDimensions(3, 4);
      assertThat(lse[1]).hasDimensions(1, 4);
      for (double[][] row : lse) {
        for (double[] token : row) {
          assertThat(token).containsOnly(Double.NEGATIVE_INFINITY);
        }
      }
      try (ArrowBatch step = attention.step(steps)) {
        assertThat(result.schema()).isSameAs(step.schema());
      }
    }
  }

  @Test
  void theLayerColumnChoosesAmongSeveral() {
    Job job = job(layer("a").build(), LayerSpec.builder("b", 1, 32).build());
    try (PagedAttention attention = open(job);
        ArrowBatch steps = steps(job, DType.FLOAT32);
        ArrowBatch named = StepBatches.select(steps, "layer", "query");
        ArrowBatch unnamed = StepBatches.select(steps, "query");
        ArrowBatch noQuery = StepBatches.select(steps, "layer");
        ArrowBatch result = attention.profile(named)) {
      assertZeros(result, DType.FLOAT32);
      refused(attention, unnamed, "column layer: expected it, because the job has 2 layers");
      refused(attention, noQuery, "layer 'a': column query: expected list<tensor[4, 64]>");
    }
    Job other = job(LayerSpec.builder("a", 8, 32).build());
    try (PagedAttention attention = open(other);
        ArrowBatch steps = steps(job, DType.FLOAT32)) {
      refused(attention, steps, "layer 'a': column query: expected list<tensor[8, 32]>");
    }
  }

  private static void refused(PagedAttention attention, ArrowBatch batch, String message) {
    assertThatThrownBy(() -> attention.profile(batch))
        .isInstanceOfSatisfying(
            InvalidBatchException.class,
            e -> assertThat(e.code()).isEqualTo(ErrorCode.SCHEMA_MISMATCH))
        .hasMessageContaining(message);
  }
}
