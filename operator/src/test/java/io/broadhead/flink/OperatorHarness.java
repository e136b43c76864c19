// SPDX-License-Identifier: Apache-2.0
package io.broadhead.flink;

import io.broadhead.arrow.ArrowBatch;
import io.broadhead.attention.job.Job;
import io.broadhead.attention.job.JobFile;
import java.util.List;
import org.apache.flink.api.common.typeutils.base.IntSerializer;
import org.apache.flink.configuration.Configuration;
import org.apache.flink.runtime.operators.testutils.MockEnvironment;
import org.apache.flink.runtime.operators.testutils.MockEnvironmentBuilder;
import org.apache.flink.streaming.runtime.streamrecord.StreamRecord;
import org.apache.flink.streaming.runtime.tasks.mailbox.TaskMailbox;
import org.apache.flink.streaming.util.OneInputStreamOperatorTestHarness;

/** One subtask of the operator, without a cluster. Whoever extracts results closes them. */
final class OperatorHarness extends OneInputStreamOperatorTestHarness<ArrowBatch, ArrowBatch> {
  static final int MAX_PARALLELISM = 128;

  /** A job of one small layer. */
  static final Job JOB =
      JobFile.parse(
          """
          kv_cache: {num_blocks: 16, dtype: float32}
          layers: [{name: a, num_heads: 4, num_kv_heads: 2, head_size: 64}]
          """,
          "job.yaml");

  /**
   * @param shards that the batches are divided into
   */
  OperatorHarness(Job job, Configuration options, int shards, MockEnvironment environment)
      throws Exception {
    super(
        new PagedAttentionOperatorFactory(job, options, shards),
        new ArrowBatchSerializer(),
        environment);
    getStreamConfig().setStatePartitioner(0, new ShardKey(shards, MAX_PARALLELISM));
    getStreamConfig().setStateKeySerializer(IntSerializer.INSTANCE);
    getStreamConfig().serializeAllConfigs();
    setup(new RetainingSerializer());
  }

  OperatorHarness(Job job, Configuration options) throws Exception {
    this(job, options, 1, environment().build());
  }

  static MockEnvironmentBuilder environment() {
    return new MockEnvironmentBuilder().setMaxParallelism(MAX_PARALLELISM);
  }

  /** Runs mails until there is none and no step in flight. */
  void awaitResults() throws Exception {
    PagedAttentionOperator operator = (PagedAttentionOperator) getOneInputOperator();
    while (operator.isStepInFlight() || getTaskMailbox().hasMail()) {
      getTaskMailbox().take(TaskMailbox.MIN_PRIORITY).run();
    }
  }

  void closeResults() {
    extractOutputValues().forEach(ArrowBatch::close);
  }

  /** What was emitted: timestamps of results, and everything else as it is. */
  List<Object> emitted() {
    return getOutput().stream()
        .map(e -> e instanceof StreamRecord<?> result ? (Object) result.getTimestamp() : e)
        .toList();
  }
}
