// SPDX-License-Identifier: Apache-2.0
package io.broadhead.job.source;

import static org.assertj.core.api.Assertions.assertThat;

import io.broadhead.arrow.ArrowBatch;
import io.broadhead.attention.testing.NoLeaks;
import io.broadhead.job.Steps;
import java.nio.file.Path;
import java.time.Duration;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.atomic.AtomicBoolean;
import org.apache.flink.api.common.eventtime.WatermarkStrategy;
import org.apache.flink.api.common.functions.MapFunction;
import org.apache.flink.api.common.state.CheckpointListener;
import org.apache.flink.api.common.typeinfo.Types;
import org.apache.flink.configuration.CheckpointingOptions;
import org.apache.flink.configuration.Configuration;
import org.apache.flink.configuration.RestartStrategyOptions;
import org.apache.flink.streaming.api.environment.StreamExecutionEnvironment;
import org.apache.flink.util.CloseableIterator;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.extension.ExtendWith;
import org.junit.jupiter.api.io.TempDir;

@ExtendWith(NoLeaks.class)
class StepFileSourceITCase {
  @TempDir Path temp;

  @Test
  void afterAFailureEveryBatchComesOnceAndInOrder() throws Exception {
    Steps steps = Steps.generate(1, Steps.small(1).dtype, 16, 64, Steps.small(1).layers, 6, 40);
    Path folder = temp.resolve("steps");
    steps.writeFolder(folder);
    steps.writeFile(folder.resolve("a-big-file.arrow"));
    FailOnce.failed.set(false);
    Configuration configuration = new Configuration();
    configuration.set(RestartStrategyOptions.RESTART_STRATEGY, "fixed-delay");
    configuration.set(
        RestartStrategyOptions.RESTART_STRATEGY_FIXED_DELAY_DELAY, Duration.ofMillis(10));
    configuration.set(CheckpointingOptions.CHECKPOINTING_INTERVAL, Duration.ofMillis(20));
    StreamExecutionEnvironment env =
        StreamExecutionEnvironment.createLocalEnvironment(1, configuration);
    List<String> read = new ArrayList<>();
    try (CloseableIterator<String> batches =
        env.fromSource(
                StepFileSource.bounded(new org.apache.flink.core.fs.Path(folder.toUri()), 30_000),
                WatermarkStrategy.noWatermarks(),
                "steps")
            .setParallelism(1)
            .map(new FailOnce())
            .returns(Types.STRING)
            .executeAndCollect()) {
      batches.forEachRemaining(read::add);
    }

    List<String> once =
        steps.steps.stream()
            .map(step -> step.rows().size() + "/" + step.rows().get(0).seqLen)
            .toList();
    List<String> twice = new ArrayList<>(once);
    twice.addAll(once);
    assertThat(FailOnce.failed).isTrue();
    assertThat(read).containsExactlyElementsOf(twice);
  }

  /** Slows the job down, so that there are checkpoints, and fails behind the second of them. */
  private static final class FailOnce
      implements MapFunction<ArrowBatch, String>, CheckpointListener {
    private static final long serialVersionUID = 1L;
    static final AtomicBoolean failed = new AtomicBoolean();

    private int checkpoints;
    private int sinceCheckpoint;

    @Override
    public String map(ArrowBatch batch) throws Exception {
      Thread.sleep(5);
      sinceCheckpoint++;
      if (checkpoints >= 2 && sinceCheckpoint >= 2 && failed.compareAndSet(false, true)) {
        throw new IllegalStateException("on purpose");
      }
      return batch.numRows() + "/" + batch.column("seq_len").getInt(0);
    }

    @Override
    public void notifyCheckpointComplete(long id) {
      checkpoints++;
      sinceCheckpoint = 0;
    }
  }
}
