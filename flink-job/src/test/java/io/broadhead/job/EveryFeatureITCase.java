// SPDX-License-Identifier: Apache-2.0
package io.broadhead.job;

import static org.assertj.core.api.Assertions.assertThat;

import io.broadhead.arrow.Allocators;
import io.broadhead.arrow.ArrowBatch;
import io.broadhead.arrow.ArrowBatchFileWriter;
import io.broadhead.arrow.Compression;
import io.broadhead.arrow.DType;
import io.broadhead.arrow.StepInput;
import io.broadhead.attention.job.AttnType;
import io.broadhead.attention.job.Job;
import io.broadhead.attention.job.JobFile;
import io.broadhead.attention.job.LayerSpec;
import io.broadhead.attention.testing.NoLeaks;
import io.broadhead.attention.testing.ReferenceAttention;
import io.broadhead.attention.testing.Scenario;
import io.broadhead.attention.testing.StepBatches;
import io.broadhead.attention.testing.StepRow;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import org.apache.arrow.memory.BufferAllocator;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.extension.ExtendWith;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.EnumSource;
import org.junit.jupiter.params.provider.ValueSource;

/** Every feature of a layer, from a job file through the commands to result files. */
@ExtendWith(NoLeaks.class)
class EveryFeatureITCase {
  /** A layer for each feature. */
  private static final String JOB =
      """
      kv_cache: {block_size: 48, num_blocks: 32}
      layers:
        - {name: plain, SHAPE}
        - {name: shared, SHAPE, kv_sharing_target_layer_name: plain}
        - {name: scale, SHAPE, scale: 0.3}
        - {name: window, SHAPE, sliding_window: 9}
        - {name: window-of-one, SHAPE, sliding_window: 1}
        - {name: soft-cap, SHAPE, logits_soft_cap: 2.0}
        - {name: alibi, SHAPE, alibi_slopes: [0.5, -0.25, 1, -1]}
        - {name: sinks, SHAPE, sinks: [0.5, -2, 3, 0]}
        - {name: all-scores, SHAPE, sliding_window: 9, logits_soft_cap: 2.0,
           alibi_slopes: [0.5, -0.25, 1, -1], sinks: [0.5, -2, 3, 0], return_lse: true}
        - {name: fp8-e4m3, SHAPE, kv_cache_dtype: fp8, k_scale: 0.5, v_scale: 2}
        - {name: fp8-e5m2, SHAPE, kv_cache_dtype: fp8_e5m2, k_scale: 0.7}
        - {name: float32-cache, SHAPE, kv_cache_dtype: float32}
        - {name: bfloat16-cache, SHAPE, kv_cache_dtype: bfloat16}
        - {name: output-scale, SHAPE, output_scale: 0.02}
        - {name: lse, SHAPE, return_lse: true}
        - {name: neox, SHAPE, rope: {rotary_dim: 64, max_position: 128}}
        - {name: gptj-part, SHAPE, rope: {rotary_dim: 20, max_position: 128, is_neox: false}}
        - {name: linear, SHAPE, rope: {rotary_dim: 64, max_position: 128,
           rope_scaling: {rope_type: linear, factor: 4}}}
        - {name: dynamic, SHAPE, rope: {rotary_dim: 64, max_position: 128,
           rope_scaling: {rope_type: dynamic, factor: 2, original_max_position_embeddings: 32}}}
        - {name: llama3, SHAPE, rope: {rotary_dim: 64, max_position: 128, base: 500000,
           rope_scaling: {rope_type: llama3, factor: 8, low_freq_factor: 1, high_freq_factor: 4,
           original_max_position_embeddings: 32}}}
        - {name: yarn, SHAPE, rope: {rotary_dim: 64, max_position: 128,
           rope_scaling: {rope_type: yarn, factor: 4, original_max_position_embeddings: 32}}}
        - {name: encoder, SHAPE, attn_type: encoder, return_lse: true}
        - {name: encoder-features, SHAPE, attn_type: encoder_only, sliding_window: 3,
           logits_soft_cap: 2.0, alibi_slopes: [0.5, -0.25, 1, -1], sinks: [0.5, -2, 3, 0],
           rope: {rotary_dim: 64, max_position: 128}}
        - {name: encoder-output-scale, SHAPE, attn_type: encoder_only, output_scale: 0.02}
        - {name: cross, SHAPE, attn_type: encoder_decoder, return_lse: true}
        - {name: cross-features, SHAPE, attn_type: encoder_decoder, kv_cache_dtype: fp8,
           alibi_slopes: [0.5, -0.25, 1, -1], sinks: [0.5, -2, 3, 0], logits_soft_cap: 2.0}
        - {name: update-then-attend, SHAPE}
        - {name: padding, SHAPE, return_lse: true}
      """
          .replace("SHAPE", "num_heads: 4, num_kv_heads: 2, head_size: 64");

