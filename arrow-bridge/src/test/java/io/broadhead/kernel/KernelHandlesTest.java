// SPDX-License-Identifier: Apache-2.0
package io.broadhead.kernel;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import io.broadhead.arrow.DType;
import io.broadhead.nativelib.global.broadhead;
import io.broadhead.testing.NoLeaks;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.TimeUnit;
import org.apache.arrow.memory.ArrowBuf;
import org.apache.arrow.memory.BufferAllocator;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.extension.ExtendWith;

@ExtendWith(NoLeaks.class)
class KernelHandlesTest {
  private static final CacheConfig CACHE = new CacheConfig(8, 16, 2, 32, DType.FLOAT32);
  private static final LayerConfig LAYER =
      LayerConfig.builder("layer0", 4, 2, 32).dtype(DType.FLOAT32).build();

  private static KernelEngine engine() {
    return KernelEngine.open(new EngineConfig("cpu", 1, 0));
  }

  @Test
  void engineSaysWhatItIs() {
    try (KernelEngine engine = engine()) {
      EngineInfo info = engine.info();
      assertThat(info.backend()).isEqualTo("cpu");
      assertThat(info.tier()).isNotEmpty();
      assertThat(info.reason()).isNotEmpty();
      assertThat(info.threads()).isOne();
    }
    assertThat(KernelEngine.backends())
        .anySatisfy(
            backend -> {
              assertThat(backend.name()).isEqualTo("cpu");
              assertThat(backend.usable()).isTrue();
            });
  }

  @Test
  void namesOfBackendsAreThoseOfTheLibrary() {
    assertThat(KernelEngine.backends().stream().map(BackendInfo::name))
        .containsExactlyElementsOf(EngineConfig.BACKENDS.subList(1, EngineConfig.BACKENDS.size()));
  }

  @Test
  void probesMeasureAndCheckTheirArguments(BufferAllocator allocator) {
    try (KernelEngine engine = engine();
        KernelCache cache = new KernelCache(engine, CACHE);
        ArrowBuf source = allocator.buffer(4096);
        ArrowBuf target = allocator.buffer(4096);
        ArrowBuf small = allocator.buffer(64)) {
      source.setOne(0, 4096);
      assertThat(engine.probeRead(cache, new int[] {7, 0, 3})).isPositive();
      assertThat(engine.probeCompute(1_000_000)).isPositive();
      assertThat(engine.probeCopy(source, target)).isPositive();
      assertThat(target.getByte(4095)).isEqualTo((byte) 0xff);
      assertThatThrownBy(() -> engine.probeRead(cache, new int[] {8}))
          .isInstanceOf(KernelException.class)
          .hasMessageContaining("block is 8");
      assertThatThrownBy(() -> engine.probeCopy(source, small))
          .hasMessage("target: expected a buffer of 4096 bytes, got 64");
    }
  }

  @Test
  void unknownBackendIsRefused() {
    assertThatThrownBy(() -> KernelEngine.open(new EngineConfig("abacus", 1, 0)))
        .isInstanceOfSatisfying(
            KernelException.class,
            e -> {
              assertThat(e.code()).isEqualTo(ErrorCode.INVALID_ARGUMENT);
              assertThat(e.row()).isEqualTo(-1);
              assertThat(e).hasMessageContaining("abacus");
            });
  }

  @Test
  void badShapesAreRefusedAndLeaveNothing() {
    try (KernelEngine engine = engine()) {
      long before = KernelEngine.liveHandles();
      assertThatThrownBy(
              () -> new KernelCache(engine, new CacheConfig(8, 17, 2, 32, DType.FLOAT32)))
          .isInstanceOf(KernelException.class)
          .hasMessageContaining("block_size")
          .hasMessageContaining("17");
      try (KernelCache cache = new KernelCache(engine, CACHE)) {
        LayerConfig odd = LayerConfig.builder("odd", 4, 2, 33).build();
        assertThatThrownBy(() -> new KernelLayer(engine, odd, cache))
            .isInstanceOf(KernelException.class)
            .hasMessageContaining("head_size")
            .hasMessageContaining("33");
        assertThat(KernelLayer.unsupported(engine, LAYER, DType.FLOAT32, 16)).isEmpty();
        assertThat(KernelLayer.unsupported(engine, odd, DType.FLOAT32, 16))
            .hasValueSatisfying(e -> assertThat(e).hasMessageContaining("head_size"));
      }
      assertThat(KernelEngine.liveHandles()).isEqualTo(before);
    }
    assertThatThrownBy(() -> LayerConfig.builder("x", 4, 2, 32).sinks(1, 2).build())
        .hasMessage("sinks: expected 4 values, one per head, got 2");
    assertThatThrownBy(() -> new RopeConfig(32, 10, true, new float[3]))
        .hasMessage("rope table: expected 10 x 32 values, got 3");
  }

  @Test
  void closeTwiceAndUseAfterClose(BufferAllocator allocator) {
    KernelEngine engine = engine();
    KernelCache cache = new KernelCache(engine, CACHE);
    cache.close();
    cache.close();
    assertThat(cache.isClosed()).isTrue();
    assertThatThrownBy(cache::bytes)
        .isInstanceOf(IllegalStateException.class)
        .hasMessage("cache was closed");
    engine.close();
    engine.close();
    assertThatThrownBy(() -> new KernelCache(engine, CACHE))
        .isInstanceOf(IllegalStateException.class)
        .hasMessage("engine was closed");
  }

