// SPDX-License-Identifier: Apache-2.0
package io.broadhead.flink;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import io.broadhead.arrow.ArrowBatch;
import io.broadhead.arrow.DType;
import io.broadhead.attention.RefusedRow;
import io.broadhead.attention.job.Job;
import io.broadhead.attention.job.JobFile;
import io.broadhead.attention.job.LayerSpec;
import io.broadhead.attention.testing.GoldenFiles;
import io.broadhead.attention.testing.ManagedRow;
import io.broadhead.attention.testing.NoLeaks;
import io.broadhead.attention.testing.ReferenceAttention;
import io.broadhead.attention.testing.Scenario;
import io.broadhead.attention.testing.StepBatches;
import io.broadhead.attention.testing.StepRow;
import io.broadhead.kernel.ErrorCode;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Collection;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import java.util.stream.IntStream;
import java.util.stream.Stream;
import org.apache.flink.configuration.Configuration;
import org.apache.flink.runtime.checkpoint.OperatorSubtaskState;
import org.apache.flink.runtime.state.CheckpointStorage;
import org.apache.flink.runtime.state.KeyGroupRangeAssignment;
import org.apache.flink.runtime.state.StateBackend;
import org.apache.flink.runtime.state.hashmap.HashMapStateBackend;
import org.apache.flink.runtime.state.storage.FileSystemCheckpointStorage;
import org.apache.flink.runtime.state.storage.JobManagerCheckpointStorage;
import org.apache.flink.state.rocksdb.EmbeddedRocksDBStateBackend;
import org.apache.flink.streaming.runtime.streamrecord.StreamRecord;
import org.apache.flink.streaming.util.AbstractStreamOperatorTestHarness;
import org.apache.flink.streaming.util.OperatorSnapshotUtil;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.extension.RegisterExtension;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.Arguments;
import org.junit.jupiter.params.provider.MethodSource;
import org.junit.jupiter.params.provider.ValueSource;

/** The caches go through snapshots of subtasks: restored, rescaled, in pools of other sizes. */
class KeyedCacheStateTest {
  private static final int SHARDS = 8;
  private static final DType DTYPE = DType.FLOAT32;

  @RegisterExtension private final NoLeaks noLeaks = new NoLeaks();

  @TempDir private Path folder;

  private static Job job(int numBlocks) {
    return JobFile.parse(
        """
        kv_cache: {num_blocks: %d}
        layers:
          - {name: a, num_heads: 4, num_kv_heads: 2, head_size: 64}
          - {name: b, num_heads: 4, num_kv_heads: 2, head_size: 64}
        """
            .formatted(numBlocks),
        "job.yaml");
  }

  private final Job job = job(64);
  private final Scenario scenario = new Scenario(job, DTYPE, 29);
  private final ReferenceAttention reference = new ReferenceAttention(job, DTYPE);
  private final Configuration options = new Configuration().set(PagedAttentionOptions.THREADS, 1);
  private int sequences = 12;
  private StateBackend backend = new HashMapStateBackend();
  private CheckpointStorage storage = new JobManagerCheckpointStorage();

  private void useRocksDB() {
    backend = new EmbeddedRocksDBStateBackend(true);
    storage = new FileSystemCheckpointStorage(folder.toUri(), 0);
  }

  /** Subtasks that are one operator. */
  private final class Subtasks implements AutoCloseable {
    private final List<OperatorHarness> harnesses = new ArrayList<>();
    private final ShardKey shardKey = new ShardKey(SHARDS, OperatorHarness.MAX_PARALLELISM);

    /**
     * @param state of all subtasks of the job before, or null
     */
    Subtasks(Job job, int parallelism, OperatorSubtaskState state) throws Exception {
      boolean open = false;
      try {
        for (int subtask = 0; subtask < parallelism; subtask++) {
          harnesses.add(open(job, parallelism, subtask, state));
        }
        open = true;
      } finally {
        if (!open) {
          close();
        }
      }
    }

    private OperatorHarness open(Job job, int parallelism, int subtask, OperatorSubtaskState state)
        throws Exception {
      OperatorHarness harness =
          new OperatorHarness(
              job,
              options,
              SHARDS,
              OperatorHarness.environment()
                  .setParallelism(parallelism)
                  .setSubtaskIndex(subtask)
                  .build());
      harness.setStateBackend(backend);
      harness.setCheckpointStorage(storage);
      boolean open = false;
      try {
        if (state != null) {
          harness.initializeState(
              AbstractStreamOperatorTestHarness.repartitionOperatorState(
                  state, OperatorHarness.MAX_PARALLELISM, parallelism, parallelism, subtask));
        }
        harness.open();
        open = true;
        return harness;
      } finally {
        if (!open) {
          harness.close();
        }
      }
    }

