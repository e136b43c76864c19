// SPDX-License-Identifier: Apache-2.0
package io.broadhead.job;

import io.broadhead.arrow.Allocators;
import io.broadhead.arrow.ArrowBatch;
import io.broadhead.arrow.ArrowBatchFileWriter;
import io.broadhead.arrow.BatchSchema;
import io.broadhead.arrow.Compression;
import io.broadhead.arrow.DType;
import io.broadhead.attention.job.Job;
import io.broadhead.attention.job.JobFile;
import io.broadhead.attention.job.LayerSpec;
import io.broadhead.attention.testing.ManagedRow;
import io.broadhead.attention.testing.Scenario;
import io.broadhead.attention.testing.StepBatches;
import io.broadhead.attention.testing.StepRow;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayDeque;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collections;
import java.util.Deque;
import java.util.HashMap;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Map;
import java.util.Random;
import java.util.Set;
import org.apache.arrow.memory.BufferAllocator;

/**
 * Random steps of two layers, the second of which a seed draws. Sequences begin and go on; with
 * managed block tables they are forked and end, too, another one may get the id of one that has
 * ended, and prompts may begin alike. Some rows are wrong.
 */
final class SoakSteps {
  static final DType DTYPE = DType.FLOAT16;

  private static final int BLOCK_SIZE = 16;
  private static final int MOST_SEQUENCES = 8;

  /** Of the scheduler in small, which never takes a block back. */
  private static final int BLOCKS = 1024;

  /** So far from its end no chunk of a sequence begins. */
  private static final int FAR = 1000;

  private static final int WORDS = 40;

  private static final List<String> SECOND_LAYERS =
      List.of(
          "num_heads: 2, num_kv_heads: 1, head_size: 32",
          "num_heads: 2, num_kv_heads: 1, head_size: 32, sliding_window: 20",
          "num_heads: 4, num_kv_heads: 2, head_size: 64, kv_cache_dtype: float32",
          "num_heads: 2, num_kv_heads: 1, head_size: 32, kv_cache_dtype: fp8, k_scale: 0.5",
          "num_heads: 2, num_kv_heads: 1, head_size: 32, kv_sharing_target_layer_name: a");

  private final boolean managed;
  private final Random random;
  private final String secondLayer;
  private final Job job;
  private final Scenario scenario;

  /** Of each layer, a row whose tokens have the keys and values of the ids 0, 1, ...; or none. */
  private final Map<String, StepRow> vocabulary = new HashMap<>();

  private final List<Step> steps = new ArrayList<>();
  private final List<Sequence> running = new ArrayList<>();
  private final Deque<Sequence> ended = new ArrayDeque<>();
  private int begun;
  private int mostBlocks;
  private int longest;

  /** One batch. */
  private record Step(LayerSpec layer, List<ManagedRow> rows) {}

  private static final class Sequence {
    final String name;
    final String id;

    /** The same for all that are forked from one another or have one id. */
    final String group;

    final Sequence parent;

    /** Of its tokens. */
    final List<Integer> ids = new ArrayList<>();

    /** In the cache, in all layers. */
    int tokens;

    boolean isNew = true;

    Sequence(String name, String id, String group, Sequence parent) {
      this.name = name;
      this.id = id;
      this.group = group;
      this.parent = parent;
      this.tokens = parent == null ? 0 : parent.tokens;
      if (parent != null) {
        ids.addAll(parent.ids);
      }
    }
  }

  SoakSteps(long seed, boolean managed, int batches) {
    this.managed = managed;
    this.random = new Random(seed);
    this.secondLayer = SECOND_LAYERS.get(random.nextInt(SECOND_LAYERS.size()));
    this.job = job(BLOCKS);
    this.scenario = new Scenario(job, DTYPE, seed);
    if (managed && random.nextBoolean()) {
      for (LayerSpec layer : job.layers()) {
        vocabulary.put(layer.name(), scenario.next("vocabulary", layer, WORDS));
      }
    }
    while (steps.size() < batches) {
      round();
    }
  }

  private Job job(int blocks) {
    return JobFile.parse(
        """
        kv_cache: {block_size: %d, num_blocks: %d, dtype: float16}
        layers:
          - {name: a, num_heads: 2, num_kv_heads: 1, head_size: 32}
          - {name: b, %s}
        """
            .formatted(BLOCK_SIZE, blocks, secondLayer),
        "job.yaml");
  }

  /** The job with room for everything. */
  Job job() {
    return job;
  }

  /**
   * The job with {@code part} of the blocks that are needed at a time, enough for each sequence.
   */
  Job job(double part) {
    return managed ? job(Math.max((int) (part * mostBlocks), 2 * longest)) : job;
  }

  int size() {
    return steps.size();
  }

  /** The batch at {@code index}, in memory of {@code allocator}; the caller closes it. */
  ArrowBatch batch(int index, BufferAllocator allocator) {
    Step step = steps.get(index);
    return managed
        ? StepBatches.managed(allocator, step.layer, DTYPE, true, step.rows)
        : StepBatches.of(
            allocator, step.layer, DTYPE, step.rows.stream().map(ManagedRow::row).toList());
  }

  /** Writes all batches to files in {@code folder}, several of one schema to each. */
  void write(Path folder) throws IOException {
    Files.createDirectories(folder);
    try (BufferAllocator allocator = Allocators.root()) {
      for (int i = 0; i < steps.size(); ) {
        Path file = folder.resolve("step-%04d.arrow".formatted(i));
        i = write(file, i, i + 1 + random.nextInt(6), allocator);
      }
    }
  }

