// SPDX-License-Identifier: Apache-2.0
package io.broadhead.kernel;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;
import static org.assertj.core.api.Assertions.within;

import io.broadhead.arrow.ArrowBatch;
import io.broadhead.arrow.BatchRows;
import io.broadhead.arrow.DType;
import io.broadhead.arrow.TensorField;
import io.broadhead.testing.NoLeaks;
import io.broadhead.testing.StepBatchBuilder;
import java.util.Arrays;
import java.util.List;
import java.util.Random;
import org.apache.arrow.memory.ArrowBuf;
import org.apache.arrow.memory.BufferAllocator;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.extension.ExtendWith;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.EnumSource;

@ExtendWith(NoLeaks.class)
class ResultMergerTest {
  private static final int HEADS = 4;
  private static final int KV_HEADS = 2;
  private static final int HEAD_SIZE = 32;
  private static final int WIDTH = HEADS * HEAD_SIZE;
  private static final int KEYS = 64;
  private static final int[] SHAPE = {HEADS, HEAD_SIZE};
  private static final float NONE = Float.NEGATIVE_INFINITY;

  private static KernelEngine engine() {
    return KernelEngine.open(new EngineConfig("cpu", 1, 0));
  }

  @ParameterizedTest
  @EnumSource(names = {"FLOAT32", "FLOAT16", "BFLOAT16"})
  void halvesOfTheKeysMergeToTheWhole(DType dtype, BufferAllocator allocator) {
    Random random = new Random(11);
    float[][] keys = {normal(random, KEYS * KV_HEADS * HEAD_SIZE)};
    float[][] values = {normal(random, KEYS * KV_HEADS * HEAD_SIZE)};
    float[][] queries = {normal(random, 2 * WIDTH), normal(random, WIDTH)};
    LayerConfig config =
        LayerConfig.builder("layer0", HEADS, KV_HEADS, HEAD_SIZE)
            .attentionType(AttentionType.ENCODER_DECODER)
            .dtype(dtype)
            .returnLse(true)
            .build();
    long[] slots = new long[KEYS];
    Arrays.setAll(slots, i -> i);
    try (KernelEngine engine = engine();
        KernelCache cache =
            new KernelCache(engine, new CacheConfig(4, 16, KV_HEADS, HEAD_SIZE, dtype));
        KernelLayer layer = new KernelLayer(engine, config, cache);
        ArrowBatch update =
            new StepBatchBuilder(allocator, 1)
                .int64("sequence_id", row -> 0L)
                .tensors("key", dtype, new int[] {KV_HEADS, HEAD_SIZE}, keys)
                .tensors("value", dtype, new int[] {KV_HEADS, HEAD_SIZE}, values)
                .int32("seq_len", KEYS)
                .int64List("slot_mapping", slots)
                .int32List("block_table", new int[] {0, 1, 2, 3})
                .build();
        StepBinding writer = new StepBinding(layer, update.schema(), allocator);
        ArrowBatch written = writer.step(update);
        ArrowBatch all = attend(allocator, layer, dtype, queries, 0, 1, 2, 3);
        ArrowBatch left = attend(allocator, layer, dtype, queries, 0, 1);
        ArrowBatch middle = attend(allocator, layer, dtype, queries, 2);
        ArrowBatch right = attend(allocator, layer, dtype, queries, 3);
        ArrowBatch merged =
            new ResultMerger(engine, allocator).merge(List.of(left, middle, right))) {
      assertThat(written.numRows()).isEqualTo(1);
      assertThat(merged.schema()).isSameAs(all.schema());
      assertThat(merged.bytesCopied()).isZero();
      assertThat(merged.column("request").getString(1)).isEqualTo("r1 of [0, 1]");
      assertThat(merged.column("request").values().memoryAddress())
          .isEqualTo(left.column("request").values().memoryAddress());
      assertThat(merged.column("output").offset(2)).isEqualTo(3);
      assertThat(merged.column("lse").offset(1)).isEqualTo(2);
      float tolerance = dtype == DType.FLOAT32 ? 1e-6f : dtype == DType.FLOAT16 ? 2e-3f : 1.6e-2f;
      assertClose(elements(merged, "output", dtype), elements(all, "output", dtype), tolerance);
      assertClose(
          elements(merged, "lse", DType.FLOAT32), elements(all, "lse", DType.FLOAT32), 1e-5f);
    }
  }

