// SPDX-License-Identifier: Apache-2.0
package io.broadhead.cluster;

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
import io.broadhead.attention.testing.ManagedRow;
import io.broadhead.attention.testing.ReferenceAttention;
import io.broadhead.attention.testing.Scenario;
import io.broadhead.attention.testing.StepBatches;
import io.broadhead.attention.testing.StepRow;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Random;
import org.apache.arrow.memory.BufferAllocator;

/**
 * A producer that decodes as a serving system does: a number of sequences at a time, whose prompts
 * are of many lengths, and each that ends is followed by another. Block tables are managed. Knows
 * from the float64 reference what has to come out.
 */
final class DecodingWorkload {
  private static final DType DTYPE = DType.FLOAT32;
  private static final int BATCH_ROWS = 40;
  private static final int MOST_TOKENS = 80;
  private static final double TOLERANCE = 1e-5;
  private static final String LAYERS =
      """
      layers:
        - {name: a, num_heads: 2, num_kv_heads: 1, head_size: 32}
        - {name: b, num_heads: 2, num_kv_heads: 1, head_size: 32}
        - {name: c, num_heads: 2, num_kv_heads: 1, head_size: 32}
      """;

  private final Job job = JobFile.parse(header(1 << 20) + LAYERS, "job.yaml");
  private final Path folder;
  private final Random random = new Random(7);
  private final Scenario scenario = new Scenario(job, DTYPE, 7);
  private final ReferenceAttention reference = new ReferenceAttention(job, DTYPE);
  private final List<Running> running = new ArrayList<>();
  private final Map<String, double[][]> expected = new HashMap<>();
  private int sequences;
  private int files;

  private static final class Running {
    final String id;
    int tokens;
    int left;

    Running(String id, int tokens, int left) {
      this.id = id;
      this.tokens = tokens;
      this.left = left;
    }
  }

  DecodingWorkload(Path folder, int atATime) throws IOException {
    this.folder = folder;
    Files.createDirectories(input());
    for (int i = 0; i < atATime; i++) {
      running.add(begin());
    }
  }

  private Running begin() {
    return new Running("sequence-" + sequences++, 0, 10 + random.nextInt(MOST_TOKENS - 40));
  }

  private static String header(int numBlocks) {
    return "kv_cache: {num_blocks: %d, dtype: float32}\n".formatted(numBlocks);
  }

  /** A job file with a pool of {@code numBlocks} for each subtask. */
  Path jobFile(int numBlocks) throws IOException {
    Path file = folder.resolve("job-" + numBlocks + ".yaml");
    return Files.writeString(file, header(numBlocks) + LAYERS);
  }

  Path input() {
    return folder.resolve("steps");
  }

  Path output() {
    return folder.resolve("results");
  }

  int sequences() {
    return sequences;
  }

  /** Blocks that the sequences of now have in the cache. */
  int blocks() {
    return running.stream().mapToInt(s -> (s.tokens + 15) / 16).sum();
  }

  /** One step more of every sequence in every layer: files of the watched folder. */
  void step() throws IOException {
    for (int first = 0; first < running.size(); first += BATCH_ROWS) {
      write(running.subList(first, Math.min(first + BATCH_ROWS, running.size())));
    }
    for (int i = 0; i < running.size(); i++) {
      Running sequence = running.get(i);
      sequence.tokens += sequence.tokens == 0 ? prompt(sequence) : 1;
      if (--sequence.left == 0) {
        running.set(i, begin());
      }
    }
  }

  private void write(List<Running> batchOf) throws IOException {
    Path file = folder.resolve("next.arrow");
    try (BufferAllocator allocator = Allocators.root();
        ArrowBatchFileWriter writer =
            ArrowBatchFileWriter.create(file, Compression.NONE, allocator)) {
      for (LayerSpec layer : job.layers()) {
        List<ManagedRow> rows = new ArrayList<>();
        for (Running sequence : batchOf) {
          rows.add(row(sequence, layer));
        }
        try (ArrowBatch batch = StepBatches.managed(allocator, layer, DTYPE, true, rows)) {
          writer.write(batch);
        }
      }
      writer.finish();
    }
    Files.move(file, input().resolve("step-%06d.arrow".formatted(files++)));
  }

  private static int prompt(Running sequence) {
    return 1 + Math.floorMod(sequence.id.hashCode(), 40);
  }

  private ManagedRow row(Running sequence, LayerSpec layer) {
    StepRow row = scenario.next(sequence.id, layer, sequence.tokens == 0 ? prompt(sequence) : 1);
    expected.put(
        layer.name() + " for " + row.sequenceId() + " at " + row.seqLen(),
        reference.step(layer, List.of(row)).output()[0]);
    ManagedRow managed = ManagedRow.of(row);
    return sequence.left == 1 ? managed.last() : managed;
  }

  int expectedRows() {
    return expected.size();
  }

  /** Rows that are committed by now. */
  int committedRows() {
    return read().size();
  }

  /** Everything came once, and is right. */
  void assertResults() {
    Map<String, double[][]> results = read();
    assertThat(results.keySet()).isEqualTo(expected.keySet());
    expected.forEach(
        (key, output) ->
            assertThat(
                    StepBatches.error(
                        new double[][][] {output}, new double[][][] {results.get(key)}))
                .as(key)
                .isLessThan(TOLERANCE));
  }

  private Map<String, double[][]> read() {
    Map<String, double[][]> results = new HashMap<>();
    if (!Files.exists(output())) {
      return results;
    }
    try (BufferAllocator allocator = Allocators.root();
        StepInput files = StepInput.open(output(), allocator)) {
      for (ArrowBatch batch = files.next(); batch != null; batch = files.next()) {
        try (ArrowBatch result = batch) {
          double[][][] output = StepBatches.read(result, "output");
          for (int row = 0; row < output.length; row++) {
            String key =
                result.column("layer").getString(row)
                    + " "
                    + result.column(StepBatches.PASSED).getString(row);
            assertThat(results.put(key, output[row])).as("%s came twice", key).isNull();
          }
        }
      }
      return results;
    } catch (IOException e) {
      throw new IllegalStateException(e);
    }
  }
}