  /** Writes batches until one has another schema; returns that one's index. */
  private int write(Path file, int from, int to, BufferAllocator allocator) throws IOException {
    BatchSchema schema = null;
    try (ArrowBatchFileWriter writer =
        ArrowBatchFileWriter.create(file, Compression.NONE, allocator)) {
      int index = from;
      for (; index < Math.min(to, steps.size()); index++) {
        try (ArrowBatch batch = batch(index, allocator)) {
          if (schema != null && !schema.equals(batch.schema())) {
            break;
          }
          schema = batch.schema();
          writer.write(batch);
        }
      }
      writer.finish();
      return index;
    }
  }

  // ---- making them ---------------------------------------------------------------------------

  /** A batch of each layer. */
  private void round() {
    List<Sequence> present = new ArrayList<>(running);
    present.removeIf(sequence -> random.nextInt(6) == 0);
    if (present.isEmpty() || running.size() < MOST_SEQUENCES && random.nextInt(3) == 0) {
      Sequence begins = begin();
      running.add(begins);
      present.add(begins);
    }
    Collections.shuffle(present, random);
    int[] tokens = present.stream().mapToInt(this::newTokens).toArray();
    for (int i = 0; i < tokens.length; i++) {
      addIds(present.get(i), tokens[i]);
    }
    Set<Sequence> last = new LinkedHashSet<>(present); // in an order that does not vary
    last.removeIf(sequence -> !managed || sequence.isNew || random.nextInt(30) > 0);
    for (LayerSpec layer : job.layers()) {
      List<ManagedRow> rows = new ArrayList<>();
      for (int i = 0; i < tokens.length; i++) {
        ManagedRow row = row(present.get(i), layer, tokens[i]);
        rows.add(last.contains(present.get(i)) ? row.last() : row);
      }
      spoil(rows);
      steps.add(new Step(layer, rows));
    }
    for (int i = 0; i < tokens.length; i++) {
      present.get(i).tokens += tokens[i];
      present.get(i).isNew = false;
    }
    count();
    ended.addAll(last);
    running.removeAll(last);
  }

  private Sequence begin() {
    String name = "s" + begun++;
    if (!ended.isEmpty() && random.nextBoolean()) {
      Sequence before = ended.remove();
      return new Sequence(name, before.id, before.group, null);
    }
    if (managed && !running.isEmpty() && random.nextInt(3) == 0) {
      Sequence parent = running.get(random.nextInt(running.size()));
      return new Sequence(name, name, parent.group, parent);
    }
    return new Sequence(name, name, name, null);
  }

  private int newTokens(Sequence sequence) {
    boolean chunk = sequence.isNew || random.nextInt(12) == 0;
    return chunk ? 1 + random.nextInt(40) : 1;
  }

  /** Sequences begin alike, until chance parts them. */
  private void addIds(Sequence sequence, int tokens) {
    for (int i = 0; i < tokens; i++) {
      int word = random.nextInt(50) > 0 ? sequence.ids.size() : random.nextInt(WORDS);
      sequence.ids.add(word % WORDS);
    }
  }

  private ManagedRow row(Sequence sequence, LayerSpec layer, int tokens) {
    StepRow row = scenario.next(sequence.name, layer, tokens).withSequenceId(sequence.id);
    if (layer.kvSharingTargetLayerName() != null) {
      row = row.withoutKeys();
    }
    if (!managed) {
      return ManagedRow.of(row);
    }
    int end = sequence.tokens + tokens;
    row = row.withSeqLen(end);
    boolean sendsIds = !vocabulary.isEmpty() && row.key().length > 0;
    ManagedRow placed =
        (sendsIds ? withIds(row, sequence.ids.subList(sequence.tokens, end)) : ManagedRow.of(row))
            .inGroup(sequence.group);
    return sequence.isNew && sequence.parent != null
        ? placed.forkedFrom(sequence.parent.id)
        : placed;
  }

  private ManagedRow withIds(StepRow row, List<Integer> ids) {
    StepRow words = vocabulary.get(row.layer());
    double[][] key = ids.stream().map(id -> words.key()[id]).toArray(double[][]::new);
    double[][] value = ids.stream().map(id -> words.value()[id]).toArray(double[][]::new);
    return ManagedRow.of(row.withKeys(key, value))
        .withTokenIds(ids.stream().mapToLong(id -> id).toArray());
  }

  /** Now and then puts a row that will be refused among {@code rows}. */
  private void spoil(List<ManagedRow> rows) {
    ManagedRow model = rows.get(random.nextInt(rows.size()));
    StepRow row = model.row();
    if (random.nextInt(10) > 0 || model.ends() || isFirst(model) || row.key().length == 0) {
      return;
    }
    long[] slots = new long[row.slots().length];
    Arrays.fill(slots, (long) BLOCKS * BLOCK_SIZE);
    StepRow bad = managed ? row.withSeqLen(row.seqLen() + FAR) : row.withSlots(slots);
    rows.add(
        random.nextInt(rows.size() + 1),
        ManagedRow.of(bad).inGroup(managed ? model.group() : null));
  }

  private static boolean isFirst(ManagedRow row) {
    return row.parent() != null || row.row().query().length == row.row().seqLen();
  }

  private void count() {
    int blocks = 0;
    for (Sequence sequence : running) {
      int own = (sequence.tokens + BLOCK_SIZE - 1) / BLOCK_SIZE;
      blocks += own;
      longest = Math.max(longest, own);
    }
    mostBlocks = Math.max(mostBlocks, blocks);
  }
}
