// SPDX-License-Identifier: Apache-2.0
package io.broadhead.attention;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import io.broadhead.arrow.Allocators;
import io.broadhead.arrow.ArrowBatch;
import io.broadhead.arrow.BatchSchema;
import io.broadhead.arrow.DType;
import io.broadhead.attention.cache.CacheStores;
import io.broadhead.attention.job.AttnType;
import io.broadhead.attention.job.Job;
import io.broadhead.attention.job.KvCacheDtype;
import io.broadhead.attention.job.KvCacheSpec;
import io.broadhead.attention.job.LayerSpec;
import io.broadhead.attention.job.RopeSpec;
import io.broadhead.attention.testing.Collected;
import io.broadhead.attention.testing.ManagedRow;
import io.broadhead.attention.testing.NoLeaks;
import io.broadhead.attention.testing.ReferenceAttention;
import io.broadhead.attention.testing.Scenario;
import io.broadhead.attention.testing.StepBatches;
import io.broadhead.attention.testing.StepRow;
import io.broadhead.kernel.ErrorCode;
import io.broadhead.kernel.KernelEngine;
import io.broadhead.kernel.KernelException;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.stream.IntStream;
import java.util.stream.Stream;
import org.apache.arrow.memory.ArrowBuf;
import org.apache.arrow.memory.BufferAllocator;
import org.apache.arrow.vector.types.pojo.ArrowType;
import org.apache.arrow.vector.types.pojo.Schema;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.extension.RegisterExtension;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.Arguments;
import org.junit.jupiter.params.provider.EnumSource;
import org.junit.jupiter.params.provider.MethodSource;
import org.junit.jupiter.params.provider.ValueSource;

/** Layers, the caches they have, and batches from the first one to the end. */
class PagedAttentionTest {
  private static final AttentionConfig TWO_THREADS = new AttentionConfig("auto", 2, 0);
  @RegisterExtension private final NoLeaks noLeaks = new NoLeaks();

  private static Job job(int blockSize, int numBlocks, LayerSpec... layers) {
    return new Job(new KvCacheSpec(blockSize, numBlocks, null), List.of(layers));
  }

  static Stream<Arguments> shapes() {
    List<Arguments> shapes = new ArrayList<>();
    for (DType dtype : new DType[] {DType.FLOAT32, DType.FLOAT16, DType.BFLOAT16}) {
      shapes.add(Arguments.of(dtype, 16, 64, 4, 4));
      shapes.add(Arguments.of(dtype, 32, 80, 8, 2));
      shapes.add(Arguments.of(dtype, 544, 128, 8, 1));
    }
    return shapes.stream();
  }

  @ParameterizedTest
  @MethodSource("shapes")
  void prefillChunksAndDecodeInOneBatchAgreeWithTheReference(
      DType dtype, int blockSize, int headSize, int numHeads, int numKvHeads) {
    LayerSpec layer =
        LayerSpec.builder("model.layers.0", numHeads, headSize).numKvHeads(numKvHeads).build();
    agrees(job(blockSize, 64, layer), dtype, 1);
  }

  /** Runs steps of mixed lengths through every layer of {@code job}, and compares all of them. */
  private void agrees(Job job, DType dtype, long seed) {
    Scenario scenario = new Scenario(job, dtype, seed);
    ReferenceAttention reference = new ReferenceAttention(job, dtype);
    int[][] tokens = {{17, 1, 33, 5}, {1, 40, 1, 1}, {1, 1, 7, 0}, {1, 1, 1, 1}};
    try (PagedAttention attention = PagedAttention.open(job, TWO_THREADS, noLeaks.allocator())) {
      for (int[] step : tokens) {
        for (LayerSpec layer : job.layers()) {
          List<StepRow> rows = new ArrayList<>();
          for (int s = 0; s < step.length; s++) {
            rows.add(scenario.next((long) s, layer, step[s]));
          }
          ReferenceAttention.Result expected = reference.step(layer, rows);
          try (ArrowBatch batch = StepBatches.of(noLeaks.allocator(), layer, dtype, rows);
              ArrowBatch result = attention.step(batch)) {
            DType type = layer.outputScale() > 0 ? DType.FLOAT8_E4M3FN : dtype;
            assertThat(StepBatches.error(expected.output(), StepBatches.read(result, "output")))
                .as("error of %s", layer.name())
                .isLessThanOrEqualTo(StepBatches.tolerance(type));
            if (layer.returnLse()) {
              assertThat(StepBatches.error(expected.lse(), StepBatches.read(result, "lse")))
                  .as("lse error of %s", layer.name())
                  .isLessThanOrEqualTo(StepBatches.LSE_TOLERANCE);
            }
          }
        }
      }
    }
  }

