// SPDX-License-Identifier: Apache-2.0
package io.broadhead.flink;

import io.broadhead.attention.PagedAttention;
import io.broadhead.kernel.ErrorCode;
import io.broadhead.kernel.StepStats;
import java.util.EnumMap;
import java.util.List;
import java.util.Map;
import org.apache.flink.metrics.Counter;
import org.apache.flink.metrics.Gauge;
import org.apache.flink.metrics.Histogram;
import org.apache.flink.metrics.MetricGroup;
import org.apache.flink.runtime.metrics.DescriptiveStatisticsHistogram;

/**
 * Metrics of one operator subtask, in the scope {@code <operator scope>.broadhead}. Updated by the
 * task's thread.
 */
public final class PagedAttentionMetrics {
  public static final String GROUP = "broadhead";

  public static final String STEPS = "steps";
  public static final String SEQUENCES = "sequences";
  public static final String QUERY_TOKENS = "queryTokens";
  public static final String WRITTEN_TOKENS = "writtenTokens";
  public static final String STEP_TIME_MICROS = "stepTimeMicros";
  public static final String BYTES_IN_PLACE = "bytesInPlace";
  public static final String BYTES_COPIED = "bytesCopied";
  public static final String REFUSED_ROWS = "refusedRows";
  public static final String CACHE_BYTES = "cacheBytes";

  /** Scope of {@link #REFUSED_ROWS}: one counter for each error code that occurs. */
  public static final String CODE_GROUP = "code";

  /**
   * One metric, for the reference page.
   *
   * @param type Flink's word: counter, gauge or histogram
   */
  public record Description(String name, String type, String text) {}

  /** Every metric. */
  public static final List<Description> ALL =
      List.of(
          new Description(STEPS, "counter", "step batches computed"),
          new Description(SEQUENCES, "counter", "rows computed: one is one sequence in one step"),
          new Description(QUERY_TOKENS, "counter", "query tokens attended"),
          new Description(
              WRITTEN_TOKENS, "counter", "tokens whose key and value went to the KV cache"),
          new Description(
              STEP_TIME_MICROS,
              "histogram",
              "microseconds of a step: checks, cache update and attention, without what follows"
                  + " downstream; over the last 512 steps"),
          new Description(
              BYTES_IN_PLACE, "counter", "tensor bytes that kernels used where Arrow has them"),
          new Description(
              BYTES_COPIED,
              "counter",
              "payload bytes copied on the way to the kernels: decompression, network edges, row"
                  + " splits, results moved together where rows were refused, and staging; 0 for"
                  + " uncompressed, memory-mapped, chained input"),
          new Description(
              CODE_GROUP + ".<error code>." + REFUSED_ROWS,
              "counter",
              "rows refused, by error code; a counter exists from the first such row on"),
          new Description(CACHE_BYTES, "gauge", "bytes of the KV caches reserved by now"));

  private static final int STEP_TIME_WINDOW = 512;

  private final MetricGroup group;
  private final Counter steps;
  private final Counter sequences;
  private final Counter queryTokens;
  private final Counter writtenTokens;
  private final Counter bytesInPlace;
  private final Counter bytesCopied;
  private final Histogram stepTimeMicros;
  private final Map<ErrorCode, Counter> refusedRows = new EnumMap<>(ErrorCode.class);

  PagedAttentionMetrics(MetricGroup operatorGroup, PagedAttention attention) {
    group = operatorGroup.addGroup(GROUP);
    steps = group.counter(STEPS);
    sequences = group.counter(SEQUENCES);
    queryTokens = group.counter(QUERY_TOKENS);
    writtenTokens = group.counter(WRITTEN_TOKENS);
    bytesInPlace = group.counter(BYTES_IN_PLACE);
    bytesCopied = group.counter(BYTES_COPIED);
    stepTimeMicros =
        group.histogram(STEP_TIME_MICROS, new DescriptiveStatisticsHistogram(STEP_TIME_WINDOW));
    group.gauge(CACHE_BYTES, (Gauge<Long>) attention::cacheBytes);
  }

  void step(long rows, StepStats stats, long copied, long nanos) {
    steps.inc();
    sequences.inc(rows);
    queryTokens.inc(stats.queryTokens());
    writtenTokens.inc(stats.writtenTokens());
    bytesInPlace.inc(stats.bytesInPlace());
    bytesCopied.inc(copied);
    stepTimeMicros.update(nanos / 1000);
  }

  void refused(ErrorCode code) {
    refusedRows
        .computeIfAbsent(code, c -> group.addGroup(CODE_GROUP, c.name()).counter(REFUSED_ROWS))
        .inc();
  }
}