  @Test
  void parentsLiveAsLongAsTheirChildren() {
    long before = KernelEngine.liveHandles();
    KernelEngine engine = engine();
    KernelCache cache = new KernelCache(engine, CACHE);
    KernelLayer layer = new KernelLayer(engine, LAYER, cache);
    engine.close();
    cache.close();
    assertThat(KernelEngine.liveHandles()).isEqualTo(before + 3);
    layer.close();
    assertThat(KernelEngine.liveHandles()).isEqualTo(before);
  }

  @Test
  void oneThreadAtATime() throws Exception {
    ExecutorService pool = Executors.newSingleThreadExecutor();
    try (KernelEngine engine = engine();
        KernelCache cache = new KernelCache(engine, CACHE)) {
      CountDownLatch inside = new CountDownLatch(1);
      CountDownLatch leave = new CountDownLatch(1);
      var other =
          pool.submit(
              () -> {
                cache.enter();
                inside.countDown();
                leave.await();
                cache.exit();
                return null;
              });
      assertThat(inside.await(10, TimeUnit.SECONDS)).isTrue();
      assertThatThrownBy(cache::bytes)
          .isInstanceOf(IllegalStateException.class)
          .hasMessageContaining("in use by thread");
      // Closed while in use: freed when the other thread is out.
      long live = KernelEngine.liveHandles();
      cache.close();
      assertThat(KernelEngine.liveHandles()).isEqualTo(live);
      leave.countDown();
      other.get(10, TimeUnit.SECONDS);
      assertThat(KernelEngine.liveHandles()).isEqualTo(live - 1);
    } finally {
      pool.shutdown();
    }
  }

  @Test
  void blocksAreReadWrittenAndCopied(BufferAllocator allocator) {
    try (KernelEngine engine = engine();
        KernelCache cache = new KernelCache(engine, CACHE)) {
      long size = cache.blockBytes();
      assertThat(size).isEqualTo(16L * 2 * 32 * 4);
      assertThat(cache.bytes()).isGreaterThanOrEqualTo(8 * 2 * size);
      try (ArrowBuf key = allocator.buffer(size);
          ArrowBuf value = allocator.buffer(size);
          ArrowBuf readKey = allocator.buffer(size);
          ArrowBuf readValue = allocator.buffer(size);
          ArrowBuf small = allocator.buffer(64)) {
        for (int i = 0; i < size / 4; i++) {
          key.setFloat(4L * i, i);
          value.setFloat(4L * i, -i);
        }
        cache.writeBlock(3, key, value);
        cache.copyBlocks(new long[] {3, 5}, new long[] {5, 7});
        cache.copyBlocks(new long[0], new long[0]);
        for (long block : new long[] {3, 5, 7}) {
          cache.readBlock(block, readKey, readValue);
          for (int i = 0; i < size / 4; i++) {
            assertThat(readKey.getFloat(4L * i)).isEqualTo(i);
            assertThat(readValue.getFloat(4L * i)).isEqualTo(-i);
          }
        }
        cache.readBlock(0, readKey, readValue);
        assertThat(readKey.getFloat(4)).isZero();
        assertThatThrownBy(() -> cache.readBlock(8, readKey, readValue))
            .isInstanceOf(KernelException.class)
            .hasMessageContaining("8");
        assertThatThrownBy(() -> cache.readBlock(0, small, readValue))
            .hasMessage("key: expected a buffer of 4096 bytes, got 64");
        assertThatThrownBy(() -> cache.copyBlocks(new long[] {1, 99}, new long[] {2, 3}))
            .isInstanceOf(KernelException.class)
            .hasMessageContaining("99");
        assertThatThrownBy(() -> cache.copyBlocks(new long[1], new long[2]))
            .isInstanceOf(IllegalArgumentException.class);
      }
    }
  }

  @Test
  void codesAreThoseOfTheHeader() {
    assertThat(ErrorCode.of(broadhead.BH_INVALID_ROW)).isEqualTo(ErrorCode.INVALID_ROW);
    assertThat(ErrorCode.of(broadhead.BH_INTERNAL)).isEqualTo(ErrorCode.INTERNAL);
    assertThat(ErrorCode.of(12345)).isEqualTo(ErrorCode.INTERNAL);
    assertThat(ErrorCode.of(broadhead.BH_CANCELLED)).isEqualTo(ErrorCode.CANCELLED);
    assertThat(ErrorCode.values()).hasSize(broadhead.BH_SEQUENCE_LOST);
    assertThat(DType.FLOAT32.code()).isEqualTo(broadhead.BH_FLOAT32);
    assertThat(DType.FLOAT16.code()).isEqualTo(broadhead.BH_FLOAT16);
    assertThat(DType.BFLOAT16.code()).isEqualTo(broadhead.BH_BFLOAT16);
    assertThat(DType.FLOAT8_E4M3FN.code()).isEqualTo(broadhead.BH_FLOAT8_E4M3FN);
    assertThat(DType.FLOAT8_E5M2.code()).isEqualTo(broadhead.BH_FLOAT8_E5M2);
    assertThat(AttentionType.ENCODER_DECODER.code()).isEqualTo(broadhead.BH_ENCODER_DECODER);
    assertThat(AttentionType.ENCODER.code()).isEqualTo(broadhead.BH_ENCODER);
  }

  @Test
  void otherAbiVersionIsRefused() {
    assertThatThrownBy(() -> NativeLoader.checkVersion(1, 2))
        .isInstanceOfSatisfying(
            KernelException.class, e -> assertThat(e.code()).isEqualTo(ErrorCode.ABI_MISMATCH))
        .hasMessageContaining("expected ABI version 1, got 2");
  }
}
