// SPDX-License-Identifier: Apache-2.0
package io.broadhead.attention;

import static org.assertj.core.api.Assertions.assertThat;

import io.broadhead.arrow.Allocators;
import io.broadhead.arrow.ArrowBatch;
import io.broadhead.arrow.ArrowBatchFileWriter;
import io.broadhead.arrow.Compression;
import io.broadhead.arrow.DType;
import io.broadhead.arrow.StepInput;
import io.broadhead.attention.job.Job;
import io.broadhead.attention.job.JobFile;
import io.broadhead.attention.job.LayerSpec;
import io.broadhead.attention.testing.NoLeaks;
import io.broadhead.attention.testing.Scenario;
import io.broadhead.attention.testing.StepBatches;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import org.apache.arrow.memory.BufferAllocator;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.extension.RegisterExtension;
import org.junit.jupiter.api.io.TempDir;

/** Runs the library example of the README, and keeps the two equal. */
class ReadmeExampleTest {
  @RegisterExtension private final NoLeaks noLeaks = new NoLeaks();

  /** What stands in the README stands between the two markers. */
  private static void example(Path jobFile, Path stepsFile) throws Exception {
    // example begins
    Job job = JobFile.load(jobFile);
    try (BufferAllocator allocator = Allocators.root();
        StepInput steps = StepInput.open(stepsFile, allocator);
        PagedAttention attention = PagedAttention.open(job, AttentionConfig.auto(), allocator)) {
      for (ArrowBatch batch = steps.next(); batch != null; batch = steps.next()) {
        try (ArrowBatch step = batch;
            ArrowBatch result = attention.step(step)) {
          System.out.println(result.column("output").child().length() + " tokens attended");
        }
      }
    }
    // example ends
  }

  @Test
  void runs(@TempDir Path folder) throws Exception {
    Path jobFile = folder.resolve("job.yaml");
    Files.writeString(
        jobFile,
        """
        kv_cache: {num_blocks: 8}
        layers: [{name: a, num_heads: 2, num_kv_heads: 1, head_size: 32}]
        """);
    Job job = JobFile.load(jobFile);
    LayerSpec layer = job.layers().get(0);
    Path steps = folder.resolve("steps.arrow");
    Scenario scenario = new Scenario(job, DType.FLOAT16, 1);
    try (ArrowBatch batch =
            StepBatches.of(
                noLeaks.allocator(), layer, DType.FLOAT16, List.of(scenario.next("s", layer, 4)));
        ArrowBatchFileWriter writer =
            ArrowBatchFileWriter.create(steps, Compression.NONE, noLeaks.allocator())) {
      writer.write(batch);
      writer.finish();
    }
    example(jobFile, steps);
  }

  @Test
  void isTheReadmeExample() throws Exception {
    String source =
        Files.readString(Path.of("src/test/java/io/broadhead/attention/ReadmeExampleTest.java"));
    String[] lines =
        source
            .substring(source.indexOf("// example begins\n"), source.indexOf("    // example ends"))
            .split("\n");
    StringBuilder example = new StringBuilder();
    for (int i = 1; i < lines.length; i++) {
      example.append(lines[i].substring(4)).append('\n');
    }
    assertThat(Path.of("..", "README.md")).content().contains(example);
  }
}
