// SPDX-License-Identifier: Apache-2.0
package io.broadhead.kernel;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;
import static org.assertj.core.api.Assertions.within;

import io.broadhead.arrow.ArrowBatch;
import io.broadhead.arrow.ArrowColumn;
import io.broadhead.arrow.DType;
import io.broadhead.arrow.TensorField;
import io.broadhead.testing.NoLeaks;
import io.broadhead.testing.StepBatchBuilder;
import org.apache.arrow.memory.ArrowBuf;
import org.apache.arrow.memory.BufferAllocator;
import org.apache.arrow.vector.VectorSchemaRoot;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.extension.ExtendWith;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.EnumSource;

@ExtendWith(NoLeaks.class)
class StepBindingTest {
  private static final int HEADS = 4;
  private static final int KV_HEADS = 2;
  private static final int HEAD_SIZE = 32;
  private static final int BLOCK = 16;

  /** A layer with an engine and, unless it is an encoder, a cache of its own. */
  private record OpenLayer(KernelEngine engine, KernelCache cache, KernelLayer layer)
      implements AutoCloseable {
    static OpenLayer of(LayerConfig config) {
      KernelEngine engine = KernelEngine.open(new EngineConfig("cpu", 1, 0));
      KernelCache cache =
          config.attentionType() == AttentionType.ENCODER
              ? null
              : new KernelCache(
                  engine, new CacheConfig(64, BLOCK, KV_HEADS, HEAD_SIZE, config.dtype()));
      return new OpenLayer(engine, cache, new KernelLayer(engine, config, cache));
    }

    static OpenLayer of(DType dtype) {
      return of(StepBindingTest.layer(dtype).build());
    }

    StepBinding bind(ArrowBatch batch, BufferAllocator allocator) {
      return new StepBinding(layer, batch.schema(), allocator);
    }

    @Override
    public void close() {
      layer.close();
      if (cache != null) {
        cache.close();
      }
      engine.close();
    }
  }

  private static LayerConfig.Builder layer(DType dtype) {
    return LayerConfig.builder("layer0", HEADS, KV_HEADS, HEAD_SIZE).dtype(dtype);
  }

  private static StepBatchBuilder step(
      BufferAllocator allocator, int rows, int tokens, DType dtype) {
    return StepBatchBuilder.decoderStep(
        allocator, rows, tokens, tokens, HEADS, KV_HEADS, HEAD_SIZE, BLOCK, dtype);
  }

  @ParameterizedTest
  @EnumSource(names = {"FLOAT32", "FLOAT16", "BFLOAT16"})
  void firstTokenAttendsToItself(DType dtype, BufferAllocator allocator) {
    try (OpenLayer open = OpenLayer.of(layer(dtype).returnLse(true).build());
        ArrowBatch batch = step(allocator, 3, 1, dtype).utf8("request", row -> "r" + row).build();
        StepBinding binding = open.bind(batch, allocator);
        ArrowBatch result = binding.step(batch)) {
      assertThat(result.schema()).isSameAs(binding.resultSchema());
      assertThat(result.schema().arrow().getFields())
          .extracting(field -> field.getName())
          .containsExactly("sequence_id", "layer", "request", "output", "lse");
      assertThat(result.numRows()).isEqualTo(3);
      assertThat(TensorField.of(result.schema().field(3)))
          .hasValueSatisfying(
              tensor -> {
                assertThat(tensor.dtype()).isEqualTo(dtype);
                assertThat(tensor.shape()).containsExactly(HEADS, HEAD_SIZE);
              });
      // One visible key: the output is its value, head by head.
      ArrowBuf value = batch.column("value").child().child().values();
      ArrowBuf output = result.column("output").child().child().values();
      for (int row = 0; row < 3; row++) {
        assertThat(result.column("output").offset(row + 1)).isEqualTo(row + 1);
        for (int head = 0; head < HEADS; head++) {
          for (int d = 0; d < HEAD_SIZE; d++) {
            float expected =
                StepBatchBuilder.element(value, (row * KV_HEADS + head / 2) * HEAD_SIZE + d, dtype);
            float got =
                StepBatchBuilder.element(output, (row * HEADS + head) * HEAD_SIZE + d, dtype);
            assertThat(got).isCloseTo(expected, within(1e-6f));
          }
        }
      }
      assertThat(result.column("lse").child().length()).isEqualTo(3);
      assertThat(result.column("request").getString(2)).isEqualTo("r2");
      StepStats stats = binding.lastStats();
      assertThat(stats.queryTokens()).isEqualTo(3);
      assertThat(stats.writtenTokens()).isEqualTo(3);
      assertThat(stats.kernelNanoseconds()).isPositive();
    }
  }

