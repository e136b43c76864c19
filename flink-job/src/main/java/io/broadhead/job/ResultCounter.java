// SPDX-License-Identifier: Apache-2.0
package io.broadhead.job;

import io.broadhead.arrow.ArrowBatch;
import io.broadhead.flink.PagedAttentionMetrics;
import org.apache.flink.api.common.functions.OpenContext;
import org.apache.flink.api.common.functions.RichFlatMapFunction;
import org.apache.flink.metrics.Counter;
import org.apache.flink.util.Collector;

/**
 * Passes results on and counts the different sequences, which no metric of the attention operator
 * does because an endless stream has no bound on them.
 */
final class ResultCounter extends RichFlatMapFunction<ArrowBatch, ArrowBatch> {
  private static final long serialVersionUID = 1L;

  /** Counter of different sequences, in the group of the operator's metrics. */
  static final String DISTINCT_SEQUENCES = "distinctSequences";

  private transient StepCounts counts;
  private transient Counter sequences;

  @Override
  public void open(OpenContext context) {
    counts = new StepCounts(true);
    sequences =
        getRuntimeContext()
            .getMetricGroup()
            .addGroup(PagedAttentionMetrics.GROUP)
            .counter(DISTINCT_SEQUENCES);
  }

  @Override
  public void flatMap(ArrowBatch result, Collector<ArrowBatch> out) {
    try (ArrowBatch taken = result.take()) {
      long before = counts.sequences();
      counts.add(taken);
      sequences.inc(counts.sequences() - before);
      out.collect(taken);
    }
  }
}
