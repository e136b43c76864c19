// SPDX-License-Identifier: Apache-2.0
package io.broadhead.attention;

import static org.assertj.core.api.Assertions.assertThat;

import io.broadhead.arrow.ArrowBatch;
import io.broadhead.attention.cache.KvCacheManager;
import io.broadhead.attention.job.Job;
import io.broadhead.attention.job.LayerSpec;
import io.broadhead.attention.testing.Collected;
import io.broadhead.attention.testing.ManagedRow;
import io.broadhead.attention.testing.StepBatches;
import io.broadhead.attention.testing.StepRow;
import java.util.ArrayList;
import java.util.List;
import java.util.function.Function;
import org.junit.jupiter.api.AfterEach;

/** Batches that are computed one by one and in a queue, to the same results. */
abstract class QueueFixture extends AttentionFixture {
  final List<ArrowBatch> batches = new ArrayList<>();
  final Collected collected = new Collected();

  @AfterEach
  void close() {
    batches.forEach(ArrowBatch::close);
    collected.results.forEach(ArrowBatch::close);
  }

  void addManaged(LayerSpec layer, ManagedRow... rows) {
    batches.add(managed(layer, rows));
  }

  /** A batch for each layer of the job. */
  void addManaged(Job job, Function<LayerSpec, ManagedRow> rowOf) {
    job.layers().forEach(layer -> addManaged(layer, rowOf.apply(layer)));
  }

  void addExternal(LayerSpec layer, StepRow... rows) {
    batches.add(external(layer, List.of(rows)));
  }

  /**
   * Computes the batches one by one, and all of them in a queue.
   *
   * @param waiting batches that may wait when another one is added
   */
  void assertQueueComputes(Job job, int maxTokens, int waiting) {
    try (PagedAttention apart = open(job);
        PagedAttention queued = open(job);
        StepQueue queue = queued.queue(maxTokens)) {
      List<Collected> collected = new ArrayList<>();
      for (ArrowBatch batch : batches) {
        collected.add(new Collected());
        queue.add(batch, collected.get(collected.size() - 1));
        while (queue.batches() > waiting) {
          queue.step();
        }
      }
      queue.drain();
      for (int i = 0; i < batches.size(); i++) {
        Collected got = collected.get(i);
        assertThat(got.refused).as("refused rows of batch %s", i).isEmpty();
        try (ArrowBatch expected = apart.step(batches.get(i));
            ArrowBatch result = got.results.get(0)) {
          assertThat(
                  StepBatches.error(
                      StepBatches.read(expected, "output"), StepBatches.read(result, "output")))
              .as("error of batch %s", i)
              .isLessThan(StepBatches.tolerance(DTYPE));
        }
      }
      assertThat(queued.blockTables().map(KvCacheManager::sequences))
          .isEqualTo(apart.blockTables().map(KvCacheManager::sequences));
    }
  }

  /** Collects what a queue makes of all batches. */
  void collect(Job job, int maxTokens) {
    try (PagedAttention attention = open(job);
        StepQueue queue = attention.queue(maxTokens)) {
      batches.forEach(batch -> queue.add(batch, collected));
      queue.drain();
    }
  }

  void assertRefused(String... messages) {
    assertThat(collected.refused).extracting(RefusedRow::message).containsExactly(messages);
  }

  static LayerSpec sharing(String name, String target) {
    return layer(name).kvSharingTargetLayerName(target).build();
  }
}
