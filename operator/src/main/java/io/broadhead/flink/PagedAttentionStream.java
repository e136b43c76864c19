// SPDX-License-Identifier: Apache-2.0
package io.broadhead.flink;

import io.broadhead.arrow.ArrowBatch;
import io.broadhead.attention.job.Job;
import java.util.Set;
import org.apache.flink.api.common.typeinfo.Types;
import org.apache.flink.configuration.Configuration;
import org.apache.flink.configuration.ReadableConfig;
import org.apache.flink.core.memory.ManagedMemoryUseCase;
import org.apache.flink.runtime.state.KeyGroupRangeAssignment;
import org.apache.flink.streaming.api.datastream.DataStream;
import org.apache.flink.streaming.api.datastream.DataStreamUtils;
import org.apache.flink.streaming.api.datastream.KeyedStream;
import org.apache.flink.streaming.api.datastream.SingleOutputStreamOperator;

/**
 * Puts paged attention into a Flink job graph:
 *
 * <pre>{@code
 * SingleOutputStreamOperator<ArrowBatch> results =
 *     PagedAttentionStream.of(steps, job).options(configuration).parallelism(4).attend();
 * DataStream<RefusedRow> refused = results.getSideOutput(PagedAttentionOperator.REFUSED_ROWS);
 * }</pre>
 *
 * <p>With one shard the operator has one subtask, and is chained to an upstream operator that has
 * one too: batches are passed by reference. With more, batches are divided among the subtasks where
 * they are and keyed by shard, so that a sequence always meets its cache. Steps of a sequence keep
 * their order if the upstream operator has one subtask, or if each sequence comes from one.
 *
 * <p>Used once, by the thread that builds the job graph.
 */
public final class PagedAttentionStream {
  /** Name and uid of the operator, unless it is given another. */
  public static final String OPERATOR = "paged-attention";

  /** Name and uid of the splitter; an operator with a name of its own puts that before it. */
  public static final String SPLITTER = "shard-splitter";

  private final DataStream<ArrowBatch> steps;
  private final Job job;
  private ReadableConfig options = new Configuration();
  private int parallelism = 1;
  private String name = OPERATOR;

  private PagedAttentionStream(DataStream<ArrowBatch> steps, Job job) {
    this.steps = steps;
    this.job = job;
  }

  /** Attention of {@code job}'s layers over a stream of step batches. */
  public static PagedAttentionStream of(DataStream<ArrowBatch> steps, Job job) {
    return new PagedAttentionStream(steps, job);
  }

  /**
   * @param value {@link PagedAttentionOptions}; the defaults if this is not called
   */
  public PagedAttentionStream options(ReadableConfig value) {
    options = value;
    return this;
  }

  /**
   * @param value subtasks, at most the number of shards; 1 if this is not called
   */
  public PagedAttentionStream parallelism(int value) {
    parallelism = value;
    return this;
  }

  /**
   * @param value name and uid of the operator, unique in the job graph; {@link #OPERATOR} if this
   *     is not called
   */
  public PagedAttentionStream name(String value) {
    name = value;
    return this;
  }

  /**
   * Adds the operator to the job graph.
   *
   * @return the results; {@link PagedAttentionOperator#REFUSED_ROWS} is their side output
   * @throws IllegalArgumentException naming a key whose value is not accepted
   */
  public SingleOutputStreamOperator<ArrowBatch> attend() {
    int shards =
        options.getOptional(PagedAttentionOptions.SHARDS).isPresent()
            ? PagedAttentionOptions.atLeast(PagedAttentionOptions.SHARDS, options, 1)
            : parallelism;
    if (shards > KeyGroupRangeAssignment.UPPER_BOUND_MAX_PARALLELISM) {
      throw new IllegalArgumentException(
          PagedAttentionOptions.SHARDS.key()
              + ": expected at most Flink's maximum parallelism "
              + KeyGroupRangeAssignment.UPPER_BOUND_MAX_PARALLELISM
              + ", got "
              + shards);
    }
    if (parallelism > shards) {
      throw new IllegalArgumentException(
          PagedAttentionOptions.SHARDS.key()
              + ": expected at least the parallelism "
              + parallelism
              + ", got "
              + shards);
    }
    PagedAttentionOperatorFactory factory = new PagedAttentionOperatorFactory(job, options, shards);
    int configured = steps.getExecutionEnvironment().getMaxParallelism();
    // By the shards, which a savepoint is bound to as well, not by the parallelism, which may
    // change.
    int maxParallelism =
        configured > 0 ? configured : KeyGroupRangeAssignment.computeDefaultMaxParallelism(shards);
    SingleOutputStreamOperator<ArrowBatch> results =
        byShard(shards, maxParallelism)
            .transform(name, ArrowBatchTypeInfo.INSTANCE, factory)
            .setParallelism(shards == 1 ? 1 : parallelism)
            .setMaxParallelism(maxParallelism);
    results.uid(name);
    // Unknown with kv_cache_dtype auto, which the first batch settles: then nothing is declared.
    long cacheBytes = onMachinesMemory(options) ? job.cacheBytes().orElse(0) : 0;
    long cacheMebibytes = (cacheBytes + (1 << 20) - 1) >> 20;
    if (cacheMebibytes > 0) {
      results
          .getTransformation()
          .declareManagedMemoryUseCaseAtOperatorScope(
              ManagedMemoryUseCase.OPERATOR, (int) Math.min(cacheMebibytes, Integer.MAX_VALUE));
    }
    return results;
  }

  /** Caches on a GPU are none of the TaskManager's memory. */
  private static boolean onMachinesMemory(ReadableConfig options) {
    return Set.of("auto", "cpu").contains(options.get(PagedAttentionOptions.BACKEND));
  }

  private KeyedStream<ArrowBatch, Integer> byShard(int shards, int maxParallelism) {
    ShardKey key = new ShardKey(shards, maxParallelism);
    if (shards > 1) {
      String splitter = name.equals(OPERATOR) ? SPLITTER : name + "-" + SPLITTER;
      return steps
          .transform(splitter, ArrowBatchTypeInfo.INSTANCE, new ShardSplitter(key))
          .uid(splitter)
          .setParallelism(steps.getParallelism())
          .keyBy(key, Types.INT);
    }
    // One subtask has all keys, so that nothing has to be sent anywhere.
    return steps.getParallelism() == 1
        ? DataStreamUtils.reinterpretAsKeyedStream(steps, key, Types.INT)
        : steps.keyBy(key, Types.INT);
  }
}
