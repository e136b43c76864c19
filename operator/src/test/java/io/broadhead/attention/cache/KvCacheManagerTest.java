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

import io.broadhead.kernel.ErrorCode;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicBoolean;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.Test;

class KvCacheManagerTest {
  private final CacheRows rows = new CacheRows();

  @AfterEach
  void close() {
    rows.close();
  }

  private static KvCacheManager open(int numBlocks) {
    return CacheRows.open(numBlocks, CacheStores.onHeap());
  }

  // ---- whose places are given away -----------------------------------------------------------

  @Test
  void theSequenceThatWasNotUsedForTheLongestTimeMakesRoom() throws Exception {
    KvCacheManager manager = open(4);
    for (String sequence : new String[] {"s", "t", "u", "s", "u"}) {
      rows.step(manager, row(sequence, A, 2));
    }
    rows.step(manager, row("v", A, 8));
    assertThat(manager.counters().sequencesSwappedOut()).isEqualTo(1);
    assertThat(manager.counters().blocksSwappedOut()).isEqualTo(1);
    rows.step(manager, row("s", B, 4));
    rows.step(manager, row("u", B, 4));
    assertThat(manager.counters().blocksSwappedIn()).isZero();
    rows.step(manager, row("t", B, 2));
    assertThat(manager.counters().blocksSwappedIn()).isEqualTo(1);
  }

  @Test
  void whatOthersMayBeginWithIsKeptTheLongest() throws Exception {
    KvCacheManager manager = open(3);
    rows.step(manager, known("s", A, 1, 2, 3, 4));
    rows.step(manager, last("s"));
    rows.step(manager, row("t", A, 4));
    rows.step(manager, last("t"));
    rows.step(manager, row("u", A, 8));
    assertThat(manager.counters().blocksEvicted()).isZero();
    rows.step(manager, known("v", A, 1, 2, 3, 4));
    assertThat(manager.counters().tokensHit()).isEqualTo(4);
    rows.step(manager, last("v"));
    rows.step(manager, row("u", A, 4));
    assertThat(manager.counters().blocksEvicted()).isEqualTo(1);
  }

  @Test
  void whatASequenceLeftBehindWhenItWasSwappedOutGoesWithItsEnd() throws Exception {
    KvCacheManager manager = open(3);
    rows.step(manager, row("s", A, 8));
    rows.step(manager, row("t", A, 8)); // in a free place, and in that of the end of s
    assertThat(manager.counters().blocksSwappedOut()).isEqualTo(1);
    rows.step(manager, last("s"));
    rows.step(manager, row("t", A, 4));
    assertThat(manager.counters().blocksSwappedOut()).isEqualTo(1);
    assertThat(manager.counters().blocksEvicted()).isZero();
  }

  // ---- shared blocks -------------------------------------------------------------------------

  @Test
  void aForkKnowsTheTokensOfTheBlockThatItCopies() throws Exception {
    KvCacheManager manager = open(16);
    rows.step(manager, known("parent", A, 1, 2));
    rows.step(manager, child("child", "parent", A, 3, 4));
    rows.step(manager, known("alike", A, 1, 2, 3, 4));
    assertThat(manager.counters().tokensHit()).isEqualTo(4);
  }

  @Test
  void aForkOfUnknownTokensIsNotTakenForWhatItEndsWith() throws Exception {
    KvCacheManager manager = open(16);
    rows.step(manager, known("parent", A, 1));
    rows.step(manager, row("parent", A, 1));
    rows.step(manager, child("child", "parent", A, 3, 4));
    for (long token = 0; token < 4; token++) {
      rows.step(manager, known("alike " + token, A, 1, token, 3, 4));
    }
    assertThat(manager.counters().tokensHit()).isZero();
  }

  @Test
  void aFailedStepLeavesHashesAsTheyWere() throws Exception {
    KvCacheManager manager = open(16);
    rows.plan(manager, known("s", A, 1, 2, 3, 4, 5));
    rows.rollBack(manager);
    rows.step(manager, known("t", A, 1, 2, 3, 4, 5));
    assertThat(manager.counters().tokensHit()).isZero();
    rows.plan(manager, known("u", A, 1, 2, 3, 4, 5));
    assertThat(manager.counters().tokensHit()).isEqualTo(4);
    rows.rollBack(manager);
    rows.step(manager, known("u", A, 1, 2, 3, 4, 5));
    assertThat(manager.free()).as("one block of three is shared").isEqualTo(16 - 3);
  }

  @Test
  void aFailedStepLeavesNoTokenIdsBehind() throws Exception {
    KvCacheManager manager = open(16);
    rows.step(manager, known("s", A, 1, 2));
    rows.plan(manager, known("s", A, 3));
    rows.rollBack(manager);
    rows.step(manager, row("s", A, 1));
    rows.step(manager, known("s", A, 4));
    rows.step(manager, known("t", A, 1, 2, 3, 4));
    assertThat(manager.counters().tokensHit()).isZero();
  }

  // ---- layers --------------------------------------------------------------------------------

  @Test
  void aForkGoesThroughALayerBehindItsParent() throws Exception {
    KvCacheManager manager = open(16);
    rows.step(manager, row("parent", A, 4));
    rows.step(manager, child("child", "parent", A, 5));
    assertThatThrownBy(() -> rows.plan(manager, row("child", B, 1, 5)))
        .isInstanceOf(RowRefusedException.class)
        .hasMessage(
            "column sequence_id: sequence child has 0 tokens in the cache that layer b reads,"
                + " expected 4 (those of its parent parent come first)");
    rows.plan(manager, row("parent", B, 4, 4));
    assertThatThrownBy(() -> rows.plan(manager, row("child", B, 1, 5)))
        .isInstanceOf(StepFullException.class);
    rows.commit(manager);
    rows.step(manager, row("child", B, 1, 5));
    rows.plan(manager, row("parent", B, 1, 5));
    rows.plan(manager, row("child", B, 1, 6));
    rows.commit(manager);
  }

  @Test
  void aLostSequenceIsNotBegunAnewByPadding() throws Exception {
    KvCacheManager manager = open(16);
    manager.giveUp(SHARD, row("s", A, 5));
    RowRequest padding = new RowRequest("s", null, A, 0, 0, 0, 0, null, manager.losses(), false);
    assertThatThrownBy(() -> rows.plan(manager, padding))
        .isInstanceOfSatisfying(
            RowRefusedException.class,
            e -> assertThat(e.code()).isEqualTo(ErrorCode.SEQUENCE_LOST));
    assertThat(manager.sequences()).isEqualTo(1);
  }

  /** As metrics do, which have threads of their own. */
  @Test
  void sequencesAreCountedWhileShardsAreAdded() throws Exception {
    KvCacheManager manager = CacheRows.open(1, CacheStores.onHeap());
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
      manager.plan(shard, last("nobody"), rows.places);
      rows.places.clear();
    }
    added.set(true);
    counts.join();
  }
}
