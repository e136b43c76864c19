// SPDX-License-Identifier: Apache-2.0
package io.broadhead.attention.cache;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import io.broadhead.arrow.Allocators;
import io.broadhead.attention.testing.SavedCache;
import io.broadhead.kernel.ErrorCode;
import io.broadhead.kernel.PlannedRows;
import java.util.List;
import java.util.Map;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicBoolean;
import java.util.function.IntToLongFunction;
import org.apache.arrow.memory.BufferAllocator;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.Test;

class KvCacheSavingTest {
  private static final int BLOCK = 4;
  private static final int SHARD = 5;
  private static final LayerRole A = new LayerRole(0, "a", 0, 0, false);
  private static final LayerRole B = new LayerRole(1, "b", 1, 1, false);

  /** Of a key and a value in TaggedMemory. */
  private static final int TOKEN_BYTES = 16;

  private final BufferAllocator allocator = Allocators.root();
  private final PlannedRows places = new PlannedRows(allocator);
  private SavedCache saved = new SavedCache();

  @AfterEach
  void close() {
    places.close();
    allocator.close();
  }

  private static KvCacheManager open(int numBlocks, CacheStores stores) {
    return new KvCacheManager(
        new CacheShape(BLOCK, numBlocks, List.of(A, B)),
        new TaggedMemory(2, BLOCK, numBlocks),
        stores,
        true);
  }

  private KvCacheManager open(int numBlocks) {
    return open(numBlocks, saved.stores());
  }

  /** The cache as a new process finds it. */
  private KvCacheManager restored(int numBlocks) {
    saved = saved.copy();
    KvCacheManager manager = open(numBlocks);
    manager.restore(SHARD, saved.sequences(SHARD).entrySet(), saved.blocks(SHARD).entrySet());
    return manager;
  }

  private void step(KvCacheManager manager, RowRequest row)
      throws RowRefusedException, StepFullException {
    manager.plan(SHARD, row, places);
    manager.commit();
    places.clear();
  }

  private static RowRequest row(Object sequence, LayerRole layer, int tokens, int seqLen) {
    return new RowRequest(sequence, null, layer, tokens, tokens, 0, seqLen, null, 0, false);
  }

  private static RowRequest last(Object sequence) {
    return new RowRequest(sequence, null, A, 0, 0, 0, RowRequest.UNKNOWN, null, 0, true);
  }

  private static RowRequest known(Object sequence, LayerRole layer, long... ids) {
    IntToLongFunction tokenIds = i -> ids[i];
    return new RowRequest(
        sequence, null, layer, ids.length, ids.length, 0, RowRequest.UNKNOWN, tokenIds, 0, false);
  }

  @Test
  void everyTokenIsSavedOnce() throws Exception {
    KvCacheManager manager = open(16);
    int tokens = 0;
    for (int step : new int[] {6, 1, 1, 1, 7, 1}) {
      for (LayerRole layer : List.of(A, B)) {
        step(manager, row("s", layer, step, RowRequest.UNKNOWN));
      }
      tokens += step;
      manager.save();
      assertThat(saved.bytesPut()).isEqualTo(2L * tokens * TOKEN_BYTES);
      assertThat(manager.counters().bytesSaved()).isEqualTo(saved.bytesPut());
    }
    Map<String, byte[]> before = Map.copyOf(saved.sequences(SHARD));
    manager.save();
    assertThat(saved.bytesPut()).isEqualTo(2L * tokens * TOKEN_BYTES);
    assertThat(saved.sequences(SHARD)).as("nothing changed").isEqualTo(before);
    assertThat(saved.bytes()).isEqualTo(saved.bytesPut());
    step(manager, last("s"));
    saved.requireEmpty();
  }

