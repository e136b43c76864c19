// SPDX-License-Identifier: Apache-2.0
package io.broadhead.flink;

import static org.assertj.core.api.Assertions.assertThat;

import io.broadhead.arrow.ArrowBatch;
import io.broadhead.arrow.DType;
import io.broadhead.attention.AttentionConfig;
import io.broadhead.attention.OutOfBlocks;
import io.broadhead.attention.PagedAttention;
import io.broadhead.attention.StepQueue;
import io.broadhead.attention.job.LayerSpec;
import io.broadhead.attention.testing.ManagedRow;
import io.broadhead.attention.testing.NoLeaks;
import io.broadhead.attention.testing.SavedCache;
import io.broadhead.attention.testing.Scenario;
import io.broadhead.attention.testing.StepBatches;
import io.broadhead.attention.testing.StepRow;
import java.util.List;
import org.apache.flink.metrics.Gauge;
import org.apache.flink.metrics.testutils.MetricListener;
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
      assertThat(savedBytes(metrics)).isZero();
      try (ArrowBatch batch =
          managed
              ? StepBatches.managed(
                  noLeaks.allocator(), layer, DTYPE, true, List.of(ManagedRow.of(row)))
              : StepBatches.of(noLeaks.allocator(), layer, DTYPE, List.of(row))) {
        attention.step(batch).close();
      }
      attention.save(1);
      assertThat(savedBytes(metrics)).isEqualTo(saved.bytesPut()).isPositive();
    }
  }

  private static long savedBytes(MetricListener metrics) {
    Gauge<Long> gauge =
        metrics
            .<Long>getGauge(PagedAttentionMetrics.GROUP, PagedAttentionMetrics.SAVED_BYTES)
            .orElseThrow();
    return gauge.getValue();
  }
}