  private static LayerSpec.Builder small(String name) {
    return LayerSpec.builder(name, 4, 64).numKvHeads(2);
  }

  static Stream<Arguments> features() {
    List<Float> perHead = List.of(0.5f, -0.25f, 1f, 0f);
    return Stream.of(
            small("window").slidingWindow(9),
            small("window of one").slidingWindow(1),
            small("soft cap").logitsSoftCap(2),
            small("alibi").alibiSlopes(perHead),
            small("sinks").sinks(perHead).slidingWindow(4),
            small("fp8_e4m3").kvCacheDtype(KvCacheDtype.FP8_E4M3).kScale(0.5f).vScale(2),
            small("fp8_e5m2").kvCacheDtype(KvCacheDtype.FP8_E5M2),
            small("float32 cache").kvCacheDtype(KvCacheDtype.FLOAT32),
            small("bfloat16 cache").kvCacheDtype(KvCacheDtype.BFLOAT16),
            small("scale").scale(0.3f),
            small("lse").returnLse(true).sinks(perHead),
            small("neox").rope(new RopeSpec(32, 128, 10000, true)),
            small("gpt-j").rope(new RopeSpec(64, 128, 500, false)),
            small("output scale").outputScale(0.02f),
            small("encoder").attnType(AttnType.ENCODER).returnLse(true),
            small("encoder window").attnType(AttnType.ENCODER_ONLY).slidingWindow(3).sinks(perHead),
            small("cross").attnType(AttnType.ENCODER_DECODER).returnLse(true))
        .map(builder -> Arguments.of(builder.build().name(), builder.build()));
  }

  @ParameterizedTest(name = "{0}")
  @MethodSource("features")
  void everyKeyOfALayerReachesTheKernels(String name, LayerSpec layer) {
    agrees(job(16, 64, layer), DType.FLOAT16, 7);
  }

  @Test
  void layersHaveTheirOwnCachesUnlessTheyShareOne() {
    LayerSpec a = small("a").build();
    LayerSpec b = small("b").build();
    LayerSpec shared = small("c").kvSharingTargetLayerName("a").build();
    Job job = job(16, 64, a, b, shared);

    agrees(job, DType.FLOAT32, 3);
  }

  @Test
  void cachesAreReservedAtTheFirstBatchOfTheirLayer() {
    LayerSpec a = small("a").build();
    LayerSpec b = small("b").kvCacheDtype(KvCacheDtype.FP8_E4M3).build();
    Job job = job(16, 8, a, b);
    Scenario scenario = new Scenario(job, DType.FLOAT16, 1);
    try (PagedAttention attention = PagedAttention.open(job, TWO_THREADS, noLeaks.allocator())) {
      assertThat(attention.cacheBytes()).isZero();
      stepOnce(attention, a, List.of(scenario.next("s", a, 3)), DType.FLOAT16);
      assertThat(attention.cacheBytes()).isEqualTo(2L * 8 * 16 * 2 * 64 * 2);
      stepOnce(attention, b, List.of(scenario.next("s", b, 3)), DType.FLOAT16);
      assertThat(attention.cacheBytes()).isEqualTo(2L * 8 * 16 * 2 * 64 * 3);
    }
  }

  private void stepOnce(
      PagedAttention attention, LayerSpec layer, List<StepRow> rows, DType dtype) {
    try (ArrowBatch batch = StepBatches.of(noLeaks.allocator(), layer, dtype, rows)) {
      attention.step(batch).close();
    }
  }