  @Test
  void kernelsReadAndWriteArrowsOwnMemory(BufferAllocator allocator) {
    try (OpenLayer open = OpenLayer.of(DType.FLOAT16);
        ArrowBatch batch = step(allocator, 5, 2, DType.FLOAT16).build();
        StepBinding binding = open.bind(batch, allocator);
        ArrowBatch result = binding.step(batch)) {
      StepStats stats = binding.lastStats();
      assertThat(stats.queryAddress())
          .isEqualTo(batch.column("query").child().child().values().memoryAddress());
      assertThat(stats.keyAddress())
          .isEqualTo(batch.column("key").child().child().values().memoryAddress());
      assertThat(stats.valueAddress())
          .isEqualTo(batch.column("value").child().child().values().memoryAddress());
      assertThat(stats.outputAddress())
          .isEqualTo(result.column("output").child().child().values().memoryAddress());
      assertThat(stats.bytesStaged()).isZero();
      assertThat(stats.bytesInPlace()).isPositive();
      // Columns that pass through are the batch's own buffers.
      assertThat(result.column("sequence_id").values().memoryAddress())
          .isEqualTo(batch.column("sequence_id").values().memoryAddress());
      assertThat(result.column("output").child().child().values().memoryAddress() % 64).isZero();
    }
  }

  @Test
  void resultOutlivesBatchBindingAndEngine(BufferAllocator allocator) {
    ArrowBatch result;
    try (OpenLayer open = OpenLayer.of(DType.FLOAT32);
        ArrowBatch batch = step(allocator, 2, 3, DType.FLOAT32).build();
        StepBinding binding = open.bind(batch, allocator)) {
      result = binding.step(batch);
    }
    try (result;
        VectorSchemaRoot root = result.toRoot(allocator)) {
      assertThat(root.getRowCount()).isEqualTo(2);
      assertThat(root.getVector("output").getValueCount()).isEqualTo(2);
      assertThat(root.getVector("layer").getObject(1)).hasToString("layer0");
    }
  }

  @Test
  void outputScaleGivesFloat8(BufferAllocator allocator) {
    try (OpenLayer open = OpenLayer.of(layer(DType.FLOAT16).outputScale(0.5f).build());
        ArrowBatch batch = step(allocator, 2, 1, DType.FLOAT16).build();
        StepBinding binding = open.bind(batch, allocator);
        ArrowBatch result = binding.step(batch)) {
      assertThat(TensorField.of(result.schema().field(result.schema().index("output"))))
          .hasValueSatisfying(tensor -> assertThat(tensor.dtype()).isEqualTo(DType.FLOAT8_E4M3FN));
      assertThat(result.schema().field(result.schema().index("output")).getMetadata())
          .containsEntry("dtype", "float8_e4m3fn");
      assertThat(result.column("output").child().child().values().readableBytes())
          .isEqualTo(2L * HEADS * HEAD_SIZE);
    }
  }

  @Test
  void ropeSinksAndSlopesReachTheLayer(BufferAllocator allocator) {
    float[] table = new float[32 * HEAD_SIZE];
    for (int position = 0; position < 32; position++) {
      for (int i = 0; i < HEAD_SIZE / 2; i++) {
        table[position * HEAD_SIZE + i] = 1;
      }
    }
    LayerConfig config =
        layer(DType.FLOAT32)
            .alibiSlopes(0.5f, 0.25f, 0.125f, 0.0625f)
            .sinks(0, 0, 0, 0)
            .slidingWindow(8)
            .logitsSoftCap(30)
            .rope(new RopeConfig(HEAD_SIZE, 32, true, table))
            .build();
    try (OpenLayer open = OpenLayer.of(config);
        ArrowBatch batch =
            step(allocator, 1, 2, DType.FLOAT32).int32List("position", new int[] {0, 1}).build();
        StepBinding binding = open.bind(batch, allocator);
        ArrowBatch result = binding.step(batch)) {
      float value = batch.column("value").child().child().values().getFloat(0);
      float score = 0;
      for (int d = 0; d < HEAD_SIZE; d++) {
        score +=
            batch.column("query").child().child().values().getFloat(4L * d)
                * batch.column("key").child().child().values().getFloat(4L * d);
      }
      double weight = Math.exp(30 * Math.tanh(score / Math.sqrt(HEAD_SIZE) / 30));
      assertThat(result.column("output").child().child().values().getFloat(0))
          .isCloseTo((float) (value * weight / (weight + 1)), within(1e-5f));
    }
  }

