// SPDX-License-Identifier: Apache-2.0
package io.broadhead.flink;

import io.broadhead.arrow.ArrowBatch;
import io.broadhead.arrow.BatchRows;
import java.util.Arrays;
import java.util.function.Consumer;
import java.util.stream.IntStream;
import org.apache.flink.configuration.CheckpointingOptions;
import org.apache.flink.runtime.jobgraph.IntermediateDataSetID;
import org.apache.flink.streaming.api.operators.AbstractStreamOperator;
import org.apache.flink.streaming.api.operators.OneInputStreamOperator;
import org.apache.flink.streaming.runtime.streamrecord.StreamRecord;

/**
 * Divides step batches among the subtasks of the operator that follows, keyed by the same {@link
 * ShardKey}: one batch for each of them that has any row, rows in their order. A batch whose rows
 * all go to one subtask goes on without a copy.
 *
 * <p>Where checkpoints are unaligned, batches are divided by shard: those on their way are part of
 * a checkpoint then, and Flink gives each of them to one subtask if the job is rescaled.
 */
final class ShardSplitter extends AbstractStreamOperator<ArrowBatch>
    implements OneInputStreamOperator<ArrowBatch, ArrowBatch> {
  private static final long serialVersionUID = 1;

  private final ShardKey key;
  private transient int[] partOfShard;

  ShardSplitter(ShardKey key) {
    this.key = key;
  }

  @Override
  public void open() throws Exception {
    super.open();
    boolean unaligned =
        CheckpointingOptions.isUnalignedCheckpointEnabled(
            getContainingTask().getJobConfiguration());
    int subtasks = subtasks();
    partOfShard =
        IntStream.range(0, key.shards())
            .map(shard -> unaligned ? shard : key.subtask(shard, subtasks))
            .toArray();
  }

  /** Subtasks of the operator that follows, which need not be as many as the job graph says. */
  private int subtasks() {
    IntermediateDataSetID output =
        getOperatorConfig()
            .getOperatorNonChainedOutputs(getUserCodeClassloader())
            .get(0)
            .getDataSetId();
    return Arrays.stream(getContainingTask().getEnvironment().getAllWriters())
        .filter(
            writer ->
                writer.getPartitionId().getPartitionId().getIntermediateDataSetID().equals(output))
        .findFirst()
        .orElseThrow()
        .getNumberOfSubpartitions();
  }

  @Override
  public void processElement(StreamRecord<ArrowBatch> element) {
    split(element.getValue(), key, partOfShard, part -> output.collect(element.copy(part)));
  }

  /** Hands the parts of {@code batch} to {@code out}, which closes none of them. */
  static void split(ArrowBatch batch, ShardKey key, int[] partOfShard, Consumer<ArrowBatch> out) {
    try (ArrowBatch taken = batch.take()) {
      split(taken, Arrays.stream(key.shards(taken)).map(s -> partOfShard[s]).toArray(), out);
    }
  }

  private static void split(ArrowBatch batch, int[] partOfRow, Consumer<ArrowBatch> out) {
    if (Arrays.stream(partOfRow).allMatch(part -> part == partOfRow[0])) {
      out.accept(batch);
      return;
    }
    int most = Arrays.stream(partOfRow).max().getAsInt();
    ArrowBatch[] parts = BatchRows.split(batch, partOfRow, most + 1, FlinkAllocator.root());
    try {
      for (ArrowBatch part : parts) {
        if (part != null) {
          out.accept(part);
        }
      }
    } finally {
      for (ArrowBatch part : parts) {
        if (part != null) {
          part.close();
        }
      }
    }
  }
}