  private static float[] normal(Random random, int count) {
    float[] values = new float[count];
    for (int i = 0; i < count; i++) {
      values[i] = (float) random.nextGaussian();
    }
    return values;
  }

  /** Attends two rows, of two tokens and one, to the keys in {@code blocks}. */
  private static ArrowBatch attend(
      BufferAllocator allocator, KernelLayer layer, DType dtype, float[][] queries, int... blocks) {
    try (ArrowBatch batch =
            new StepBatchBuilder(allocator, 2)
                .int64("sequence_id", row -> (long) row)
                .utf8("request", row -> "r" + row + " of " + Arrays.toString(blocks))
                .tensors("query", dtype, SHAPE, queries)
                .int32("seq_len", blocks.length * 16, blocks.length * 16)
                .int32List("block_table", blocks, blocks)
                .build();
        StepBinding binding = new StepBinding(layer, batch.schema(), allocator)) {
      return binding.step(batch);
    }
  }

  private static float[] elements(ArrowBatch batch, String column, DType dtype) {
    ArrowBuf values = batch.column(column).child().child().values();
    float[] elements = new float[(int) batch.column(column).child().child().length()];
    for (int i = 0; i < elements.length; i++) {
      elements[i] = StepBatchBuilder.element(values, i, dtype);
    }
    return elements;
  }

  private static void assertClose(float[] got, float[] expected, float tolerance) {
    assertThat(got).hasSameSizeAs(expected);
    for (int i = 0; i < got.length; i++) {
      assertThat(got[i]).as("element %d", i).isCloseTo(expected[i], within(tolerance));
    }
  }

  /** A result of one token a row: {@code output} holds one number everywhere. */
  private static StepBatchBuilder result(
      BufferAllocator allocator, DType dtype, float[] outputs, float[] lses) {
    float[][] values = new float[outputs.length][WIDTH];
    float[][] heads = new float[outputs.length][HEADS];
    for (int row = 0; row < outputs.length; row++) {
      Arrays.fill(values[row], outputs[row]);
      Arrays.fill(heads[row], lses[row]);
    }
    return new StepBatchBuilder(allocator, outputs.length)
        .int64("sequence_id", row -> 100L + row)
        .utf8("layer", row -> "layer0")
        .tensors("output", dtype, SHAPE, values)
        .tensors(TensorField.plainList("lse", DType.FLOAT32, HEADS), heads);
  }

  @ParameterizedTest
  @EnumSource(names = {"FLOAT32", "FLOAT16", "BFLOAT16"})
  void partsThatSawNothingHaveNoWeight(DType dtype, BufferAllocator allocator) {
    float nan = Float.NaN;
    float infinity = Float.POSITIVE_INFINITY;
    try (KernelEngine engine = engine();
        ArrowBatch left =
            result(
                    allocator,
                    dtype,
                    new float[] {1, nan, nan, 4, 2},
                    new float[] {0.5f, NONE, NONE, -3, 1})
                .build();
        ArrowBatch right =
            result(
                    allocator,
                    dtype,
                    new float[] {nan, 2, nan, nan, 4},
                    new float[] {NONE, 0.25f, NONE, infinity, 1})
                .build();
        ArrowBatch merged = new ResultMerger(engine, allocator).merge(List.of(left, right))) {
      float[] output = elements(merged, "output", dtype);
      float[] lse = elements(merged, "lse", DType.FLOAT32);
      float[] expected = {1, 2, 0, 4, 3};
      float[] expectedLse = {0.5f, 0.25f, NONE, -3, (float) (1 + Math.log(2))};
      for (int row = 0; row < expected.length; row++) {
        for (int i = 0; i < WIDTH; i++) {
          assertThat(output[row * WIDTH + i]).as("row %d", row).isEqualTo(expected[row]);
        }
        for (int head = 0; head < HEADS; head++) {
          assertThat(lse[row * HEADS + head])
              .as("lse of row %d", row)
              .isCloseTo(expectedLse[row], within(1e-6f));
        }
      }
    }
  }