    void process(ArrowBatch batch) throws Exception {
      List<ArrowBatch> parts = new ArrayList<>();
      int[] subtasks =
          IntStream.range(0, SHARDS)
              .map(shard -> shardKey.subtask(shard, harnesses.size()))
              .toArray();
      ShardSplitter.split(batch, shardKey, subtasks, part -> parts.add(part.retain()));
      try {
        for (ArrowBatch part : parts) {
          int subtask =
              KeyGroupRangeAssignment.assignKeyToParallelOperator(
                  shardKey.getKey(part), OperatorHarness.MAX_PARALLELISM, harnesses.size());
          harnesses.get(subtask).processElement(part, 0);
        }
      } finally {
        parts.forEach(ArrowBatch::close);
      }
    }

    OperatorSubtaskState snapshot(long checkpoint) throws Exception {
      List<OperatorSubtaskState> states = new ArrayList<>();
      for (OperatorHarness harness : harnesses) {
        harness.prepareSnapshotPreBarrier(checkpoint);
        states.add(harness.snapshot(checkpoint, 0));
        harness.notifyOfCompletedCheckpoint(checkpoint);
      }
      return AbstractStreamOperatorTestHarness.repackageState(
          states.toArray(OperatorSubtaskState[]::new));
    }

    /** Results of all rows so far, by what {@link #key} says. */
    Map<String, double[][]> results() throws Exception {
      Map<String, double[][]> results = new HashMap<>();
      for (OperatorHarness harness : harnesses) {
        harness.awaitResults();
        for (ArrowBatch result : harness.extractOutputValues()) {
          double[][][] output = StepBatches.read(result, "output");
          for (int row = 0; row < output.length; row++) {
            String layer = result.column("layer").getString(row);
            results.put(layer + " " + result.column("request").getString(row), output[row]);
          }
        }
      }
      return results;
    }

    List<RefusedRow> refused() {
      return harnesses.stream()
          .map(harness -> harness.getSideOutput(PagedAttentionOperator.REFUSED_ROWS))
          .filter(Objects::nonNull)
          .flatMap(Collection::stream)
          .map(StreamRecord::getValue)
          .toList();
    }

    @Override
    public void close() throws Exception {
      for (OperatorHarness harness : harnesses) {
        harness.closeResults();
        harness.close();
      }
    }
  }

  /** A step of every layer; returns the results to be expected. */
  private Map<String, double[][]> round(Subtasks subtasks, boolean managed, int... tokens)
      throws Exception {
    Map<String, double[][]> expected = new HashMap<>();
    for (LayerSpec layer : job.layers()) {
      List<StepRow> rows = new ArrayList<>();
      for (int s = 0; s < sequences; s++) {
        StepRow row = scenario.next("s" + s, layer, tokens[s % tokens.length]);
        rows.add(row);
        expected.put(
            layer.name() + " for " + row.sequenceId() + " at " + row.seqLen(),
            reference.step(layer, List.of(row)).output()[0]);
      }
      try (ArrowBatch batch = batch(layer, rows, managed)) {
        subtasks.process(batch);
      }
    }
    return expected;
  }

  private ArrowBatch batch(LayerSpec layer, List<StepRow> rows, boolean managed) {
    return managed
        ? StepBatches.managed(
            noLeaks.allocator(), layer, DTYPE, true, rows.stream().map(ManagedRow::of).toList())
        : StepBatches.of(noLeaks.allocator(), layer, DTYPE, rows);
  }

  private static void assertResults(
      Map<String, double[][]> results, Map<String, double[][]> expected) {
    assertThat(results.keySet()).isEqualTo(expected.keySet());
    expected.forEach(
        (key, output) ->
            assertThat(
                    StepBatches.error(
                        new double[][][] {output}, new double[][][] {results.get(key)}))
                .as(key)
                .isLessThan(1e-5));
  }

  static Stream<Arguments> backends() {
    return Stream.of(true, false)
        .flatMap(rocksDB -> Stream.of(Arguments.of(rocksDB, true), Arguments.of(rocksDB, false)));
  }

  /** From the CPU to a GPU where there is one, and back. */
  @ParameterizedTest
  @MethodSource("backends")
  void sequencesGoOnAfterRescaling(boolean rocksDB, boolean managed) throws Exception {
    if (rocksDB) {
      useRocksDB();
    }
    OperatorSubtaskState state = null;
    long checkpoint = 0;
    for (int parallelism : new int[] {2, 4, 1, 3}) {
      options.set(PagedAttentionOptions.BACKEND, checkpoint % 4 == 0 ? "cpu" : "auto");
      try (Subtasks subtasks = new Subtasks(job(64 + parallelism), parallelism, state)) {
        Map<String, double[][]> expected = new HashMap<>();
        expected.putAll(round(subtasks, managed, state == null ? new int[] {9, 17, 30} : one()));
        subtasks.snapshot(++checkpoint);
        expected.putAll(round(subtasks, managed, one()));
        assertResults(subtasks.results(), expected);
        state = subtasks.snapshot(++checkpoint);
      }
    }
  }

