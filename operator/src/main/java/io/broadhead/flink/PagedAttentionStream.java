// SPDX-License-Identifier: Apache-2.0
package io.broadhead.flink;

import io.broadhead.arrow.ArrowBatch;
import io.broadhead.attention.Job;
import org.apache.flink.api.common.typeinfo.Types;
import org.apache.flink.configuration.ReadableConfig;
import org.apache.flink.core.memory.ManagedMemoryUseCase;
import org.apache.flink.runtime.state.KeyGroupRangeAssignment;
import org.apache.flink.streaming.api.datastream.DataStream;
import org.apache.flink.streaming.api.datastream.DataStreamUtils;
import org.apache.flink.streaming.api.datastream.KeyedStream;
import org.apache.flink.streaming.api.datastream.SingleOutputStreamOperator;

/** Puts paged attention into a Flink job graph. */
public final class PagedAttentionStream {
  /** Name and uid of the operator, unless it is given another. */
  public static final String OPERATOR = "paged-attention";

  /** Name and uid of the splitter; an operator with a name of its own puts that before it. */
  public static final String SPLITTER = "shard-splitter";

  private PagedAttentionStream() {}

  /**
   * Attends to a stream of step batches.
   *
   * <p>With one shard the operator has one subtask, and is chained to an upstream operator that has
   * one too: batches are passed by reference. With more, batches are split by shard where they are
   * and keyed by it, so that a sequence always meets the same subtask. Steps of a sequence keep
   * their order if the upstream operator has one subtask, or if each sequence comes from one.
   *
   * @param options {@link PagedAttentionOptions}
   * @param parallelism subtasks, at most the number of shards
   * @return the results; {@link PagedAttentionOperator#REFUSED_ROWS} is their side output
   * @throws IllegalArgumentException naming a key whose value is not accepted
   */
  public static SingleOutputStreamOperator<ArrowBatch> attend(
      DataStream<ArrowBatch> steps, Job job, ReadableConfig options, int parallelism) {
    return attend(steps, job, options, parallelism, OPERATOR);
  }

  /**
   * As above, for job graphs with more than one such operator.
   *
   * @param name name and uid of the operator, unique in the job graph
   */
  public static SingleOutputStreamOperator<ArrowBatch> attend(
      DataStream<ArrowBatch> steps, Job job, ReadableConfig options, int parallelism, String name) {
    int shards =
        options.getOptional(PagedAttentionOptions.SHARDS).isPresent()
            ? PagedAttentionOptions.atLeast(PagedAttentionOptions.SHARDS, options, 1)
            : parallelism;
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
    int maxParallelism =
        configured > 0
            ? configured
            : Math.max(
                KeyGroupRangeAssignment.computeDefaultMaxParallelism(parallelism),
                Integer.highestOneBit(2 * shards - 1));
    SingleOutputStreamOperator<ArrowBatch> results =
        byShard(steps, shards, maxParallelism, name)
            .transform(name, ArrowBatchTypeInfo.INSTANCE, factory)
            .setParallelism(shards == 1 ? 1 : parallelism)
            .setMaxParallelism(maxParallelism);
    results.uid(name);
    // Unknown with kv_cache_dtype auto, which the first batch settles: then nothing is declared.
    long cacheMebibytes = (job.cacheBytes().orElse(0) + (1 << 20) - 1) >> 20;
    if (cacheMebibytes > 0) {
      results
          .getTransformation()
          .declareManagedMemoryUseCaseAtOperatorScope(
              ManagedMemoryUseCase.OPERATOR, (int) Math.min(cacheMebibytes, Integer.MAX_VALUE));
    }
    return results;
  }

  private static KeyedStream<ArrowBatch, Integer> byShard(
      DataStream<ArrowBatch> steps, int shards, int maxParallelism, String name) {
    ShardKey key = new ShardKey(shards, maxParallelism);
    if (shards > 1) {
      String splitter = name.equals(OPERATOR) ? SPLITTER : name + "-" + SPLITTER;
      return steps
          .flatMap(new ShardSplitter(shards), ArrowBatchTypeInfo.INSTANCE)
          .name(splitter)
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
