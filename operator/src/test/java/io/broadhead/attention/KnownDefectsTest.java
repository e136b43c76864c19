// SPDX-License-Identifier: Apache-2.0
package io.broadhead.attention;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.within;

import io.broadhead.arrow.ArrowBatch;
import io.broadhead.arrow.DType;
import io.broadhead.attention.job.AttnType;
import io.broadhead.attention.job.Job;
import io.broadhead.attention.job.KvCacheDtype;
import io.broadhead.attention.job.KvCacheSpec;
import io.broadhead.attention.job.LayerSpec;
import io.broadhead.attention.job.RopeSpec;
import io.broadhead.attention.testing.NoLeaks;
import io.broadhead.attention.testing.Numbers;
import io.broadhead.attention.testing.ReferenceAttention;
import io.broadhead.attention.testing.Scenario;
import io.broadhead.attention.testing.StepBatches;
import io.broadhead.attention.testing.StepRow;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.stream.IntStream;
import java.util.stream.Stream;
import org.apache.arrow.memory.ArrowBuf;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.extension.RegisterExtension;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.EnumSource;
import org.junit.jupiter.params.provider.MethodSource;

/**
 * What vLLM's ROCm backend gets wrong or ignores, and this one must not; the page {@code
 * differences-from-vllm-rocm.md} names these tests.
 */
class KnownDefectsTest {
  private static final List<Float> SLOPES = List.of(0.5f, -0.25f, 1f, -1f);
  private static final List<Float> SINKS = List.of(0.5f, -2f, 3f, 0f);

  @RegisterExtension private final NoLeaks noLeaks = new NoLeaks();

  private static LayerSpec.Builder layer() {
    return LayerSpec.builder("a", 4, 64).numKvHeads(2);
  }

  private static Job job(int blockSize, LayerSpec layer) {
    return new Job(new KvCacheSpec(blockSize, 32, null), List.of(layer));
  }

  private PagedAttention open(Job job) {
    return PagedAttention.open(job, new AttentionConfig("auto", 1, 0), noLeaks.allocator());
  }

  private double[][][] step(PagedAttention attention, DType dtype, StepRow... rows) {
    LayerSpec layer = attention.job().layers().get(0);
    try (ArrowBatch batch = StepBatches.of(noLeaks.allocator(), layer, dtype, List.of(rows));
        ArrowBatch result = attention.step(batch)) {
      return StepBatches.read(result, "output");
    }
  }

  static Stream<LayerSpec> combinations() {
    return Stream.of(
        layer().alibiSlopes(SLOPES).slidingWindow(5).build(),
        layer().alibiSlopes(SLOPES).sinks(SINKS).build(),
        layer().alibiSlopes(SLOPES).outputScale(0.02f).build(),
        layer().logitsSoftCap(1.5f).build(),
        layer().sinks(SINKS).slidingWindow(3).build(),
        layer().attnType(AttnType.ENCODER).slidingWindow(4).build(),
        layer().attnType(AttnType.ENCODER_DECODER).slidingWindow(4).build(),
        layer().attnType(AttnType.ENCODER_ONLY).slidingWindow(1).build(),
        layer().attnType(AttnType.ENCODER).sinks(SINKS).build(),
        layer().attnType(AttnType.ENCODER).alibiSlopes(SLOPES).build(),
        layer().attnType(AttnType.ENCODER).logitsSoftCap(1.5f).build(),
        layer().attnType(AttnType.ENCODER_ONLY).outputScale(0.02f).build(),
        layer().rope(new RopeSpec(20, 64, 10000, true)).build(),
        layer().rope(new RopeSpec(64, 64, 10000, false)).build(),
        LayerSpec.builder("a", 4, 80).rope(new RopeSpec(80, 64, 10000, true)).build());
  }

  /**
   * One prefill of several tokens, one decode step, float16, a block size that is no power of 2.
   */
  @ParameterizedTest
  @MethodSource("combinations")
  void whatIsIgnoredThereCountsHere(LayerSpec layer) {
    Job job = job(48, layer);
    Scenario scenario = new Scenario(job, DType.FLOAT16, 4);
    ReferenceAttention reference = new ReferenceAttention(job, DType.FLOAT16);
    try (PagedAttention attention = open(job)) {
      for (int tokens : new int[] {19, 1, 7}) {
        StepRow row = scenario.next("s", layer, tokens);
        double[][][] expected = reference.step(layer, List.of(row)).output();
        assertThat(StepBatches.error(expected, step(attention, DType.FLOAT16, row)))
            .isLessThanOrEqualTo(
                StepBatches.tolerance(
                    layer.outputScale() > 0 ? DType.FLOAT8_E4M3FN : DType.FLOAT16));
      }
    }
  }

