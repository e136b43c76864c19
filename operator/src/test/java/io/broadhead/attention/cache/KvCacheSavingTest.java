// SPDX-License-Identifier: Apache-2.0
package io.broadhead.attention.cache;

import static io.broadhead.attention.cache.CacheRows.A;
import static io.broadhead.attention.cache.CacheRows.B;
import static io.broadhead.attention.cache.CacheRows.SHARD;
import static io.broadhead.attention.cache.CacheRows.child;
import static io.broadhead.attention.cache.CacheRows.known;
import static io.broadhead.attention.cache.CacheRows.last;
import static io.broadhead.attention.cache.CacheRows.row;
import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import io.broadhead.attention.testing.SavedCache;
import io.broadhead.kernel.ErrorCode;
import java.util.List;
import java.util.Map;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.Test;

class KvCacheSavingTest {
  /** Of a key and a value in TaggedMemory. */
  private static final int TOKEN_BYTES = 16;

  private final CacheRows rows = new CacheRows();
  private SavedCache saved = new SavedCache();

  @AfterEach
  void close() {
    rows.close();
  }

  private KvCacheManager open(int numBlocks) {
    return CacheRows.open(numBlocks, saved.stores());
  }

  /** The cache as a new process finds it. */
  private KvCacheManager restored(int numBlocks) {
    saved = saved.copy();
    return restored(numBlocks, saved.stores());
  }

  private KvCacheManager restored(int numBlocks, CacheStores stores) {
    KvCacheManager manager = CacheRows.open(numBlocks, stores);
    manager.restore(SHARD, saved.sequences(SHARD).entrySet(), saved.blocks(SHARD).entrySet());
    return manager;
  }