  /** New tokens of four sequences, step by step. */
  private static final int[][] TOKENS = {{17, 1, 33, 5}, {1, 40, 0, 1}, {1, 1, 7, 1}};

  private record Key(String layer, String sequence) {}

  private record Expected(double[][] output, double[][] lse) {}

  @TempDir Path temp;
  private Path jobFile;
  private Path steps;
  private Job job;
  private Scenario scenario;
  private ReferenceAttention reference;
  private DType dtype;
  private int files;
  private final Map<Key, List<Expected>> expected = new LinkedHashMap<>();

  @BeforeEach
  void readJob() throws Exception {
    jobFile = Files.writeString(temp.resolve("job.yaml"), JOB);
    steps = Files.createDirectory(temp.resolve("steps"));
    job = JobFile.load(jobFile);
  }

  @ParameterizedTest
  @EnumSource(names = {"FLOAT32", "FLOAT16", "BFLOAT16"})
  void attend(DType type) throws Exception {
    write(type);
    Path output = temp.resolve("results");

    Cli cli = Cli.attend(jobFile, steps, output);

    assertThat(cli).isEqualTo(new Cli(0, "", ""));
    assertResults(output);
  }

  @ParameterizedTest
  @ValueSource(ints = {1, 2})
  void run(int parallelism) throws Exception {
    write(DType.FLOAT16);
    Path output = temp.resolve("results");

    Cli cli = Cli.run(jobFile, steps, output, "--parallelism", parallelism);

    assertThat(cli.code()).as(cli.err()).isZero();
    assertResults(output);
  }

  private void write(DType type) throws Exception {
    dtype = type;
    scenario = new Scenario(job, type, 29);
    reference = new ReferenceAttention(job, type);
    for (LayerSpec layer : job.layers()) {
      switch (layer.name()) {
        case "update-then-attend" -> writeUpdateThenAttend(layer);
        case "padding" -> writePadding(layer);
        default -> writeSteps(layer);
      }
    }
  }

  private void writeSteps(LayerSpec layer) throws Exception {
    boolean cross = layer.attnType() == AttnType.ENCODER_DECODER;
    for (int step = 0; step < TOKENS.length; step++) {
      List<StepRow> rows = new ArrayList<>();
      for (int s = 0; s < TOKENS[step].length; s++) {
        int tokens = TOKENS[step][s];
        int keys = cross ? (step == 0 ? 11 + 13 * s : 0) : tokens;
        rows.add(scenario.next("sequence " + s, layer, tokens, keys));
      }
      write(layer, rows);
    }
  }

  /** Prompts without a query column first, then queries without key, value and slots. */
  private void writeUpdateThenAttend(LayerSpec layer) throws Exception {
    List<StepRow> update =
        List.of(scenario.next("s", layer, 0, 50), scenario.next("t", layer, 0, 3));
    write(
        layer,
        update,
        "sequence_id",
        "layer",
        "key",
        "value",
        "seq_len",
        "slot_mapping",
        "block_table");
    List<StepRow> attend =
        List.of(scenario.next("s", layer, 4, 0), scenario.next("t", layer, 1, 0));
    write(layer, attend, "sequence_id", "layer", "query", "seq_len", "block_table");
  }

