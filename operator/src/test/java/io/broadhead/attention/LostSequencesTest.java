// SPDX-License-Identifier: Apache-2.0
package io.broadhead.attention;

import static org.assertj.core.api.Assertions.assertThat;

import io.broadhead.arrow.ArrowBatch;
import io.broadhead.arrow.DType;
import io.broadhead.attention.cache.KvCacheManager;
import io.broadhead.attention.job.Job;
import io.broadhead.attention.job.KvCacheSpec;
import io.broadhead.attention.job.LayerSpec;
import io.broadhead.attention.testing.Collected;
import io.broadhead.attention.testing.ManagedRow;
import io.broadhead.attention.testing.NoLeaks;
import io.broadhead.attention.testing.Scenario;
import io.broadhead.attention.testing.StepBatches;
import io.broadhead.kernel.ErrorCode;
import java.util.List;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.extension.RegisterExtension;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;

/** Sequences that are given up for want of blocks, in a pool of four. */
class LostSequencesTest {
  private static final DType DTYPE = DType.FLOAT16;
  private static final LayerSpec A = LayerSpec.builder("a", 4, 64).numKvHeads(2).build();
  private static final LayerSpec B = LayerSpec.builder("b", 4, 64).numKvHeads(2).build();
  private static final Job POOL = new Job(new KvCacheSpec(16, 4, null), List.of(A, B));

  @RegisterExtension private final NoLeaks noLeaks = new NoLeaks();
  private final Collected collected = new Collected();

  private static ManagedRow tokens(String sequence, LayerSpec layer, int count) {
    Job enough = new Job(new KvCacheSpec(16, 64, null), POOL.layers());
    return ManagedRow.of(new Scenario(enough, DTYPE, 3).next(sequence, layer, count));
  }

  private PagedAttention open() {
    return open(OutOfBlocks.REJECT);
  }

  private PagedAttention open(OutOfBlocks outOfBlocks) {
    return PagedAttention.open(
        POOL, new AttentionConfig("cpu", 1, 0, outOfBlocks), noLeaks.allocator());
  }

  private void add(StepQueue queue, LayerSpec layer, ManagedRow row) {
    add(queue, layer, row, true);
  }

  private void add(StepQueue queue, LayerSpec layer, ManagedRow row, boolean hasSeqLen) {
    try (ArrowBatch batch =
        StepBatches.managed(noLeaks.allocator(), layer, DTYPE, hasSeqLen, List.of(row))) {
      queue.add(batch, collected);
    }
  }

  private ArrowBatch withoutSeqLen(LayerSpec layer, ManagedRow row) {
    return StepBatches.managed(noLeaks.allocator(), layer, DTYPE, false, List.of(row));
  }

  private void drain(StepQueue queue) {
    queue.drain();
    collected.results.forEach(ArrowBatch::close);
    collected.results.clear();
  }

  @Test
  void aRowThatIsRefusedKeepsNoBlocksFromOthers() {
    try (PagedAttention attention = open(OutOfBlocks.SWAP);
        StepQueue queue = attention.queue(0)) {
      add(queue, A, tokens("large", A, 48));
      drain(queue);
      ManagedRow bad = ManagedRow.of(tokens("large", A, 1).row().withSeqLen(7));
      try (ArrowBatch batch =
          StepBatches.managed(
              noLeaks.allocator(), A, DTYPE, true, List.of(bad, tokens("other", A, 20)))) {
        queue.add(batch, collected);
      }
      drain(queue);
      assertThat(collected.refused).extracting(RefusedRow::sequenceId).containsExactly("large");
    }
  }

  @Test
  void whatBeginsAnewIsNotOvertakenInAnotherLayer() {
    try (PagedAttention attention = open();
        StepQueue queue = attention.queue(16)) {
      for (LayerSpec layer : POOL.layers()) {
        add(queue, layer, tokens("s", layer, 80));
      }
      drain(queue);
      assertThat(collected.refused).extracting(RefusedRow::layer).containsExactly("a", "b");
      collected.refused.clear();

      add(queue, A, tokens("one", A, 8)); // fill a step, so that b's turn comes before s in a
      add(queue, A, tokens("two", A, 8));
      for (LayerSpec layer : POOL.layers()) {
        add(queue, layer, tokens("s", layer, 5));
      }
      drain(queue);
      assertThat(collected.refused).isEmpty();
    }
  }

  @Test
  void whatWasThereBeforeTheLossDoesNotBeginAnew() {
    try (PagedAttention attention = open();
        StepQueue queue = attention.queue(16)) {
      add(queue, A, tokens("one", A, 8)); // fill a step, so that b's turn comes before s in a
      add(queue, A, tokens("two", A, 8));
      for (LayerSpec layer : POOL.layers()) {
        add(queue, layer, tokens("s", layer, 40)); // there is room for 32
      }
      drain(queue);
      assertThat(collected.refused)
          .extracting(RefusedRow::layer)
          .containsExactlyInAnyOrder("a", "b");
    }
  }