  @Test
  void aWindowOfOneSeesTheTokenItselfAndOfTwoOneMore() {
    for (int window : new int[] {1, 2}) {
      Job job = job(16, layer().slidingWindow(window).build());
      StepRow row = new Scenario(job, DType.FLOAT32, 4).next("s", job.layers().get(0), 9);
      double[][] zeroQuery = new double[9][4 * 64];
      StepRow uniform = withQuery(row, zeroQuery);
      try (PagedAttention attention = open(job)) {
        double[][] output = step(attention, DType.FLOAT32, uniform)[0];
        for (int i = 0; i < 9; i++) {
          int first = Math.max(0, i - window + 1);
          for (int e = 0; e < 64; e++) {
            double mean = 0;
            for (int j = first; j <= i; j++) {
              mean += row.value()[j][e] / (i - first + 1);
            }
            assertThat(output[i][e]).isCloseTo(mean, within(1e-6));
          }
        }
      }
    }
  }

  private static StepRow withQuery(StepRow row, double[][] query) {
    return new StepRow(
        row.sequenceId(),
        row.layer(),
        query,
        row.key(),
        row.value(),
        row.seqLen(),
        row.slots(),
        row.blocks(),
        row.positions());
  }

  @Test
  void keysOutsideTheWindowGetNoWeightHoweverLowTheScoresInside() {
    Job job = job(16, layer().slidingWindow(2).scale(1).build());
    StepRow row = new Scenario(job, DType.FLOAT32, 4).next("s", job.layers().get(0), 6);
    double[][] query = new double[6][4 * 64];
    for (int i = 0; i < 6; i++) {
      Arrays.fill(query[i], 100);
      // Scores of -64,000 in the window of the last token, 0 outside it.
      Arrays.fill(row.key()[i], i >= 4 ? -10 : 0);
    }
    try (PagedAttention attention = open(job)) {
      double[] last = step(attention, DType.FLOAT32, withQuery(row, query))[0][5];
      for (int e = 0; e < 64; e++) {
        double mean = (row.value()[4][e] + row.value()[5][e]) / 2;
        assertThat(last[e]).isCloseTo(mean, within(1e-5));
      }
    }
  }

  @Test
  void aSoftCapIsFiniteForLargeScores() {
    Job job = job(16, layer().logitsSoftCap(0.5f).scale(1).build());
    StepRow row = new Scenario(job, DType.FLOAT32, 4).next("s", job.layers().get(0), 3);
    double[][] query = new double[3][4 * 64];
    Arrays.stream(query).forEach(token -> Arrays.fill(token, 1e4));
    StepRow large = withQuery(row, query);
    double[][][] expected =
        new ReferenceAttention(job, DType.FLOAT32)
            .step(job.layers().get(0), List.of(large))
            .output();
    try (PagedAttention attention = open(job)) {
      assertThat(StepBatches.error(expected, step(attention, DType.FLOAT32, large)))
          .isLessThan(1e-5);
    }
  }

  @Test
  void unusedSlotsMayHoldNotANumber() {
    Job job = job(48, layer().slidingWindow(20).build());
    LayerSpec layer = job.layers().get(0);
    Scenario scenario = new Scenario(job, DType.FLOAT32, 4);
    ReferenceAttention reference = new ReferenceAttention(job, DType.FLOAT32);
    StepRow prompt = scenario.next("s", layer, 50);
    StepRow next = scenario.next("s", layer, 1);
    try (PagedAttention attention = open(job)) {
      long[] everyBlock = IntStream.range(0, 32).asLongStream().toArray();
      step(attention, DType.FLOAT32, scenario.next("other", layer, 1));
      try (ArrowBatch blocks = attention.blocks("a").read(everyBlock)) {
        for (String column : List.of("key", "value")) {
          ArrowBuf elements = blocks.column(column).child().values();
          for (long i = 0; i < elements.capacity() / 4; i++) {
            elements.setFloat(4 * i, Float.NaN);
          }
        }
        attention.blocks("a").write(everyBlock, blocks);
      }
      for (StepRow row : List.of(prompt, next)) {
        double[][][] expected = reference.step(layer, List.of(row)).output();
        // What a block table holds behind the blocks in use is nobody's business.
        int[] table = Arrays.copyOf(row.blocks(), row.blocks().length + 2);
        table[table.length - 1] = 1_000_000;
        table[table.length - 2] = -7;
        assertThat(
                StepBatches.error(expected, step(attention, DType.FLOAT32, row.withBlocks(table))))
            .isLessThan(1e-5);
      }
    }
  }