  private static int[] one() {
    return new int[] {1};
  }

  @ParameterizedTest
  @ValueSource(booleans = {true, false})
  void swappedSequencesAreInTheStateToo(boolean rocksDB) throws Exception {
    if (rocksDB) {
      useRocksDB();
    }
    OperatorSubtaskState state;
    int tooFew = 9; // of about 26
    try (Subtasks subtasks = new Subtasks(job(tooFew), 1, null)) {
      Map<String, double[][]> expected = round(subtasks, true, 9, 17, 30);
      expected.putAll(round(subtasks, true, 1));
      assertResults(subtasks.results(), expected);
      state = subtasks.snapshot(1);
    }
    try (Subtasks subtasks = new Subtasks(job(2 * tooFew), 2, state)) {
      assertResults(subtasks.results(), new HashMap<>());
      Map<String, double[][]> expected = round(subtasks, true, 1);
      assertResults(subtasks.results(), expected);
    }
  }

  @Test
  void withMetadataSequencesAreLostByName() throws Exception {
    options.set(PagedAttentionOptions.STATE, StateMode.METADATA);
    OperatorSubtaskState state;
    try (Subtasks subtasks = new Subtasks(job, 2, null)) {
      round(subtasks, true, 5);
      state = subtasks.snapshot(1);
    }
    options.set(PagedAttentionOptions.STATE, StateMode.FULL);
    try (Subtasks subtasks = new Subtasks(job, 1, state)) {
      round(subtasks, true, 1);
      assertThat(subtasks.results()).isEmpty();
      assertThat(subtasks.refused())
          .hasSize(2 * sequences)
          .allSatisfy(
              row -> {
                assertThat(row.code()).isEqualTo(ErrorCode.SEQUENCE_LOST);
                assertThat(row.message()).contains("expected it again from its first token");
              });
      state = subtasks.snapshot(2);
    }
    try (Subtasks subtasks = new Subtasks(job, 1, state)) {
      round(subtasks, true, 1);
      assertThat(subtasks.refused()).hasSize(2 * sequences);
    }
  }

  @Test
  void aSnapshotOfVersionOneIsStillRestored() throws Exception {
    sequences = 2;
    Path file = folder.resolve("snapshot");
    try (Subtasks subtasks = new Subtasks(job, 1, null)) {
      round(subtasks, true, 3, 2);
      OperatorSnapshotUtil.writeStateHandle(subtasks.snapshot(1), file.toString());
    }
    Files.write(file, GoldenFiles.read("kv-state-v1.snapshot", Files.readAllBytes(file)));
    OperatorSubtaskState state = OperatorSnapshotUtil.readStateHandle(file.toString());
    try (Subtasks subtasks = new Subtasks(job, 1, state)) {
      Map<String, double[][]> expected = round(subtasks, true, 1);
      assertResults(subtasks.results(), expected);
    }
  }

  private void expectRefused(Configuration changes, OperatorSubtaskState state, String message) {
    options.addAll(changes);
    assertThatThrownBy(() -> new Subtasks(job, 1, state).close()).hasMessage(message);
  }

  @Test
  void stateThatWouldBeDroppedIsRefused() throws Exception {
    OperatorSubtaskState state;
    try (Subtasks subtasks = new Subtasks(job, 1, null)) {
      round(subtasks, true, 5);
      state = subtasks.snapshot(1);
    }
    expectRefused(
        new Configuration().set(PagedAttentionOptions.STATE, StateMode.NONE),
        state,
        "broadhead.state: expected full, as when the state was written, got none");
    expectRefused(
        new Configuration().set(PagedAttentionOptions.STATE, StateMode.METADATA),
        state,
        "broadhead.state: expected full, as when the state was written, got metadata");
  }

  @Test
  void withoutStateNothingIsSaved() throws Exception {
    options.set(PagedAttentionOptions.STATE, StateMode.NONE);
    OperatorSubtaskState state;
    try (Subtasks subtasks = new Subtasks(job, 1, null)) {
      round(subtasks, true, 5);
      state = subtasks.snapshot(1);
    }
    options.set(PagedAttentionOptions.STATE, StateMode.FULL);
    try (Subtasks subtasks = new Subtasks(job, 1, state)) {
      assertThatThrownBy(() -> round(subtasks, true, 1))
          .hasMessageContaining("column seq_len: 6, expected 1 (0 tokens in the cache");
    }
  }
}