  @Test
  void theChildOfALostParentIsLostUntilItComesAgain() {
    try (PagedAttention attention = open();
        StepQueue queue = attention.queue(0)) {
      add(queue, A, tokens("parent", A, 80));
      add(queue, A, ManagedRow.of(tokens("child", A, 1).row().withSeqLen(81)).forkedFrom("parent"));
      add(queue, A, tokens("parent", A, 5));
      ManagedRow next = ManagedRow.of(tokens("child", A, 1).row().withSeqLen(6));
      add(queue, A, next.forkedFrom("parent"));
      drain(queue);
      assertThat(collected.refused)
          .extracting(RefusedRow::sequenceId)
          .containsExactly("parent", "child", "child");
      assertThat(collected.refused.get(2).message())
          .startsWith("sequence child: its parent parent was not in the cache; expected it again");
      collected.refused.clear();

      add(queue, A, tokens("child", A, 7));
      drain(queue);
      assertThat(collected.refused).isEmpty();
    }
  }

  @ParameterizedTest
  @ValueSource(ints = {0, 16})
  void whatHasEndedInAllLayersIsForgotten(int maxTokens) {
    try (PagedAttention attention = open();
        StepQueue queue = attention.queue(maxTokens)) {
      for (LayerSpec layer : POOL.layers()) {
        add(queue, layer, tokens("s", layer, 80).last());
      }
      drain(queue);
      assertThat(collected.refused).extracting(RefusedRow::layer).containsExactly("a", "b");
      assertThat(attention.blockTables().map(KvCacheManager::sequences)).hasValue(0L);
    }
  }

  @Test
  void checkingTheLastRowOfALostSequenceForgetsNothing() {
    try (PagedAttention attention = open();
        ArrowBatch prompt = withoutSeqLen(A, tokens("s", A, 80));
        ArrowBatch lastOfB = withoutSeqLen(B, tokens("s", B, 1).last());
        ArrowBatch lastOfA = withoutSeqLen(A, tokens("s", A, 1).last())) {
      for (ArrowBatch batch : List.of(prompt, lastOfB)) {
        attention.step(batch, collected::refused).close();
      }
      List<RefusedRow> checked = attention.check(lastOfA);
      attention.step(lastOfA, collected::refused).close();
      assertThat(checked).extracting(RefusedRow::code).containsExactly(ErrorCode.SEQUENCE_LOST);
      assertThat(collected.refused).hasSize(3).endsWith(checked.get(0));
      assertThat(attention.blockTables().map(KvCacheManager::sequences)).hasValue(0L);
    }
  }

  @ParameterizedTest
  @ValueSource(ints = {0, 16})
  void withoutSeqLenALostSequenceBeginsAnewOnceItHasEnded(int maxTokens) {
    try (PagedAttention attention = open();
        StepQueue queue = attention.queue(maxTokens)) {
      for (int count : new int[] {80, 5}) {
        add(queue, A, tokens("s", A, count), false);
      }
      drain(queue);
      assertThat(collected.refused)
          .extracting(RefusedRow::code)
          .containsExactly(ErrorCode.OUT_OF_BLOCKS, ErrorCode.SEQUENCE_LOST);
      assertThat(collected.refused.get(1).message())
          .endsWith(
              "expected it again from its first token, with seq_len as many as its keys, or after a"
                  + " row without tokens that ends it");
      collected.refused.clear();

      add(queue, A, tokens("s", A, 0).last(), false);
      for (LayerSpec layer : POOL.layers()) {
        for (int count : new int[] {5, 1}) {
          add(queue, layer, tokens("s", layer, count), false);
        }
      }
      drain(queue);
      assertThat(collected.refused).isEmpty();
    }
  }

  @ParameterizedTest
  @ValueSource(ints = {0, 16})
  void oneBatchMayEndALostSequenceAndBeginItAnew(int maxTokens) {
    try (PagedAttention attention = open();
        StepQueue queue = attention.queue(maxTokens)) {
      add(queue, A, tokens("s", A, 80), false);
      drain(queue);
      collected.refused.clear();

      List<ManagedRow> rows = List.of(tokens("s", A, 0).last(), tokens("s", A, 5));
      try (ArrowBatch batch = StepBatches.managed(noLeaks.allocator(), A, DTYPE, false, rows)) {
        queue.add(batch, collected);
      }
      drain(queue);
      assertThat(collected.refused).isEmpty();
    }
  }

  @Test
  void messagesDoNotCountWhatIsLost() {
    try (PagedAttention attention = open();
        StepQueue queue = attention.queue(0)) {
      for (int count : new int[] {16, 60, 70}) {
        ManagedRow row = tokens("s", A, count);
        add(queue, A, count == 60 ? ManagedRow.of(row.row().withSeqLen(76)) : row);
        drain(queue);
      }
      assertThat(collected.refused)
          .extracting(row -> row.message().replaceAll(",.*", ""))
          .containsExactly(
              "sequence s has 16 tokens in the cache and 60 new ones",
              "sequence s has 0 tokens in the cache and 70 new ones");
    }
  }
}