  @ParameterizedTest
  @EnumSource(
      value = KvCacheDtype.class,
      names = {"AUTO", "FP8_E4M3", "FP8_E5M2"})
  void resultsDoNotDependOnTheChunksOfAPrompt(KvCacheDtype stored) {
    Job job = job(16, layer().kvCacheDtype(stored).build());
    LayerSpec layer = job.layers().get(0);
    StepRow whole = new Scenario(job, DType.FLOAT16, 4).next("s", layer, 41);
    double[][] expected;
    try (PagedAttention attention = open(job)) {
      expected = step(attention, DType.FLOAT16, whole)[0];
    }
    for (int[] chunks : new int[][] {{1, 40}, {17, 23, 1}, {16, 16, 9}}) {
      List<double[]> got = new ArrayList<>();
      try (PagedAttention attention = open(job)) {
        int from = 0;
        for (int chunk : chunks) {
          StepRow part = tokens(whole, from, from + chunk);
          got.addAll(Arrays.asList(step(attention, DType.FLOAT16, part)[0]));
          from += chunk;
        }
      }
      assertThat(
              StepBatches.error(
                  new double[][][] {expected}, new double[][][] {got.toArray(new double[0][])}))
          .as("chunks %s", Arrays.toString(chunks))
          .isLessThan(1e-3);
    }
  }

  private static StepRow tokens(StepRow row, int from, int to) {
    return new StepRow(
        row.sequenceId(),
        row.layer(),
        Arrays.copyOfRange(row.query(), from, to),
        Arrays.copyOfRange(row.key(), from, to),
        Arrays.copyOfRange(row.value(), from, to),
        to,
        Arrays.copyOfRange(row.slots(), from, to),
        row.blocks(),
        Arrays.copyOfRange(row.positions(), from, to));
  }

  @Test
  void aQueryWithoutItsOwnKeysReadsThemFromTheCache() {
    Job job = job(16, layer().build());
    LayerSpec layer = job.layers().get(0);
    StepRow row = new Scenario(job, DType.FLOAT32, 4).next("s", layer, 9);
    try (PagedAttention attention = open(job)) {
      double[][][] both = step(attention, DType.FLOAT32, row);
      StepRow attendOnly =
          new StepRow(
              "s",
              "a",
              row.query(),
              new double[0][],
              new double[0][],
              9,
              new long[0],
              row.blocks(),
              row.positions());
      assertThat(step(attention, DType.FLOAT32, attendOnly)).isDeepEqualTo(both);
    }
  }

  @Test
  void crossAttentionTakesSeveralQueriesAndItsKeysOnce() {
    Job job = job(16, layer().attnType(AttnType.ENCODER_DECODER).build());
    LayerSpec layer = job.layers().get(0);
    Scenario scenario = new Scenario(job, DType.FLOAT32, 4);
    ReferenceAttention reference = new ReferenceAttention(job, DType.FLOAT32);
    try (PagedAttention attention = open(job)) {
      for (StepRow row :
          List.of(
              scenario.next("s", layer, 4, 37),
              scenario.next("s", layer, 3, 0),
              scenario.next("s", layer, 1, 0))) {
        double[][][] expected = reference.step(layer, List.of(row)).output();
        assertThat(StepBatches.error(expected, step(attention, DType.FLOAT32, row)))
            .isLessThan(1e-5);
      }
    }
  }

  @Test
  void rowsWithoutQueriesOrLengthLeaveTheirNeighboursAlone() {
    Job job = job(16, layer().build());
    LayerSpec layer = job.layers().get(0);
    Scenario scenario = new Scenario(job, DType.FLOAT32, 4);
    StepRow none = scenario.next("none", layer, 0, 5);
    StepRow one = scenario.next("one", layer, 1, 8);
    StepRow padding =
        scenario.next("padding", layer, 2, 2).withSlots(-1, -1).withSeqLen(0).withBlocks();
    StepRow last = scenario.next("last", layer, 3, 3);
    double[][][] expected =
        new ReferenceAttention(job, DType.FLOAT32)
            .step(layer, List.of(none, one, padding, last))
            .output();
    try (PagedAttention attention = open(job)) {
      double[][][] got = step(attention, DType.FLOAT32, none, one, padding, last);
      assertThat(StepBatches.error(expected, got)).isLessThan(1e-5);
      assertThat(got[0]).isEmpty();
      for (double[] token : got[2]) {
        assertThat(token).containsOnly(0);
      }
    }
  }

  @Test
  void float16IsRoundedOnceToFp8() {
    // -1.2099609375 / 0.08965013 lies so that a rounding to float16 in between gives another code.
    Job job = job(16, layer().kvCacheDtype(KvCacheDtype.FP8_E4M3).kScale(0.08965013f).build());
    StepRow row = new Scenario(job, DType.FLOAT16, 4).next("s", job.layers().get(0), 1);
    row.key()[0][0] = -1.2099609375;
    try (PagedAttention attention = open(job)) {
      step(attention, DType.FLOAT16, row);
      long slot = row.slots()[0];
      try (ArrowBatch block = attention.blocks("a").read(slot / 16)) {
        byte code = block.column("key").child().values().getByte(slot % 16 * 2 * 64);
        assertThat(code & 0xff).isEqualTo(0xD5);
        assertThat(Numbers.round(-1.2099609375 / 0.08965013f, DType.FLOAT8_E4M3FN)).isEqualTo(-13);
      }
    }
  }
}