  @Test
  void kernelsReadAndWriteTheBuffersOfTheBatches() {
    LayerSpec layer = small("a").build();
    Job job = job(16, 8, layer);
    StepRow row = new Scenario(job, DType.FLOAT16, 1).next("s", layer, 3);
    try (KernelEngine engine = TWO_THREADS.openEngine();
        BufferAllocator memory = Allocators.root(engine.memory());
        PagedAttention attention =
            PagedAttention.open(job, engine, OutOfBlocks.SWAP, memory, CacheStores.onHeap());
        ArrowBatch batch = StepBatches.of(memory, layer, DType.FLOAT16, List.of(row));
        ArrowBatch result = attention.step(batch)) {
      assertThat(attention.lastStep().queryAddress()).isEqualTo(tensorAddress(batch, "query"));
      assertThat(attention.lastStep().keyAddress()).isEqualTo(tensorAddress(batch, "key"));
      assertThat(attention.lastStep().valueAddress()).isEqualTo(tensorAddress(batch, "value"));
      assertThat(attention.lastStep().outputAddress()).isEqualTo(tensorAddress(result, "output"));
      assertThat(attention.lastStep().bytesStaged()).isZero();
      assertThat(attention.lastStep().queryTokens()).isEqualTo(3);
      assertThat(attention.lastStep().writtenTokens()).isEqualTo(3);
      assertThat(result.column("request").getString(0)).isEqualTo("for s at 3");
    }
  }

  private static long tensorAddress(ArrowBatch batch, String column) {
    return batch.column(column).child().child().values().memoryAddress();
  }

  @Test
  void resultsOutliveTheirBatchAndTheAttention() {
    LayerSpec layer = small("a").build();
    Job job = job(16, 8, layer);
    StepRow row = new Scenario(job, DType.FLOAT32, 1).next("s", layer, 3);
    double[][][] expected =
        new ReferenceAttention(job, DType.FLOAT32).step(layer, List.of(row)).output();
    ArrowBatch result;
    try (PagedAttention attention = PagedAttention.open(job, TWO_THREADS, noLeaks.allocator());
        ArrowBatch batch =
            StepBatches.of(noLeaks.allocator(), layer, DType.FLOAT32, List.of(row))) {
      result = attention.step(batch);
    }
    assertThat(StepBatches.error(expected, StepBatches.read(result, "output"))).isLessThan(1e-5);
    assertThat(result.column("sequence_id").getString(0)).isEqualTo("s");
    result.close();
  }

  @Test
  void oneLayerNeedsNoLayerColumn() {
    LayerSpec layer = small("a").build();
    Job job = job(16, 8, layer);
    StepRow row = new Scenario(job, DType.FLOAT32, 1).next("s", layer, 2).withLayer(null);
    try (PagedAttention attention = PagedAttention.open(job, TWO_THREADS, noLeaks.allocator())) {
      stepOnce(attention, layer, List.of(row), DType.FLOAT32);
    }
  }

  @Test
  void anEmptyBatchOfTheOnlyLayerGivesAnEmptyResult() {
    LayerSpec layer = small("a").build();
    try (PagedAttention attention =
            PagedAttention.open(job(16, 8, layer), TWO_THREADS, noLeaks.allocator());
        ArrowBatch batch = StepBatches.of(noLeaks.allocator(), layer, DType.FLOAT32, List.of());
        ArrowBatch result = attention.step(batch)) {
      assertThat(result.numRows()).isZero();
      assertThat(result.schema().contains("output")).isTrue();
    }
  }

  @Test
  void anAutoCacheKeepsTheTypeOfItsFirstBatch() {
    LayerSpec layer = small("a").build();
    Job job = job(16, 8, layer);
    StepRow row = new Scenario(job, DType.BFLOAT16, 1).next("s", layer, 2);
    try (PagedAttention attention = PagedAttention.open(job, TWO_THREADS, noLeaks.allocator());
        ArrowBatch other =
            StepBatches.of(noLeaks.allocator(), layer, DType.FLOAT32, List.of(row))) {
      stepOnce(attention, layer, List.of(row), DType.BFLOAT16);
      assertThatThrownBy(() -> attention.step(other))
          .isInstanceOf(InvalidBatchException.class)
          .hasMessageContainingAll(
              "layer 'a'", "expected bfloat16", "got float32", "set kv_cache_dtype");
      stepOnce(attention, layer, List.of(row), DType.BFLOAT16);
    }
  }

  @Test
  void anExplicitCacheTakesBatchesOfSeveralTypes() {
    LayerSpec layer = small("a").kvCacheDtype(KvCacheDtype.FLOAT32).build();
    Job job = job(16, 8, layer);
    StepRow row = new Scenario(job, DType.BFLOAT16, 1).next("s", layer, 2);
    try (PagedAttention attention = PagedAttention.open(job, TWO_THREADS, noLeaks.allocator())) {
      stepOnce(attention, layer, List.of(row), DType.BFLOAT16);
      stepOnce(attention, layer, List.of(row), DType.FLOAT32);
    }
  }