  @Test
  void everyTokenIsSavedOnce() throws Exception {
    KvCacheManager manager = open(16);
    int tokens = 0;
    for (int step : new int[] {6, 1, 1, 1, 7, 1}) {
      for (LayerRole layer : List.of(A, B)) {
        rows.step(manager, row("s", layer, step));
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
    rows.step(manager, last("s"));
    saved.requireEmpty();
  }

  @Test
  void sequencesGoOnWhereTheyWere() throws Exception {
    KvCacheManager manager = open(16);
    rows.step(manager, row(7L, A, 6));
    rows.step(manager, row(7L, B, 6));
    rows.step(manager, row("7", A, 3));
    manager.save();
    KvCacheManager other = restored(4);
    assertThat(other.sequences()).isEqualTo(2);
    assertThat(other.free()).as("contents are read when they are needed").isEqualTo(4);
    rows.step(other, row(7L, A, 1, 7));
    rows.step(other, row("7", B, 3, 3));
    rows.step(other, row(7L, B, 1, 7));
    assertThatThrownBy(() -> rows.step(other, row("7", A, 1, 9)))
        .isInstanceOf(RowRefusedException.class)
        .hasMessage("column seq_len: 9, expected 4 (3 tokens in the cache and 1 new ones)");
  }

  @Test
  void blocksThatNobodyHasAnyMoreAreRemovedWhenRestored() throws Exception {
    KvCacheManager manager = open(3);
    rows.step(manager, known("s", A, 1, 2, 3, 4));
    rows.step(manager, row("t", A, 9)); // s makes room and goes to the store
    rows.step(manager, last("t"));
    rows.step(manager, known("s", A, 5));
    rows.step(manager, last("s")); // its first block is kept for those who begin alike
    assertThat(saved.bytes()).isPositive();
    manager.save();
    restored(3);
    saved.requireEmpty();
  }

  @Test
  void sharedBlocksAreFoundAgain() throws Exception {
    KvCacheManager manager = open(16);
    rows.step(manager, known("s", A, 1, 2, 3, 4, 5));
    manager.save();
    KvCacheManager other = restored(16);
    rows.step(other, known("t", A, 1, 2, 3, 4, 6));
    assertThat(other.counters().tokensHit()).isEqualTo(4);
    rows.step(other, known("s", A, 6, 7, 8));
    rows.step(other, known("t", A, 7, 8));
    rows.step(other, known("u", A, 1, 2, 3, 4, 5, 6, 7, 8));
    assertThat(other.counters().tokensHit())
        .as("ids of a block that was not full were saved too")
        .isEqualTo(4 + 8);
  }

  @Test
  void withoutContentsSequencesAreLostUntilTheyComeAgain() throws Exception {
    KvCacheManager manager = CacheRows.open(2, metadata());
    rows.step(manager, row("s", A, 6));
    rows.step(manager, row("s", B, 6));
    rows.step(manager, row("t", A, 3));
    manager.giveUp(SHARD, row("t", B, 3));
    rows.step(manager, row("u", B, 2));
    manager.save();
    assertThat(saved.bytesPut()).isZero();
    assertThat(saved.blocks(SHARD)).isEmpty();
    KvCacheManager other = restored(2, metadata());
    assertThat(other.sequences()).isEqualTo(3);
    String notKept = "its keys and values were not kept when the job was restarted";
    assertLost(other, row("s", A, 1, 7), notKept);
    assertLost(other, row("s", B, 6, 6), notKept); // its first layer is a
    assertLost(other, row("t", B, 1, 4), "it was given up for want of blocks in layer b");
    rows.step(other, row("s", A, 7, 7));
    rows.step(other, row("s", B, 7, 7));
    rows.step(other, row("s", A, 1, 8));
    rows.step(other, row("t", B, 3, 3));
    rows.step(other, row("u", B, 2, 2));
  }

  private CacheStores metadata() {
    return new CacheStores(new HostPartStore(), saved, false);
  }

  private void assertLost(KvCacheManager manager, RowRequest row, String why) {
    assertThatThrownBy(() -> rows.plan(manager, row))
        .isInstanceOfSatisfying(
            RowRefusedException.class, e -> assertThat(e.code()).isEqualTo(ErrorCode.SEQUENCE_LOST))
        .hasMessage(
            "sequence "
                + row.sequence()
                + ": "
                + why
                + "; expected it again from its first token, with seq_len as many as its keys, or"
                + " after a row without tokens that ends it");
  }

  @Test
  void aForkIsRestoredWithItsParentAndWhatItHasToFind() throws Exception {
    KvCacheManager manager = open(16);
    rows.step(manager, row("parent", A, 4));
    rows.step(manager, child("child", "parent", A, 1));
    rows.step(manager, row("orphan", A, 1));
    manager.save();
    KvCacheManager other = restored(16);
    assertThatThrownBy(() -> rows.plan(other, row("child", B, 1, 5)))
        .hasMessageContaining("(those of its parent parent come first)");
    rows.step(other, child("child", "parent", A, 1));
    assertThatThrownBy(() -> rows.plan(other, child("orphan", "parent", A, 1)))
        .hasMessageEndingWith("sequence orphan has begun already, expected null, got parent");
  }

  @Test
  void aStateThatLacksABlockIsRefused() throws Exception {
    KvCacheManager manager = open(16);
    rows.step(manager, row("s", A, 6));
    manager.save();
    saved.blocks(SHARD).remove(1L);
    assertThatThrownBy(() -> restored(16))
        .isInstanceOf(IllegalStateException.class)
        .hasMessage("the state lacks block 1 of a sequence");
  }

  @Test
  void aSequenceThatCannotBeReadIsAsItWas() throws Exception {
    PartStore failing =
        new PartStore() {
          private boolean hasFailed;

          @Override
          public void put(int shard, long block, int part, byte[] contents) {
            saved.put(shard, block, part, contents);
          }

          @Override
          public byte[] get(int shard, long block, int part) {
            if (block == 1 && !hasFailed) {
              hasFailed = true;
              throw new IllegalStateException("it cannot be read");
            }
            return saved.get(shard, block, part);
          }

          @Override
          public void remove(int shard, long block, int part) {
            saved.remove(shard, block, part);
          }
        };
    KvCacheManager manager = open(3);
    rows.step(manager, row("s", A, 6));
    manager.save();
    KvCacheManager other = restored(3, new CacheStores(failing, saved, true));
    assertThatThrownBy(() -> rows.plan(other, row("s", A, 1, 7))).hasMessage("it cannot be read");
    rows.rollBack(other);
    assertThat(other.free()).isEqualTo(3);
    rows.step(other, row("s", A, 1, 7));
    assertThat(other.counters().blocksSwappedIn()).isEqualTo(2);
    assertThat(other.free()).isEqualTo(1);
    rows.step(other, last("s"));
    assertThat(other.free()).isEqualTo(3);
    saved.requireEmpty();
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

  private static CacheHeader header(String owner, int numKvHeads, int headSize) {
    CacheHeader.Layer layer =
        new CacheHeader.Layer("a", owner, numKvHeads, headSize, "float16", 1, 1);
    return new CacheHeader(true, true, 4, 16, List.of(layer));
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
    assertThatThrownBy(() -> then.requireFits(header("b", 8, 128)))
        .hasMessage(
            "layer 'a': kv_sharing_target_layer_name: expected a, as when the state was written, got"
                + " b");
    assertThatThrownBy(() -> then.requireFits(header("a", 4, 128)))
        .hasMessage("layer 'a': num_kv_heads: expected 8, as when the state was written, got 4");
    assertThatThrownBy(() -> then.requireFits(header("a", 8, 64)))
        .hasMessage("layer 'a': head_size: expected 128, as when the state was written, got 64");
  }
}