  @Test
  void manyStepsOverOneBinding(BufferAllocator allocator) {
    try (OpenLayer open = OpenLayer.of(DType.FLOAT32);
        ArrowBatch first = step(allocator, 2, 1, DType.FLOAT32).build();
        StepBinding binding = open.bind(first, allocator)) {
      binding.step(first).close();
      for (int rows = 1; rows < 8; rows++) {
        try (ArrowBatch batch = step(allocator, rows, rows, DType.FLOAT32).build();
            ArrowBatch result = binding.step(batch)) {
          assertThat(result.numRows()).isEqualTo(rows);
          assertThat(result.column("output").child().length()).isEqualTo((long) rows * rows);
        }
      }
      try (ArrowBatch empty = step(allocator, 0, 1, DType.FLOAT32).build();
          ArrowBatch result = binding.step(empty)) {
        assertThat(result.numRows()).isZero();
      }
    }
  }

  @Test
  void badRowIsNamedAndNothingIsWritten(BufferAllocator allocator) {
    try (OpenLayer open = OpenLayer.of(DType.FLOAT32);
        ArrowBatch good = step(allocator, 3, 1, DType.FLOAT32).build();
        ArrowBatch bad = badBlock(allocator);
        StepBinding binding = open.bind(good, allocator)) {
      assertThat(binding.firstBadRow(good, 0)).isEmpty();
      assertThat(binding.firstBadRow(bad, 0))
          .hasValueSatisfying(
              error -> {
                assertThat(error.row()).isEqualTo(1);
                assertThat(error.code()).isEqualTo(ErrorCode.INVALID_ROW);
                assertThat(error.message()).contains("block_table").contains("999");
              });
      assertThat(binding.firstBadRow(bad, 2)).isEmpty();
      assertThatThrownBy(() -> binding.step(bad))
          .isInstanceOfSatisfying(
              KernelException.class,
              e -> {
                assertThat(e.code()).isEqualTo(ErrorCode.INVALID_ROW);
                assertThat(e.row()).isEqualTo(1);
                assertThat(e).hasMessageContaining("block_table");
                assertThat(e.toString()).contains("INVALID_ROW, row 1");
              });
      assertThat(isZero(open.cache, allocator, 0)).isTrue();
      binding.step(good).close();
      assertThat(isZero(open.cache, allocator, 0)).isFalse();
    }
  }

  private static ArrowBatch badBlock(BufferAllocator allocator) {
    ArrowBatch batch = step(allocator, 3, 1, DType.FLOAT32).build();
    batch.column("block_table").child().values().setInt(4, 999);
    return batch;
  }

  private static boolean isZero(KernelCache cache, BufferAllocator allocator, long block) {
    try (ArrowBuf key = allocator.buffer(cache.blockBytes());
        ArrowBuf value = allocator.buffer(cache.blockBytes())) {
      cache.readBlock(block, key, value);
      for (long i = 0; i < cache.blockBytes(); i++) {
        if (key.getByte(i) != 0 || value.getByte(i) != 0) {
          return false;
        }
      }
      return true;
    }
  }

  @Test
  void schemaIsCheckedWhenBound(BufferAllocator allocator) {
    try (OpenLayer open = OpenLayer.of(DType.FLOAT32);
        ArrowBatch half = step(allocator, 1, 1, DType.FLOAT16).build();
        ArrowBatch named =
            step(allocator, 1, 1, DType.FLOAT32).utf8("output", row -> "x").build()) {
      assertThatThrownBy(() -> open.bind(half, allocator))
          .isInstanceOfSatisfying(
              KernelException.class,
              e -> {
                assertThat(e.code()).isEqualTo(ErrorCode.SCHEMA_MISMATCH);
                assertThat(e).hasMessageContaining("query").hasMessageContaining("float32");
              });
      assertThatThrownBy(() -> open.bind(named, allocator))
          .isInstanceOf(KernelException.class)
          .hasMessageContaining("column output");
    }
  }

