// SPDX-License-Identifier: Apache-2.0
package io.broadhead.flink;

import static org.assertj.core.api.Assertions.assertThat;

import io.broadhead.arrow.ArrowBatch;
import io.broadhead.arrow.DType;
import io.broadhead.attention.AttentionConfig;
import io.broadhead.attention.OutOfBlocks;
import io.broadhead.attention.PagedAttention;
import io.broadhead.attention.StepQueue;
import io.broadhead.attention.job.Job;
import io.broadhead.attention.job.KvCacheSpec;
import io.broadhead.attention.job.LayerSpec;
import io.broadhead.attention.testing.ManagedRow;
import io.broadhead.attention.testing.NoLeaks;
import io.broadhead.attention.testing.SavedCache;
import io.broadhead.attention.testing.Scenario;
import io.broadhead.attention.testing.StepBatches;
import io.broadhead.attention.testing.StepRow;
import java.util.Arrays;
import java.util.List;
import java.util.stream.LongStream;
import org.apache.flink.metrics.testutils.MetricListener;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.extension.RegisterExtension;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;

class PagedAttentionMetricsTest {
  private static final DType DTYPE = DType.FLOAT32;

  @RegisterExtension private final NoLeaks noLeaks = new NoLeaks();

  @ParameterizedTest
  @ValueSource(booleans = {true, false})
  void savedBytesAreThoseOfAnyBlockTables(boolean managed) {
    LayerSpec layer = OperatorHarness.JOB.layers().get(0);
    StepRow row = new Scenario(OperatorHarness.JOB, DTYPE, 3).next("s", layer, 20);
    MetricListener metrics = new MetricListener();
    SavedCache saved = new SavedCache();
    try (PagedAttention attention =
            PagedAttention.open(
                OperatorHarness.JOB,
                new AttentionConfig("cpu", 1, 0, OutOfBlocks.SWAP),
                noLeaks.allocator(),
                saved.stores());
        StepQueue queue = attention.queue(0)) {
      new PagedAttentionMetrics(metrics.getMetricGroup(), attention, queue);
      assertThat(value(metrics, PagedAttentionMetrics.SAVED_BYTES)).isEqualTo(0L);
      try (ArrowBatch batch =
          managed
              ? StepBatches.managed(
                  noLeaks.allocator(), layer, DTYPE, true, List.of(ManagedRow.of(row)))
              : StepBatches.of(noLeaks.allocator(), layer, DTYPE, List.of(row))) {
        attention.step(batch).close();
      }
      attention.save(1);
      assertThat(saved.bytesPut()).isPositive();
      assertThat(value(metrics, PagedAttentionMetrics.SAVED_BYTES)).isEqualTo(saved.bytesPut());
    }
  }

  private static Object value(MetricListener metrics, String name) {
    return metrics.getGauge(PagedAttentionMetrics.GROUP, name).orElseThrow().getValue();
  }

  @Test
  void eachGaugeTellsWhatItsNameSays() {
    LayerSpec layer = LayerSpec.builder("a", 4, 64).numKvHeads(2).build();
    Job job = new Job(new KvCacheSpec(16, 4, null), List.of(layer));
    Job unlimited = new Job(new KvCacheSpec(16, 64, null), List.of(layer));
    Scenario scenario = new Scenario(unlimited, DTYPE, 3);
    MetricListener metrics = new MetricListener();
    try (PagedAttention attention =
            PagedAttention.open(job, new AttentionConfig("cpu", 1, 0), noLeaks.allocator());
        StepQueue queue = attention.queue(0)) {
      new PagedAttentionMetrics(metrics.getMetricGroup(), attention, queue);
      assertThat(value(metrics, PagedAttentionMetrics.CACHE_USAGE)).isEqualTo(0.0);

      long[] ids = LongStream.range(0, 17).toArray();
      StepRow first = scenario.next("first", layer, 16);
      step(attention, layer, ManagedRow.of(first).withTokenIds(Arrays.copyOf(ids, 16)).last());
      StepRow second = scenario.next("second", layer, 17);
      step(attention, layer, ManagedRow.of(second).withTokenIds(ids));
      StepRow child = scenario.next("child", layer, 1).withSeqLen(18);
      step(attention, layer, ManagedRow.of(child).forkedFrom("second"));
      assertThat(value(metrics, PagedAttentionMetrics.HIT_TOKENS)).isEqualTo(16L);
      assertThat(value(metrics, PagedAttentionMetrics.BLOCKS_COPIED)).isEqualTo(1L);
      assertThat(value(metrics, PagedAttentionMetrics.CACHE_USAGE)).isEqualTo(0.75);
      assertThat(value(metrics, PagedAttentionMetrics.SEQUENCES_IN_CACHE)).isEqualTo(2L);

      step(attention, layer, ManagedRow.of(scenario.next("large", layer, 49))); // all four blocks
      step(attention, layer, ManagedRow.of(scenario.next("second", layer, 0)).last());
      step(attention, layer, ManagedRow.of(scenario.next("child", layer, 1).withSeqLen(19)));
      assertThat(value(metrics, PagedAttentionMetrics.BLOCKS_SWAPPED_OUT)).isEqualTo(3L + 2);
      assertThat(value(metrics, PagedAttentionMetrics.BLOCKS_SWAPPED_IN)).isEqualTo(2L);
      assertThat(value(metrics, PagedAttentionMetrics.BLOCKS_EVICTED)).isEqualTo(0L);

      StepRow end = scenario.next("child", layer, 0).withSeqLen(19);
      step(attention, layer, ManagedRow.of(end).last()); // its first block is kept for others
      step(attention, layer, ManagedRow.of(scenario.next("large", layer, 1)));
      assertThat(value(metrics, PagedAttentionMetrics.BLOCKS_EVICTED)).isEqualTo(1L);
      assertThat(value(metrics, PagedAttentionMetrics.CACHE_BYTES))
          .isEqualTo(4L * 16 * 2 * 2 * 64 * Float.BYTES);
    }
  }

  private void step(PagedAttention attention, LayerSpec layer, ManagedRow row) {
    try (ArrowBatch batch =
        StepBatches.managed(noLeaks.allocator(), layer, DTYPE, true, List.of(row))) {
      attention.step(batch).close();
    }
  }
}