  @Test
  void offsetsOfPartsMayStartAboveZero(BufferAllocator allocator) {
    float[] lses = {0, 1, 2};
    try (KernelEngine engine = engine();
        ArrowBatch whole = result(allocator, DType.FLOAT32, new float[] {1, 2, 3}, lses).build();
        ArrowBatch rest = BatchRows.take(whole, new int[] {1, 2}, allocator);
        ArrowBatch slice = slice(whole, 1, 2);
        ArrowBatch merged = new ResultMerger(engine, allocator).merge(List.of(slice, rest))) {
      assertThat(slice.column("output").offset(0)).isEqualTo(1);
      assertThat(merged.column("output").offset(0)).isZero();
      assertThat(merged.column("output").offset(2)).isEqualTo(2);
      assertThat(elements(merged, "output", DType.FLOAT32)).startsWith(2).endsWith(3);
    }
  }

  private static ArrowBatch slice(ArrowBatch batch, int from, int rows) {
    long[] lengths = new long[batch.schema().nodeCount()];
    ArrowBuf[] buffers = new ArrowBuf[batch.schema().bufferCount()];
    for (int i = 0; i < lengths.length; i++) {
      lengths[i] = batch.nodeLength(i);
    }
    for (int i = 0; i < buffers.length; i++) {
      buffers[i] = batch.buffer(i);
    }
    for (String name : List.of("sequence_id", "layer", "output", "lse")) {
      int column = batch.schema().index(name);
      int width = name.equals("sequence_id") ? 8 : 4;
      int buffer = batch.schema().firstBuffer(column) + 1;
      lengths[batch.schema().firstNode(column)] = rows;
      buffers[buffer] =
          buffers[buffer].slice((long) from * width, buffers[buffer].capacity() - from * width);
    }
    for (ArrowBuf buffer : buffers) {
      buffer.getReferenceManager().retain();
    }
    return ArrowBatch.adopt(batch.schema(), rows, lengths, new long[lengths.length], buffers, 0);
  }

  @Test
  void batchesWithoutRowsMergeToOne(BufferAllocator allocator) {
    try (KernelEngine engine = engine();
        ArrowBatch none = result(allocator, DType.FLOAT16, new float[0], new float[0]).build();
        ArrowBatch merged = new ResultMerger(engine, allocator).merge(List.of(none, none))) {
      assertThat(merged.numRows()).isZero();
      assertThat(merged.schema()).isSameAs(none.schema());
    }
  }

