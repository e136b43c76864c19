// SPDX-License-Identifier: Apache-2.0
package io.broadhead.job;

import io.broadhead.arrow.ArrowBatch;
import io.broadhead.arrow.Compression;
import io.broadhead.attention.RefusedRow;
import io.broadhead.attention.job.Job;
import io.broadhead.flink.ArrowBatchTypeInfo;
import io.broadhead.flink.PagedAttentionOperator;
import io.broadhead.flink.PagedAttentionStream;
import io.broadhead.job.sink.ResultFileSink;
import io.broadhead.job.sink.ResultLayout;
import io.broadhead.job.source.StepFileSource;
import java.time.Duration;
import org.apache.flink.api.common.eventtime.WatermarkStrategy;
import org.apache.flink.configuration.ReadableConfig;
import org.apache.flink.core.fs.Path;
import org.apache.flink.streaming.api.datastream.DataStream;
import org.apache.flink.streaming.api.datastream.SingleOutputStreamOperator;
import org.apache.flink.streaming.api.environment.CheckpointConfig;
import org.apache.flink.streaming.api.environment.StreamExecutionEnvironment;

/**
 * The job graph: step files, attention, result files, and a file sink for refused rows. The source
 * has one subtask, so that the steps of a sequence keep their order; with one shard all of it is
 * one chain and batches go by reference.
 *
 * @param refused folder for refused rows; made if there are any
 * @param countSequences whether the different sequences are counted, for a summary: all ids are
 *     kept until the job ends
 */
record AttentionPipeline(
    Job job,
    StepFileSource source,
    Path output,
    Path refused,
    Compression compression,
    int parallelism,
    boolean countSequences) {
  private static final String SOURCE = "step-files";
  private static final String COUNTER = "result-counter";
  private static final String RESULTS = "result-files";
  private static final String REFUSED = "refused-files";

  /**
   * Flink 2.3 lets a checkpoint that is unaligned from its start overtake a split that was just
   * handed to a reader, so that neither the enumerator nor the reader keeps it: its rows would be
   * lost after a failure. One that becomes unaligned waits for its turn in the source.
   */
  private static final Duration SHORTEST_ALIGNMENT = Duration.ofMillis(1);

  /** Adds the job to {@code env}; {@code options} are the {@code broadhead.*} ones. */
  void addTo(StreamExecutionEnvironment env, ReadableConfig options) {
    SingleOutputStreamOperator<ArrowBatch> results =
        PagedAttentionStream.of(read(env), job).options(options).parallelism(parallelism).attend();
    write(results, results.getSideOutput(PagedAttentionOperator.REFUSED_ROWS));
  }

  /** The batches of the step files. */
  DataStream<ArrowBatch> read(StreamExecutionEnvironment env) {
    CheckpointConfig checkpoints = env.getCheckpointConfig();
    if (checkpoints.getAlignedCheckpointTimeout().compareTo(SHORTEST_ALIGNMENT) < 0) {
      checkpoints.setAlignedCheckpointTimeout(SHORTEST_ALIGNMENT);
    }
    return env.fromSource(source, WatermarkStrategy.noWatermarks(), SOURCE)
        .setParallelism(1)
        .uid(SOURCE);
  }

  /** Files of results and of refused rows. */
  void write(DataStream<ArrowBatch> results, DataStream<RefusedRow> refusedRows) {
    DataStream<ArrowBatch> counted =
        countSequences
            ? results
                .flatMap(new ResultCounter())
                .returns(ArrowBatchTypeInfo.INSTANCE)
                .name(COUNTER)
                .uid(COUNTER)
                .setParallelism(parallelism)
            : results;
    counted
        .sinkTo(ResultFileSink.results(output, ResultLayout.of(job), compression))
        .name(RESULTS)
        .uid(RESULTS)
        .setParallelism(parallelism);
    refusedRows
        .sinkTo(ResultFileSink.refused(refused))
        .name(REFUSED)
        .uid(REFUSED)
        .setParallelism(parallelism);
  }
}
