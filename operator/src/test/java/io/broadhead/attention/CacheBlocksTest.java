// SPDX-License-Identifier: Apache-2.0
package io.broadhead.attention;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import io.broadhead.arrow.ArrowBatch;
import io.broadhead.arrow.DType;
import io.broadhead.arrow.TensorField;
import io.broadhead.attention.job.AttnType;
import io.broadhead.attention.job.Job;
import io.broadhead.attention.job.KvCacheDtype;
import io.broadhead.attention.job.KvCacheSpec;
import io.broadhead.attention.job.LayerSpec;
import io.broadhead.attention.testing.NoLeaks;
import io.broadhead.attention.testing.Numbers;
import io.broadhead.attention.testing.Scenario;
import io.broadhead.attention.testing.StepBatches;
import io.broadhead.attention.testing.StepRow;
import io.broadhead.kernel.ErrorCode;
import io.broadhead.kernel.KernelException;
import java.util.Arrays;
import java.util.List;
import java.util.stream.LongStream;
import org.assertj.core.api.ThrowableAssert.ThrowingCallable;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.extension.RegisterExtension;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

class CacheBlocksTest {
  private static final int NUM_BLOCKS = 12;

  @RegisterExtension private final NoLeaks noLeaks = new NoLeaks();

  private static LayerSpec.Builder layer(String name) {
    return LayerSpec.builder(name, 4, 64).numKvHeads(2);
  }

  private static Job job(int blockSize, LayerSpec... layers) {
    return new Job(new KvCacheSpec(blockSize, NUM_BLOCKS, null), List.of(layers));
  }

  private PagedAttention open(Job job) {
    return PagedAttention.open(job, new AttentionConfig("auto", 1, 0), noLeaks.allocator());
  }

  private double[][][] step(PagedAttention attention, LayerSpec layer, DType dtype, StepRow row) {
    try (ArrowBatch batch = StepBatches.of(noLeaks.allocator(), layer, dtype, List.of(row));
        ArrowBatch result = attention.step(batch)) {
      return StepBatches.read(result, "output");
    }
  }

  private static StepRow withoutKeys(StepRow row) {
    return new StepRow(
        row.sequenceId(),
        row.layer(),
        row.query(),
        new double[0][],
        new double[0][],
        row.seqLen(),
        new long[0],
        row.blocks(),
        row.positions());
  }

  private static long[] ids(int[] blocks) {
    return Arrays.stream(blocks).asLongStream().toArray();
  }

  @ParameterizedTest
  @CsvSource({
    "AUTO, FLOAT32, 16",
    "AUTO, FLOAT16, 32",
    "AUTO, BFLOAT16, 48",
    "FP8_E4M3, FLOAT16, 16",
    "FP8_E5M2, BFLOAT16, 32",
    "BFLOAT16, FLOAT32, 16",
  })
  void swappedBlocksComeBackBitForBit(KvCacheDtype stored, DType dtype, int blockSize) {
    LayerSpec layer = layer("a").kvCacheDtype(stored).kScale(stored.fp8() ? 0.5f : 1).build();
    Job job = job(blockSize, layer);
    Scenario scenario = new Scenario(job, dtype, 5);
    try (PagedAttention attention = open(job)) {
      StepRow prompt = scenario.next("s", layer, 2 * blockSize + 3);
      StepRow other = scenario.next("t", layer, 2 * blockSize + 3);
      double[][][] before = step(attention, layer, dtype, prompt);
      long[] blocks = ids(prompt.blocks());

      try (ArrowBatch swapped = attention.blocks("a").read(blocks)) {
        assertThat(swapped.numRows()).isEqualTo(blocks.length);
        TensorField tensor = TensorField.ofTensor(swapped.schema().field(0)).orElseThrow();
        assertThat(tensor.shape()).containsExactly(blockSize, 2, 64);
        assertThat(tensor.dtype()).isEqualTo(stored.dtype().orElse(dtype));
        // Another sequence gets the blocks meanwhile.
        step(attention, layer, dtype, other.withBlocks(prompt.blocks()).withSlots(prompt.slots()));
        assertThat(step(attention, layer, dtype, withoutKeys(prompt)))
            .matches(got -> !Arrays.deepEquals(got, before));

        attention.blocks("a").write(blocks, swapped);
        assertThat(step(attention, layer, dtype, withoutKeys(prompt))).isDeepEqualTo(before);

        // Other blocks do as well, in another process too.
        long[] moved = LongStream.range(0, NUM_BLOCKS).limit(blocks.length).toArray();
        try (PagedAttention elsewhere = open(job)) {
          elsewhere.blocks("a").write(moved, swapped);
          int[] table = Arrays.stream(moved).mapToInt(block -> (int) block).toArray();
          assertThat(step(elsewhere, layer, dtype, withoutKeys(prompt).withBlocks(table)))
              .isDeepEqualTo(before);
        }
      }
    }
  }

