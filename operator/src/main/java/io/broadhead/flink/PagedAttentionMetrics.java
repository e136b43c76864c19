// SPDX-License-Identifier: Apache-2.0
package io.broadhead.flink;

import io.broadhead.arrow.ArrowBatch;
import io.broadhead.attention.PagedAttention;
import io.broadhead.attention.StepQueue;
import io.broadhead.attention.StepReport;
import io.broadhead.attention.cache.CacheCounters;
import io.broadhead.attention.cache.KvCacheManager;
import io.broadhead.kernel.ErrorCode;
import io.broadhead.kernel.StepStats;
import java.util.EnumMap;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.function.Function;
import java.util.function.Supplier;
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
  public static final String STEP_ROWS = "stepRows";
  public static final String STEP_TOKENS = "stepTokens";
  public static final String WAITING_TOKENS = "waitingTokens";
  public static final String BYTES_IN_PLACE = "bytesInPlace";
  public static final String BYTES_COPIED = "bytesCopied";
  public static final String BYTES_TRANSFERRED = "bytesTransferred";
  public static final String REFUSED_ROWS = "refusedRows";
  public static final String CACHE_BYTES = "cacheBytes";
  public static final String CACHE_USAGE = "cacheUsage";
  public static final String SEQUENCES_IN_CACHE = "sequencesInCache";
  public static final String HIT_TOKENS = "hitTokens";
  public static final String BLOCKS_COPIED = "blocksCopied";
  public static final String BLOCKS_EVICTED = "blocksEvicted";
  public static final String BLOCKS_SWAPPED_OUT = "blocksSwappedOut";
  public static final String BLOCKS_SWAPPED_IN = "blocksSwappedIn";
  public static final String SAVED_BYTES = "savedBytes";

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
          new Description(STEPS, "counter", "steps computed, each with one native call"),
          new Description(SEQUENCES, "counter", "rows computed; a row is one sequence in one step"),
          new Description(QUERY_TOKENS, "counter", "query tokens computed"),
          new Description(
              WRITTEN_TOKENS, "counter", "tokens whose key and value were written to the KV cache"),
          new Description(
              STEP_TIME_MICROS,
              "histogram",
              "duration of a step in microseconds: checks, block tables, cache update and"
                  + " attention; on a GPU only the time of the task's thread; over the last 512"
                  + " steps"),
          new Description(STEP_ROWS, "histogram", "rows per step, over the last 512 steps"),
          new Description(
              STEP_TOKENS, "histogram", "query tokens per step, over the last 512 steps"),
          new Description(
              WAITING_TOKENS,
              "gauge",
              "new tokens waiting to be joined to a step, or for their turn"),
          new Description(
              BYTES_IN_PLACE,
              "counter",
              "tensor bytes that kernels used in place, in Arrow buffers"),
          new Description(
              BYTES_COPIED,
              "counter",
              "payload bytes copied: decompression, network edges, row splits, staging, and"
                  + " results compacted after rows were refused; 0 on CPUs for uncompressed,"
                  + " memory-mapped, chained input"),
          new Description(
              BYTES_TRANSFERRED,
              "counter",
              "result bytes that GPU kernels wrote to device memory and that were then"
                  + " transferred whole; 0 on CPUs"),
          new Description(
              CODE_GROUP + ".<error code>." + REFUSED_ROWS,
              "counter",
              "rows refused, by error code; each counter is created with its first row"),
          new Description(CACHE_BYTES, "gauge", "bytes reserved for the KV caches so far"),
          new Description(
              CACHE_USAGE,
              "gauge",
              "fraction of the pool's blocks that sequences use, 0 to 1; managed block"
                  + " tables only"),
          new Description(
              SEQUENCES_IN_CACHE,
              "gauge",
              "sequences that have begun and not ended, including swapped ones; managed"
                  + " block tables only"),
          new Description(
              HIT_TOKENS,
              "gauge",
              "total of new tokens that were not written because a shared block already"
                  + " held them"),
          new Description(
              BLOCKS_COPIED, "gauge", "total of blocks that a fork copied before writing to them"),
          new Description(
              BLOCKS_EVICTED,
              "gauge",
              "total of blocks of ended sequences that had been kept for reuse and made" + " room"),
          new Description(
              BLOCKS_SWAPPED_OUT, "gauge", "total of blocks of living sequences that made room"),
          new Description(
              BLOCKS_SWAPPED_IN, "gauge", "total of swapped blocks that were brought back"),
          new Description(
              SAVED_BYTES,
              "gauge",
              "total bytes of keys and values written from the pool to state"));

  private static final int WINDOW = 512;

  private final MetricGroup group;
  private final Counter steps;
  private final Counter sequences;
  private final Counter queryTokens;
  private final Counter writtenTokens;
  private final Counter bytesInPlace;
  private final Counter bytesCopied;
  private final Counter bytesTransferred;
  private final Histogram stepTimeMicros;
  private final Histogram stepRows;
  private final Histogram stepTokens;
  private final Map<ErrorCode, Counter> refusedRows = new EnumMap<>(ErrorCode.class);

  PagedAttentionMetrics(MetricGroup operatorGroup, PagedAttention attention, StepQueue queue) {
    group = operatorGroup.addGroup(GROUP);
    steps = group.counter(STEPS);
    sequences = group.counter(SEQUENCES);
    queryTokens = group.counter(QUERY_TOKENS);
    writtenTokens = group.counter(WRITTEN_TOKENS);
    bytesInPlace = group.counter(BYTES_IN_PLACE);
    bytesCopied = group.counter(BYTES_COPIED);
    bytesTransferred = group.counter(BYTES_TRANSFERRED);
    stepTimeMicros = histogram(STEP_TIME_MICROS);
    stepRows = histogram(STEP_ROWS);
    stepTokens = histogram(STEP_TOKENS);
    group.gauge(WAITING_TOKENS, (Gauge<Long>) queue::tokens);
    group.gauge(CACHE_BYTES, (Gauge<Long>) attention::cacheBytes);
    group.gauge(CACHE_USAGE, (Gauge<Double>) () -> usage(attention));
    gauge(SEQUENCES_IN_CACHE, () -> attention.blockTables().map(KvCacheManager::sequences));
    counter(HIT_TOKENS, attention, CacheCounters::tokensHit);
    counter(BLOCKS_COPIED, attention, CacheCounters::blocksCopied);
    counter(BLOCKS_EVICTED, attention, CacheCounters::blocksEvicted);
    counter(BLOCKS_SWAPPED_OUT, attention, CacheCounters::blocksSwappedOut);
    counter(BLOCKS_SWAPPED_IN, attention, CacheCounters::blocksSwappedIn);
    counter(SAVED_BYTES, attention, CacheCounters::bytesSaved);
  }

  private Histogram histogram(String name) {
    return group.histogram(name, new DescriptiveStatisticsHistogram(WINDOW));
  }

  private void gauge(String name, Supplier<Optional<Long>> value) {
    group.gauge(name, (Gauge<Long>) () -> value.get().orElse(0L));
  }

  private void counter(String name, PagedAttention attention, Function<CacheCounters, Long> value) {
    gauge(name, () -> attention.cacheCounters().map(value));
  }

  private static double usage(PagedAttention attention) {
    return attention
        .blockTables()
        .map(tables -> 1 - (double) tables.free() / tables.capacity())
        .orElse(0.0);
  }

  /** A step was computed. */
  void step(StepReport report) {
    StepStats stats = report.stats();
    steps.inc();
    queryTokens.inc(stats.queryTokens());
    writtenTokens.inc(stats.writtenTokens());
    bytesInPlace.inc(stats.bytesInPlace());
    bytesCopied.inc(stats.bytesStaged());
    bytesTransferred.inc(stats.bytesTransferred());
    stepTimeMicros.update(report.nanos() / 1000);
    stepRows.update(report.rows());
    stepTokens.update(stats.queryTokens());
  }

  /** Payload bytes were copied before a batch came here. */
  void copied(long bytes) {
    bytesCopied.inc(bytes);
  }

  /** A batch was computed. */
  void done(ArrowBatch result) {
    sequences.inc(result.numRows());
    bytesCopied.inc(result.bytesCopied());
  }

  void refused(ErrorCode code) {
    refusedRows
        .computeIfAbsent(code, c -> group.addGroup(CODE_GROUP, c.name()).counter(REFUSED_ROWS))
        .inc();
  }
}