  @Test
  void manySchemasDoNotPileUpBindings() {
    LayerSpec layer = small("a").build();
    Job job = job(16, 8, layer);
    StepRow row = new Scenario(job, DType.FLOAT32, 1).next("s", layer, 2);
    try (PagedAttention attention = PagedAttention.open(job, TWO_THREADS, noLeaks.allocator());
        ArrowBatch batch =
            StepBatches.of(noLeaks.allocator(), layer, DType.FLOAT32, List.of(row))) {
      long handles = 0;
      for (int i = 0; i < 200; i++) {
        try (ArrowBatch renamed = renamed(batch, i)) {
          attention.step(renamed).close();
        }
        handles = KernelEngine.liveHandles();
      }
      assertThat(handles).isLessThanOrEqualTo(64 + 3);
    }
  }

  @Test
  void batchesOfManySchemasMayWait() {
    LayerSpec layer = small("a").build();
    Job job = job(16, 8, layer);
    StepRow row = new Scenario(job, DType.FLOAT32, 1).next("s", layer, 2);
    Collected collected = new Collected();
    try (PagedAttention attention = PagedAttention.open(job, TWO_THREADS, noLeaks.allocator());
        StepQueue queue = attention.queue(10_000);
        ArrowBatch batch =
            StepBatches.of(noLeaks.allocator(), layer, DType.FLOAT32, List.of(row))) {
      for (int i = 0; i < 200; i++) {
        try (ArrowBatch renamed = renamed(batch, i)) {
          queue.add(renamed, collected);
        }
        assertThat(KernelEngine.liveHandles()).isLessThanOrEqualTo(64 + 4);
      }
      queue.drain();
      assertThat(collected.results).hasSize(200);
      collected.results.forEach(ArrowBatch::close);
    }
  }

  private static ArrowBatch renamed(ArrowBatch batch, int version) {
    BatchSchema schema =
        BatchSchema.of(
            new Schema(
                batch.schema().arrow().getFields(), Map.of("version", Integer.toString(version))));
    return adopt(batch, schema, new long[schema.nodeCount()], buffers(batch));
  }

  private static ArrowBuf[] buffers(ArrowBatch batch) {
    ArrowBuf[] buffers = new ArrowBuf[batch.schema().bufferCount()];
    for (int i = 0; i < buffers.length; i++) {
      buffers[i] = batch.buffer(i);
      buffers[i].getReferenceManager().retain();
    }
    return buffers;
  }

  private static ArrowBatch adopt(
      ArrowBatch batch, BatchSchema schema, long[] nullCounts, ArrowBuf[] buffers) {
    long[] lengths = new long[schema.nodeCount()];
    for (int i = 0; i < lengths.length; i++) {
      lengths[i] = batch.nodeLength(i);
    }
    return ArrowBatch.adopt(schema, batch.numRows(), lengths, nullCounts, buffers, 0);
  }

  @Test
  void columnsMayComeInAnyOrder() {
    LayerSpec layer = small("a").rope(new RopeSpec(32, 128, 10000, true)).build();
    Job job = job(16, 8, layer);
    StepRow row = new Scenario(job, DType.FLOAT16, 1).next("s", layer, 5);
    try (PagedAttention attention = PagedAttention.open(job, TWO_THREADS, noLeaks.allocator());
        ArrowBatch batch = StepBatches.of(noLeaks.allocator(), layer, DType.FLOAT16, List.of(row));
        ArrowBatch result = attention.step(batch)) {
      int last = batch.schema().columnCount() - 1;
      int[] backwards = IntStream.rangeClosed(0, last).map(column -> last - column).toArray();
      try (ArrowBatch turned = batch.select(backwards);
          ArrowBatch got = attention.step(turned)) {
        assertThat(got.schema()).isEqualTo(result.schema());
        assertThat(StepBatches.read(got, "output"))
            .isDeepEqualTo(StepBatches.read(result, "output"));
      }
    }
  }

