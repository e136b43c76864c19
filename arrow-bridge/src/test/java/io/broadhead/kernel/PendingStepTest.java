// SPDX-License-Identifier: Apache-2.0
package io.broadhead.kernel;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import io.broadhead.arrow.ArrowBatch;
import io.broadhead.arrow.DType;
import io.broadhead.testing.NoLeaks;
import io.broadhead.testing.StepBatchBuilder;
import java.util.List;
import org.apache.arrow.memory.ArrowBuf;
import org.apache.arrow.memory.BufferAllocator;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.extension.ExtendWith;

/** Steps that are begun and ended, on whatever backend is here: a CPU computes at the beginning. */
@ExtendWith(NoLeaks.class)
class PendingStepTest {
  private static final DType DTYPE = DType.FLOAT16;

  private BufferAllocator allocator;
  private KernelEngine engine;
  private KernelCache cache;
  private KernelLayer layer;
  private ArrowBatch batch;
  private StepBinding binding;
  private StepPart part;
  private ResultDraft draft;

  @BeforeEach
  void open(BufferAllocator allocator) {
    this.allocator = allocator;
    LayerConfig config = LayerConfig.builder("layer0", 4, 2, 64).dtype(DTYPE).scale(1).build();
    engine = KernelEngine.open(new EngineConfig("auto", 1, 0));
    cache = new KernelCache(engine, new CacheConfig(16, 16, 2, 64, DTYPE));
    layer = new KernelLayer(engine, config, cache);
    batch = StepBatchBuilder.decoderStep(allocator, 3, 2, 2, 4, 2, 64, 16, DTYPE).build();
    binding = new StepBinding(layer, batch.schema(), allocator);
    ResultColumns results = new ResultColumns(config, batch.schema(), allocator);
    part = new StepPart(StepSchema.asSent(batch.schema()), results, allocator);
    draft = results.draft(batch);
    part.pointAtRows(batch, 0, batch.numRows(), draft);
  }

  @AfterEach
  void close() {
    draft.close();
    part.close();
    binding.close();
    batch.close();
    layer.close();
    cache.close();
    engine.close();
  }

  @Test
  void givesTheBitsOfAStep() {
    PendingStep pending = binding.begin(List.of(part));
    pending.await();
    StepStats stats = pending.end();
    assertThat(stats.queryTokens()).isEqualTo(6);
    assertThat(binding.lastStats()).isSameAs(stats);
    try (ArrowBatch begun = draft.finish(0);
        ArrowBatch whole = binding.step(batch)) {
      ArrowBuf got = begun.column("output").child().child().values();
      ArrowBuf expected = whole.column("output").child().child().values();
      for (long at = 0; at < 6 * 4 * 64 * 2; at += 8) {
        assertThat(got.getLong(at)).isEqualTo(expected.getLong(at));
      }
    }
  }

  @Test
  void endsOnce() {
    PendingStep pending = binding.begin(List.of(part));
    pending.end();
    pending.await();
    assertThatThrownBy(pending::end)
        .isInstanceOf(IllegalStateException.class)
        .hasMessage("step of layer layer0 has ended");
    pending.close();
  }

  @Test
  void closingDropsIt() {
    PendingStep pending = binding.begin(List.of(part));
    assertThat(pending.isClosed()).isFalse();
    pending.close();
    pending.await();
    assertThat(pending.isClosed()).isTrue();
  }

  @Test
  void keepsWhatItWasMadeFrom() {
    PendingStep pending = binding.begin(List.of(part));
    binding.close();
    layer.close();
    cache.close();
    engine.close();
    pending.close();
  }

  /** What it was made from can be freed nevertheless. */
  @Test
  void doesNotBeginWhileTheLayerIsInUse() {
    layer.enter();
    assertThatThrownBy(() -> binding.begin(List.of(part)))
        .isInstanceOf(IllegalStateException.class)
        .hasMessageContaining("in use by thread");
    layer.exit();
  }

  @Test
  void whatIsRefusedIsRefusedAtTheBeginning() {
    long handles = KernelEngine.liveHandles();
    try (ArrowBatch bad =
            StepBatchBuilder.decoderStep(allocator, 40, 2, 2, 4, 2, 64, 16, DTYPE).build();
        ResultDraft place = new ResultColumns(layer.config(), bad.schema(), allocator).draft(bad)) {
      part.pointAtRows(bad, 0, bad.numRows(), place);
      assertThatThrownBy(() -> binding.begin(List.of(part)))
          .isInstanceOfSatisfying(
              KernelException.class, e -> assertThat(e.code()).isEqualTo(ErrorCode.INVALID_ROW));
    }
    assertThat(KernelEngine.liveHandles()).isEqualTo(handles);
  }
}
