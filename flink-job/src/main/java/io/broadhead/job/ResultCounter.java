// SPDX-License-Identifier: Apache-2.0
package io.broadhead.job;

import io.broadhead.arrow.ArrowBatch;
import io.broadhead.flink.PagedAttentionMetrics;
import org.apache.flink.api.common.functions.OpenContext;
import org.apache.flink.api.common.functions.RichMapFunction;
import org.apache.flink.metrics.Counter;

/**
 * Passes results on and counts the different sequences, which no metric of the attention operator
 * does because an endless stream has no bound on them.
 */
final class ResultCounter extends RichMapFunction<ArrowBatch, ArrowBatch> {
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
  public ArrowBatch map(ArrowBatch result) {
    long before = counts.sequences();
    counts.add(result);
    sequences.inc(counts.sequences() - before);
    return result;
  }
}