  /** Arrow leaves open what a null list covers. */
  @ParameterizedTest
  @ValueSource(booleans = {true, false})
  void nullListsAreEmpty(boolean managed) {
    LayerSpec layer = small("a").build();
    Job job = job(16, 8, layer);
    Scenario scenario = new Scenario(job, DType.FLOAT16, 1);
    StepRow first = scenario.next("s", layer, 5);
    StepRow none = scenario.next("none", layer, 4).withSeqLen(0);
    StepRow last = scenario.next("t", layer, 1);
    List<StepRow> rows = List.of(first, none, last);
    double[][][] expected =
        new ReferenceAttention(job, DType.FLOAT16).step(layer, List.of(first, last)).output();
    BufferAllocator allocator = noLeaks.allocator();
    try (PagedAttention attention = PagedAttention.open(job, TWO_THREADS, allocator);
        ArrowBatch whole =
            managed
                ? StepBatches.managed(
                    allocator,
                    layer,
                    DType.FLOAT16,
                    false,
                    rows.stream().map(ManagedRow::of).toList())
                : StepBatches.of(allocator, layer, DType.FLOAT16, rows);
        ArrowBatch batch = withNullLists(whole, 1);
        ArrowBatch result = attention.step(batch)) {
      double[][][] got = StepBatches.read(result, "output");
      assertThat(got[1]).isEmpty();
      assertThat(StepBatches.error(expected, new double[][][] {got[0], got[2]}))
          .isLessThanOrEqualTo(StepBatches.tolerance(DType.FLOAT16));
    }
  }

  /** The same batch, but all lists of a row are null. */
  private ArrowBatch withNullLists(ArrowBatch batch, int row) {
    BatchSchema schema = batch.schema();
    long[] nullCounts = new long[schema.nodeCount()];
    ArrowBuf[] buffers = buffers(batch);
    for (int column = 0; column < schema.columnCount(); column++) {
      if (schema.field(column).getType() instanceof ArrowType.List) {
        ArrowBuf validity = noLeaks.allocator().buffer(1);
        validity.setByte(0, ~(1 << row));
        validity.writerIndex(1);
        nullCounts[schema.firstNode(column)] = 1;
        buffers[schema.firstBuffer(column)].close();
        buffers[schema.firstBuffer(column)] = validity;
      }
    }
    return adopt(batch, schema, nullCounts, buffers);
  }

  @Test
  void unknownBackendsFailAtOpen() {
    Job job = job(16, 8, small("a").build());

    assertThatThrownBy(
            () ->
                PagedAttention.open(job, new AttentionConfig("abacus", 0, 0), noLeaks.allocator()))
        .isInstanceOf(KernelException.class)
        .hasMessageContaining("abacus");
  }

  @Test
  void cachesTooLargeNameTheKeyToChange() {
    LayerSpec layer = LayerSpec.builder("a", 64, 256).build();
    Job job = job(16, Integer.MAX_VALUE, layer);
    StepRow row = new Scenario(job(16, 8, layer), DType.FLOAT32, 1).next("s", layer, 1);
    try (PagedAttention attention = PagedAttention.open(job, TWO_THREADS, noLeaks.allocator());
        ArrowBatch batch =
            StepBatches.of(noLeaks.allocator(), layer, DType.FLOAT32, List.of(row))) {
      assertThatThrownBy(() -> attention.step(batch))
          .isInstanceOfSatisfying(
              KernelException.class, e -> assertThat(e.code()).isEqualTo(ErrorCode.OUT_OF_MEMORY))
          .hasMessageMatching(
              "layer 'a': KV cache: 2147483647 blocks of .* bytes need .* GiB, .*; lower"
                  + " kv_cache.num_blocks; a smaller kv_cache_dtype than float32 helps, too, or a"
                  + " lower memory_fraction where that decides; the caches before that of layer 'a'"
                  + " have 0 bytes");
    }
  }

  @Test
  void closingTwiceIsHarmless() {
    try (PagedAttention attention =
        PagedAttention.open(job(16, 8, small("a").build()), TWO_THREADS, noLeaks.allocator())) {
      assertThat(attention.describe()).contains("backend", "tier", " thread", "1 layer,");
      attention.close();
    }
  }

  @ParameterizedTest
  @EnumSource(AttnType.class)
  void describesWhatCachesTake(AttnType type) {
    Job job =
        job(
            16,
            8,
            small("a")
                .attnType(type)
                .kvCacheDtype(type.cached() ? KvCacheDtype.FLOAT16 : null)
                .build());

    assertThat(job.cacheBytes()).hasValue(type.cached() ? 2L * 8 * 16 * 2 * 64 * 2 : 0);
  }
}