  @Test
  void blocksAreReadInLogicalOrder() {
    LayerSpec layer = layer("a").build();
    Job job = job(16, layer);
    StepRow row = new Scenario(job, DType.FLOAT32, 2).next("s", layer, 5);
    try (PagedAttention attention = open(job)) {
      step(attention, layer, DType.FLOAT32, row);
      try (ArrowBatch block = attention.blocks("a").read(row.blocks()[0])) {
        assertThat(block.numRows()).isEqualTo(1);
        for (int token = 0; token < 16; token++) {
          for (int i = 0; i < 2 * 64; i++) {
            double key = token < 5 ? row.key()[token][i] : 0;
            double value = token < 5 ? row.value()[token][i] : 0;
            assertThat(element(block, "key", token * 128 + i)).isEqualTo(key);
            assertThat(element(block, "value", token * 128 + i)).isEqualTo(value);
          }
        }
        attention.blocks("a").write(new long[] {11}, block);
      }
      assertThat(step(attention, layer, DType.FLOAT32, withoutKeys(row).withBlocks(11)))
          .isDeepEqualTo(step(attention, layer, DType.FLOAT32, withoutKeys(row)));
    }
  }

  private static double element(ArrowBatch block, String column, long index) {
    return Numbers.read(block.column(column).child().values(), index, DType.FLOAT32);
  }

  @Test
  void copiesBlocks() {
    LayerSpec layer = layer("a").build();
    LayerSpec sharing = layer("b").kvSharingTargetLayerName("a").build();
    Job job = job(16, layer, sharing);
    StepRow row = new Scenario(job, DType.FLOAT16, 2).next("s", layer, 20);
    try (PagedAttention attention = open(job)) {
      double[][][] before = step(attention, layer, DType.FLOAT16, row);
      long[] source = ids(row.blocks());
      int[] free = freeBlocks(row.blocks());
      attention.blocks("b").copy(source, ids(free));
      assertThat(step(attention, layer, DType.FLOAT16, withoutKeys(row).withBlocks(free)))
          .isDeepEqualTo(before);
    }
  }

  private static int[] freeBlocks(int[] used) {
    return java.util.stream.IntStream.range(0, NUM_BLOCKS)
        .filter(block -> Arrays.stream(used).noneMatch(u -> u == block))
        .limit(used.length)
        .toArray();
  }

  @Test
  void whatIsOutOfRangeIsNamedAndNothingIsWritten() {
    LayerSpec layer = layer("a").build();
    LayerSpec encoder = layer("e").attnType(AttnType.ENCODER).build();
    LayerSpec fp8 = layer("f").kvCacheDtype(KvCacheDtype.FP8_E4M3).build();
    Job job = job(16, layer, encoder, fp8);
    StepRow row = new Scenario(job, DType.FLOAT32, 2).next("s", layer, 5);
    try (PagedAttention attention = open(job)) {
      refused(
          () -> attention.blocks("a").read(0),
          "layer 'a': its cache does not exist before the layer's first batch");
      double[][][] before = step(attention, layer, DType.FLOAT32, row);
      int used = row.blocks()[0];
      refused(() -> attention.blocks("a").read(12), "layer 'a': block: expected 0 to 11, got 12");
      refused(
          () -> attention.blocks("a").read(0, -1), "layer 'a': block: expected 0 to 11, got -1");
      refused(
          () -> attention.blocks("a").copy(new long[] {0, 0}, new long[] {used, 12}),
          "layer 'a': ",
          "12");
      refused(
          () -> attention.blocks("a").copy(new long[] {0}, new long[0]),
          "layer 'a': copy: expected 1 target blocks, got 0");
      refused(() -> attention.blocks("x").read(0), "layer 'x': expected 'a', 'e', 'f'");
      refused(
          () -> attention.blocks("e").read(0),
          "layer 'e': expected a layer with a KV cache, got one of type encoder");
      try (ArrowBatch blocks = attention.blocks("a").read(0, 1);
          ArrowBatch codes = attention.blocks("f").read(0, 1);
          ArrowBatch keys = StepBatches.select(blocks, "key")) {
        refused(
            () -> attention.blocks("a").write(new long[] {used, 99}, blocks),
            "layer 'a': block: expected 0 to 11, got 99");
        refused(
            () -> attention.blocks("a").write(new long[] {used}, blocks),
            "layer 'a': contents: expected 1 rows, one for each block, got 2");
        refused(
            () -> attention.blocks("a").write(new long[] {used, 1}, keys),
            "layer 'a': column value: expected tensor[16, 2, 64]<float32>, got no such column");
        refused(
            () -> attention.blocks("a").write(new long[] {used, 1}, codes),
            "layer 'a': column key: expected tensor[16, 2, 64]<float32>");
      }
      assertThat(step(attention, layer, DType.FLOAT32, withoutKeys(row))).isDeepEqualTo(before);
    }
  }

  private static void refused(ThrowingCallable call, String... message) {
    assertThatThrownBy(call)
        .isInstanceOfSatisfying(
            KernelException.class,
            e -> assertThat(e.code()).isIn(ErrorCode.INVALID_ARGUMENT, ErrorCode.SCHEMA_MISMATCH))
        .hasMessageContainingAll(message);
  }
}