  @Test
  void sequencesGoOnWhereTheyWere() throws Exception {
    KvCacheManager manager = open(16);
    step(manager, row(7L, A, 6, RowRequest.UNKNOWN));
    step(manager, row(7L, B, 6, RowRequest.UNKNOWN));
    step(manager, row("7", A, 3, RowRequest.UNKNOWN));
    manager.save();
    KvCacheManager other = restored(4);
    assertThat(other.sequences()).isEqualTo(2);
    assertThat(other.free()).as("contents are read when they are needed").isEqualTo(4);
    step(other, row(7L, A, 1, 7));
    step(other, row("7", B, 3, 3));
    step(other, row(7L, B, 1, 7));
    assertThatThrownBy(() -> step(other, row("7", A, 1, 9)))
        .isInstanceOf(RowRefusedException.class)
        .hasMessage("column seq_len: 9, expected 4 (3 tokens in the cache and 1 new ones)");
  }

  @Test
  void blocksThatNobodyHasAnyMoreAreRemovedWhenRestored() throws Exception {
    KvCacheManager manager = open(3);
    step(manager, known("s", A, 1, 2, 3, 4));
    step(manager, row("t", A, 9, RowRequest.UNKNOWN)); // s makes room and goes to the store
    step(manager, last("t"));
    step(manager, known("s", A, 5));
    step(manager, last("s")); // its first block is kept for those who begin alike
    assertThat(saved.bytes()).isPositive();
    manager.save();
    restored(3);
    saved.requireEmpty();
  }

  @Test
  void sharedBlocksAreFoundAgain() throws Exception {
    KvCacheManager manager = open(16);
    step(manager, known("s", A, 1, 2, 3, 4, 5));
    manager.save();
    KvCacheManager other = restored(16);
    step(other, known("t", A, 1, 2, 3, 4, 6));
    assertThat(other.counters().tokensHit()).isEqualTo(4);
    step(other, known("s", A, 6, 7, 8));
    step(other, known("t", A, 7, 8));
    step(other, known("u", A, 1, 2, 3, 4, 5, 6, 7, 8));
    assertThat(other.counters().tokensHit())
        .as("ids of a block that was not full were saved too")
        .isEqualTo(4 + 8);
  }

  @Test
  void withoutContentsSequencesAreLostUntilTheyComeAgain() throws Exception {
    HostPartStore heap = new HostPartStore();
    CacheStores stores = new CacheStores(heap, saved, false);
    KvCacheManager manager = open(2, stores);
    step(manager, row("s", A, 6, RowRequest.UNKNOWN));
    step(manager, row("s", B, 6, RowRequest.UNKNOWN));
    step(manager, row("t", A, 3, RowRequest.UNKNOWN));
    manager.save();
    assertThat(saved.bytesPut()).isZero();
    assertThat(saved.blocks(SHARD)).isEmpty();
    KvCacheManager other = open(2, new CacheStores(new HostPartStore(), saved, false));
    other.restore(SHARD, saved.sequences(SHARD).entrySet(), saved.blocks(SHARD).entrySet());
    assertThat(other.sequences()).isEqualTo(2);
    for (RowRequest row : List.of(row("s", A, 1, 7), row("t", B, 3, 3))) {
      assertThatThrownBy(() -> other.plan(SHARD, row, places))
          .isInstanceOfSatisfying(
              RowRefusedException.class,
              e -> assertThat(e.code()).isEqualTo(ErrorCode.SEQUENCE_LOST))
          .hasMessage(
              "sequence "
                  + row.sequence()
                  + ": its keys and values were not kept when the job was restarted; expected it"
                  + " again from its first token, with seq_len as many as its keys, or after a row"
                  + " without tokens that ends it");
    }
    step(other, row("s", A, 7, 7));
    step(other, row("s", B, 7, 7));
    step(other, row("s", A, 1, 8));
  }

  /** As metrics do, which have threads of their own. */
  @Test
  void sequencesAreCountedWhileShardsAreAdded() throws Exception {
    KvCacheManager manager = open(1);
    CountDownLatch counting = new CountDownLatch(1);
    AtomicBoolean added = new AtomicBoolean();
    CompletableFuture<Void> counts =
        CompletableFuture.runAsync(
            () -> {
              while (!added.get()) {
                assertThat(manager.sequences()).isZero();
                counting.countDown();
              }
            });
    assertThat(counting.await(10, TimeUnit.SECONDS)).isTrue();
    for (int shard = 0; shard < 100_000; shard++) {
      manager.plan(shard, last("nobody"), places);
      places.clear();
    }
    added.set(true);
    counts.join();
  }