  /** Tokens with a negative slot, a row without length, and a row without queries. */
  private void writePadding(LayerSpec layer) throws Exception {
    StepRow first = scenario.next("s", layer, 7);
    write(layer, List.of(first, scenario.next("t", layer, 0, 20)));
    StepRow skipped = scenario.next("s", layer, 2).withSlots(-1, -1).withSeqLen(7);
    StepRow empty = scenario.next("u", layer, 1).withSlots(-1).withSeqLen(0).withBlocks();
    write(layer, List.of(skipped, empty, scenario.next("t", layer, 1)));
    Expected zeros = expected.get(new Key("padding", "u")).get(0);
    assertThat(zeros.output()[0]).containsOnly(0);
    assertThat(zeros.lse()[0]).containsOnly(Double.NEGATIVE_INFINITY);
  }

  private void write(LayerSpec layer, List<StepRow> rows, String... columns) throws Exception {
    ReferenceAttention.Result result = reference.step(layer, rows);
    for (int row = 0; row < rows.size(); row++) {
      expected
          .computeIfAbsent(
              new Key(layer.name(), (String) rows.get(row).sequenceId()), k -> new ArrayList<>())
          .add(new Expected(result.output()[row], result.lse()[row]));
    }
    Path file = steps.resolve(String.format("step-%04d.arrow", files++));
    try (BufferAllocator allocator = Allocators.root();
        ArrowBatch whole = StepBatches.of(allocator, layer, dtype, rows);
        ArrowBatch batch =
            columns.length == 0 ? whole.retain() : StepBatches.select(whole, columns);
        ArrowBatchFileWriter writer =
            ArrowBatchFileWriter.create(file, Compression.NONE, allocator)) {
      writer.write(batch);
      writer.finish();
    }
  }

  private void assertResults(Path output) throws Exception {
    Map<Key, Integer> seen = new LinkedHashMap<>();
    try (BufferAllocator allocator = Allocators.root()) {
      for (Path file : Results.files(output)) {
        try (StepInput input = StepInput.open(file, allocator)) {
          for (ArrowBatch batch = input.next(); batch != null; batch = input.next()) {
            try (ArrowBatch open = batch) {
              assertBatch(open, seen);
            }
          }
        }
      }
    }
    expected.forEach((key, rows) -> assertThat(seen).containsEntry(key, rows.size()));
    assertThat(seen).hasSameSizeAs(expected);
  }

  private void assertBatch(ArrowBatch batch, Map<Key, Integer> seen) {
    double[][][] output = StepBatches.read(batch, "output");
    for (int row = 0; row < batch.numRows(); row++) {
      String name = batch.column("layer").getString(row);
      LayerSpec layer = job.layer(name).orElseThrow();
      Key key = new Key(name, batch.column("sequence_id").getString(row));
      int nth = seen.merge(key, 1, Integer::sum) - 1;
      Expected should = expected.get(key).get(nth);
      assertThat(error(should.output(), output[row]))
          .as("%s, its row %d", key, nth)
          .isLessThanOrEqualTo(
              StepBatches.tolerance(layer.outputScale() > 0 ? DType.FLOAT8_E4M3FN : dtype));
      assertThat(batch.schema().contains("lse")).isEqualTo(layer.returnLse());
      if (layer.returnLse()) {
        assertThat(error(should.lse(), StepBatches.read(batch, "lse")[row]))
            .as("lse of %s, its row %d", key, nth)
            .isLessThanOrEqualTo(StepBatches.LSE_TOLERANCE);
      }
    }
  }

  private static double error(double[][] expected, double[][] got) {
    return StepBatches.error(new double[][][] {expected}, new double[][][] {got});
  }
}