  @Test
  void whatDoesNotFitIsNamed(BufferAllocator allocator) {
    float[] ones = {1, 1};
    try (KernelEngine engine = engine();
        ArrowBatch good = result(allocator, DType.FLOAT32, ones, ones).build();
        ArrowBatch half = result(allocator, DType.FLOAT16, ones, ones).build();
        ArrowBatch three =
            result(allocator, DType.FLOAT32, new float[] {1, 1, 1}, new float[3]).build();
        ArrowBatch otherSequence = columns(allocator, DType.FLOAT32, 7, "layer0", 1, 1, HEADS);
        ArrowBatch otherLayer = columns(allocator, DType.FLOAT32, 101, "layer1", 1, 1, HEADS);
        ArrowBatch moreTokens = columns(allocator, DType.FLOAT32, 101, "layer0", 2, 2, HEADS);
        ArrowBatch moreLses = columns(allocator, DType.FLOAT32, 101, "layer0", 1, 2, HEADS);
        ArrowBatch otherHeads = columns(allocator, DType.FLOAT32, 101, "layer0", 1, 1, 2);
        ArrowBatch noLse =
            new StepBatchBuilder(allocator, 1)
                .int64("sequence_id", row -> 1L)
                .tensors("output", DType.FLOAT32, SHAPE, new float[][] {new float[WIDTH]})
                .build()) {
      ResultMerger merger = new ResultMerger(engine, allocator);
      refused(merger, List.of(good, three), -1, "part 2: expected 2 rows", "got 3");
      refused(
          merger,
          List.of(good, half),
          -1,
          "part 2, column output: expected list<tensor[4, 32]<float32>>",
          "got list<tensor[4, 32]<float16>>");
      refused(
          merger,
          List.of(good, good, otherSequence),
          1,
          "part 3, row 1, column sequence_id: expected 101",
          "got 7");
      refused(
          merger,
          List.of(good, otherLayer),
          1,
          "part 2, row 1, column layer: expected 'layer0'",
          "got 'layer1'");
      refused(
          merger,
          List.of(good, moreTokens),
          1,
          "part 2, row 1, column output: expected 1 tokens",
          "got 2");
      refused(
          merger,
          List.of(good, moreLses),
          1,
          "part 2, row 1, column lse: expected 1 tokens",
          "got 2");
      refused(
          merger,
          List.of(otherHeads),
          -1,
          "part 1, column output: expected tensors of 2 heads, as lse has",
          "tensor[4, 32]");
      refused(
          merger,
          List.of(noLse),
          -1,
          "part 1, column lse: expected it (the layer's return_lse adds it)",
          "got no such column");
    }
  }

  /** Two rows, of which the second has other values than {@link #result}. */
  private static ArrowBatch columns(
      BufferAllocator allocator,
      DType dtype,
      long sequence,
      String layer,
      int tokens,
      int lses,
      int heads) {
    return new StepBatchBuilder(allocator, 2)
        .int64("sequence_id", row -> row == 0 ? 100 : sequence)
        .utf8("layer", row -> row == 0 ? "layer0" : layer)
        .tensors("output", dtype, SHAPE, new float[WIDTH], new float[tokens * WIDTH])
        .tensors(
            TensorField.plainList("lse", DType.FLOAT32, heads),
            new float[heads],
            new float[lses * heads])
        .build();
  }

  private static void refused(
      ResultMerger merger, List<ArrowBatch> parts, long row, String... message) {
    assertThatThrownBy(() -> merger.merge(parts))
        .isInstanceOfSatisfying(
            KernelException.class,
            e -> {
              assertThat(e.row()).isEqualTo(row);
              assertThat(e.code())
                  .isEqualTo(row < 0 ? ErrorCode.SCHEMA_MISMATCH : ErrorCode.INVALID_ROW);
            })
        .hasMessageContainingAll(message);
  }

  @Test
  void quantisedOutputsAreRefusedWithTheReason(BufferAllocator allocator) {
    LayerConfig config =
        LayerConfig.builder("layer0", HEADS, KV_HEADS, HEAD_SIZE)
            .dtype(DType.FLOAT32)
            .outputScale(0.1f)
            .returnLse(true)
            .build();
    try (KernelEngine engine = engine();
        KernelCache cache =
            new KernelCache(engine, new CacheConfig(4, 16, KV_HEADS, HEAD_SIZE, DType.FLOAT32));
        KernelLayer layer = new KernelLayer(engine, config, cache);
        ArrowBatch quantised = attend(allocator, layer, DType.FLOAT32, new float[2][WIDTH], 0)) {
      refused(
          new ResultMerger(engine, allocator),
          List.of(quantised, quantised),
          -1,
          "part 1, column output: expected float32, float16 or bfloat16",
          "output_scale",
          "got float8_e4m3fn");
    }
  }
}
