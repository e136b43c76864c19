// SPDX-License-Identifier: Apache-2.0
package io.broadhead.job;

import static org.assertj.core.api.Assertions.assertThat;

import io.broadhead.arrow.Compression;
import io.broadhead.attention.job.Job;
import io.broadhead.attention.job.KvCacheSpec;
import io.broadhead.attention.job.LayerSpec;
import io.broadhead.job.source.StepFileSource;
import java.time.Duration;
import java.util.List;
import org.apache.flink.configuration.CheckpointingOptions;
import org.apache.flink.configuration.Configuration;
import org.apache.flink.core.fs.Path;
import org.apache.flink.streaming.api.environment.StreamExecutionEnvironment;
import org.junit.jupiter.api.Test;

class AttentionPipelineTest {
  @Test
  void noCheckpointIsUnalignedFromItsStart() {
    assertThat(alignedFor(Duration.ZERO)).isEqualTo(Duration.ofMillis(1));
  }

  @Test
  void longerAlignmentStays() {
    assertThat(alignedFor(Duration.ofSeconds(30))).isEqualTo(Duration.ofSeconds(30));
  }

  private static Duration alignedFor(Duration timeout) {
    StreamExecutionEnvironment environment =
        StreamExecutionEnvironment.getExecutionEnvironment(
            new Configuration()
                .set(CheckpointingOptions.ENABLE_UNALIGNED, true)
                .set(CheckpointingOptions.ALIGNED_CHECKPOINT_TIMEOUT, timeout));
    Job job =
        new Job(new KvCacheSpec(16, 8, null), List.of(LayerSpec.builder("layer", 2, 32).build()));
    Path folder = new Path("file:///none");
    new AttentionPipeline(
            job, StepFileSource.bounded(folder), folder, folder, Compression.NONE, 1, false)
        .addTo(environment, new Configuration());
    return environment.getCheckpointConfig().getAlignedCheckpointTimeout();
  }
}