  @Test
  void batchOfAnotherSchemaIsRefused(BufferAllocator allocator) {
    try (OpenLayer open = OpenLayer.of(DType.FLOAT32);
        ArrowBatch batch = step(allocator, 1, 1, DType.FLOAT32).build();
        ArrowBatch other = step(allocator, 1, 1, DType.FLOAT32).utf8("tag", row -> "x").build();
        StepBinding binding = open.bind(batch, allocator)) {
      assertThatThrownBy(() -> binding.step(other))
          .isInstanceOf(KernelException.class)
          .hasMessageContaining("expected schema");
    }
  }

  @Test
  void slicedOffsetsStartAboveZero(BufferAllocator allocator) {
    try (OpenLayer open = OpenLayer.of(DType.FLOAT32);
        ArrowBatch batch = step(allocator, 4, 2, DType.FLOAT32).build();
        VectorSchemaRoot root = batch.toRoot(allocator);
        VectorSchemaRoot tail = root.slice(2, 2);
        ArrowBatch sliced = withoutFirstRows(batch, allocator);
        ArrowBatch copied = ArrowBatch.of(tail);
        StepBinding binding = open.bind(batch, allocator);
        ArrowBatch whole = binding.step(batch);
        ArrowBatch fromOffsets = binding.step(sliced);
        ArrowBatch fromCopy = binding.step(copied)) {
      ArrowColumn expected = whole.column("output").child().child();
      assertThat(sliced.column("query").offset(0)).isEqualTo(4);
      for (ArrowBatch result : new ArrowBatch[] {fromOffsets, fromCopy}) {
        assertThat(result.column("output").offset(0)).isZero();
        ArrowColumn got = result.column("output").child().child();
        assertThat(got.length()).isEqualTo(expected.length() / 2);
        for (long i = 0; i < got.length(); i++) {
          assertThat(got.values().getFloat(4 * i))
              .isEqualTo(expected.values().getFloat(4 * (i + got.length())));
        }
      }
    }
  }

  /**
   * Rows 2 and 3 of four, by moving the offsets on: what a slice in another language looks like.
   */
  private static ArrowBatch withoutFirstRows(ArrowBatch batch, BufferAllocator allocator) {
    int skip = 2;
    long[] lengths = new long[batch.schema().nodeCount()];
    long[] nulls = new long[lengths.length];
    ArrowBuf[] buffers = new ArrowBuf[batch.schema().bufferCount()];
    for (int node = 0; node < lengths.length; node++) {
      lengths[node] = batch.nodeLength(node);
    }
    for (int b = 0; b < buffers.length; b++) {
      buffers[b] = batch.buffer(b);
    }
    for (int column = 0; column < batch.schema().columnCount(); column++) {
      int node = batch.schema().firstNode(column);
      lengths[node] = batch.numRows() - skip;
      int values = batch.schema().firstBuffer(column) + 1;
      long width = batch.schema().field(column).getName().equals("sequence_id") ? 8 : 4;
      ArrowBuf buffer = buffers[values];
      buffers[values] = buffer.slice(skip * width, buffer.readableBytes() - skip * width);
    }
    for (ArrowBuf buffer : buffers) {
      buffer.getReferenceManager().retain();
    }
    return ArrowBatch.adopt(batch.schema(), batch.numRows() - skip, lengths, nulls, buffers, 0);
  }

  @Test
  void encoderNeedsNoCache(BufferAllocator allocator) {
    int[] shape = {HEADS, HEAD_SIZE};
    float[] row = new float[2 * HEADS * HEAD_SIZE];
    java.util.Arrays.fill(row, 0.5f);
    LayerConfig config =
        LayerConfig.builder("layer0", HEADS, HEADS, HEAD_SIZE)
            .attentionType(AttentionType.ENCODER)
            .build();
    try (OpenLayer open = OpenLayer.of(config);
        ArrowBatch batch =
            new StepBatchBuilder(allocator, 1)
                .utf8("sequence_id", i -> "s")
                .tensors("query", DType.FLOAT32, shape, row)
                .tensors("key", DType.FLOAT32, shape, row)
                .tensors("value", DType.FLOAT32, shape, row)
                .build();
        StepBinding binding = open.bind(batch, allocator);
        ArrowBatch result = binding.step(batch)) {
      assertThat(result.column("output").child().child().values().getFloat(0))
          .isCloseTo(0.5f, within(1e-6f));
    }
  }
}