  @Test
  void recordsOfNewerProgramsAreRefused() {
    byte[] newer = {9, 0, 0};
    for (Runnable read :
        List.<Runnable>of(
            () -> SequenceRecord.of(newer),
            () -> BlockRecord.of(newer),
            () -> CacheHeader.of(newer))) {
      assertThatThrownBy(read::run)
          .isInstanceOf(IllegalStateException.class)
          .hasMessageContaining("in the state: expected format 1 to ")
          .hasMessageEndingWith(", got 9; it was written by a newer Broadhead");
    }
  }

  private static CacheHeader header(boolean contents, int shards, int blockSize, String dtype) {
    return header(contents, shards, blockSize, dtype, 1, 1);
  }

  private static CacheHeader header(
      boolean contents, int shards, int blockSize, String dtype, float kScale, float vScale) {
    CacheHeader.Layer layer = new CacheHeader.Layer("a", "a", 8, 128, dtype, kScale, vScale);
    return new CacheHeader(true, contents, shards, blockSize, List.of(layer));
  }

  @Test
  void aJobThatDiffersIsToldTheKey() {
    CacheHeader then = header(true, 4, 16, "float16");
    then.requireFits(header(true, 4, 16, ""));
    assertThatThrownBy(() -> then.requireFits(header(true, 2, 16, "float16")))
        .hasMessage("broadhead.shards: expected 4, as when the state was written, got 2");
    assertThatThrownBy(() -> then.requireFits(header(true, 4, 32, "float16")))
        .hasMessage("kv_cache.block_size: expected 16, as when the state was written, got 32");
    assertThatThrownBy(() -> then.requireFits(header(true, 4, 16, "float32")))
        .hasMessage(
            "layer 'a': kv_cache_dtype: expected float16, as when the state was written, got"
                + " float32");
    assertThatThrownBy(() -> then.requireFits(header(false, 4, 16, "float16")))
        .hasMessage("broadhead.state: expected full, as when the state was written, got metadata");
    header(false, 4, 16, "float16").requireFits(then);
    assertThatThrownBy(() -> then.requireFits(header(true, 4, 16, "float16", 0.5f, 1)))
        .hasMessage("layer 'a': k_scale: expected 1.0, as when the state was written, got 0.5");
    assertThatThrownBy(() -> then.requireFits(header(true, 4, 16, "float16", 1, 0.25f)))
        .hasMessage("layer 'a': v_scale: expected 1.0, as when the state was written, got 0.25");
    header(true, 4, 16, "float16", CacheHeader.UNKNOWN_SCALE, CacheHeader.UNKNOWN_SCALE)
        .requireFits(then);
    assertThatThrownBy(() -> then.requireFits(new CacheHeader(true, true, 4, 16, List.of())))
        .hasMessage("layers: expected [a], as when the state was written, got []");
  }

  @Test
  void aFailedStepLeavesHashesAsTheyWere() throws Exception {
    KvCacheManager manager = open(16);
    manager.plan(SHARD, known("s", A, 1, 2, 3, 4, 5), places);
    manager.rollBack();
    places.clear();
    step(manager, known("t", A, 1, 2, 3, 4, 5));
    assertThat(manager.counters().tokensHit()).isZero();
    manager.plan(SHARD, known("u", A, 1, 2, 3, 4, 5), places);
    assertThat(manager.counters().tokensHit()).isEqualTo(4);
    manager.rollBack();
    places.clear();
    step(manager, known("u", A, 1, 2, 3, 4, 5));
    assertThat(manager.free()).as("one block of three is shared").isEqualTo(16 - 3);
  }
}
