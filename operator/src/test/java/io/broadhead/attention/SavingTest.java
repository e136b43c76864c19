// SPDX-License-Identifier: Apache-2.0
package io.broadhead.attention;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import io.broadhead.arrow.ArrowBatch;
import io.broadhead.arrow.ArrowColumn;
import io.broadhead.arrow.DType;
import io.broadhead.attention.cache.CacheHeader;
import io.broadhead.attention.cache.CacheStores;
import io.broadhead.attention.cache.HostPartStore;
import io.broadhead.attention.job.AttnType;
import io.broadhead.attention.job.Job;
import io.broadhead.attention.job.KvCacheDtype;
import io.broadhead.attention.job.KvCacheSpec;
import io.broadhead.attention.job.LayerSpec;
import io.broadhead.attention.testing.ManagedRow;
import io.broadhead.attention.testing.NoLeaks;
import io.broadhead.attention.testing.Overlap;
import io.broadhead.attention.testing.SavedCache;
import io.broadhead.attention.testing.Scenario;
import io.broadhead.attention.testing.StepBatches;
import io.broadhead.attention.testing.StepRow;
import java.util.ArrayList;
import java.util.List;
import java.util.stream.Stream;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.extension.RegisterExtension;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.Arguments;
import org.junit.jupiter.params.provider.MethodSource;

/** A cache that was saved is the same cache in another process, or in a pool of another size. */
class SavingTest {
  private static final DType DTYPE = DType.BFLOAT16;
  private static final int SHARD = 0;

  @RegisterExtension private final NoLeaks noLeaks = new NoLeaks();

  private static LayerSpec.Builder layer(String name) {
    return LayerSpec.builder(name, 4, 64).numKvHeads(2);
  }

  private static Job job(int numBlocks, KvCacheDtype dtype) {
    return new Job(
        new KvCacheSpec(16, numBlocks, null),
        List.of(
            layer("a").kvCacheDtype(dtype).build(),
            layer("b").kvCacheDtype(dtype).numKvHeads(4).build(),
            layer("cross").attnType(AttnType.ENCODER_DECODER).kvCacheDtype(dtype).build(),
            layer("sharing").kvSharingTargetLayerName("a").build()));
  }

  private PagedAttention open(Job job, CacheStores stores) {
    return open("cpu", job, stores);
  }

  private PagedAttention open(String backend, Job job, CacheStores stores) {
    return PagedAttention.open(
        job, new AttentionConfig(backend, 1, 0, OutOfBlocks.SWAP), noLeaks.allocator(), stores);
  }

  private static void restore(PagedAttention attention, CacheHeader header, SavedCache saved) {
    attention.restore(
        header,
        1,
        SHARD,
        saved.sequences(SHARD).entrySet(),
        List.copyOf(saved.blocks(SHARD).entrySet()));
  }

  /** One batch for each layer, with a row for each sequence. */
  private List<ArrowBatch> round(Scenario scenario, Job job, boolean managed, int... tokens) {
    List<ArrowBatch> batches = new ArrayList<>();
    for (LayerSpec layer : job.layers()) {
      List<StepRow> rows = new ArrayList<>();
      for (int s = 0; s < tokens.length; s++) {
        rows.add(scenario.next("s" + s, layer, tokens[s]));
      }
      List<ManagedRow> managedRows = rows.stream().map(ManagedRow::of).toList();
      batches.add(
          managed
              ? StepBatches.managed(noLeaks.allocator(), layer, DTYPE, true, managedRows)
              : StepBatches.of(noLeaks.allocator(), layer, DTYPE, rows));
    }
    return batches;
  }

  private static void assertSameOutput(ArrowBatch got, ArrowBatch expected) {
    ArrowColumn left = got.column("output").child().child();
    ArrowColumn right = expected.column("output").child().child();
    assertThat(left.length()).isEqualTo(right.length());
    for (long i = 0; i < left.length(); i++) {
      assertThat(left.getLong(i)).isEqualTo(right.getLong(i));
    }
  }

  static Stream<Arguments> caches() {
    return Stream.of(KvCacheDtype.AUTO, KvCacheDtype.FP8_E4M3)
        .flatMap(dtype -> Stream.of(Arguments.of(dtype, true), Arguments.of(dtype, false)));
  }

  @Test
  void aChildIsSavedWhoseFirstRowWasRefused() {
    Job job = new Job(new KvCacheSpec(16, 4, null), List.of(layer("a").build()));
    LayerSpec a = job.layers().get(0);
    Scenario scenario = new Scenario(job, DTYPE, 3);
    ManagedRow parent = ManagedRow.of(scenario.next("parent", a, 5));
    ManagedRow grown = ManagedRow.of(scenario.next("parent", a, 1));
    StepRow first = scenario.next("child", a, 1);
    ManagedRow bad = ManagedRow.of(first.withSeqLen(9)).forkedFrom("parent");
    ManagedRow child = ManagedRow.of(first.withSeqLen(6)).forkedFrom("parent");
    SavedCache saved = new SavedCache();
    CacheHeader header;
    List<RefusedRow> refused = new ArrayList<>();
    try (PagedAttention attention = open(job, saved.stores())) {
      step(attention, a, parent, refused);
      step(attention, a, bad, refused);
      assertThat(refused).hasSize(1);
      refused.clear();
      attention.save(1);
      header = attention.header(1).orElseThrow();
    }
    try (PagedAttention restored = open(job, saved.stores())) {
      restore(restored, header, saved);
      step(restored, a, grown, refused);
      step(restored, a, child, refused);
      assertThat(refused).as("rows that the job would have taken before the failure").isEmpty();
    }
  }

  private void step(
      PagedAttention attention, LayerSpec layer, ManagedRow row, List<RefusedRow> refused) {
    try (ArrowBatch batch =
        StepBatches.managed(noLeaks.allocator(), layer, DTYPE, true, List.of(row))) {
      attention.step(batch, refused::add).close();
    }
  }

  @Test
  void paddingIsNotSaved() {
    Job job = new Job(new KvCacheSpec(16, 4, null), List.of(layer("a").build()));
    LayerSpec a = job.layers().get(0);
    StepRow row = new Scenario(job, DTYPE, 3).next("s", a, 40);
    row.slots()[2] = -1;
    row.slots()[39] = -1;
    SavedCache saved = new SavedCache();
    try (PagedAttention attention = open(job, saved.stores());
        ArrowBatch batch = StepBatches.of(noLeaks.allocator(), a, DTYPE, List.of(row))) {
      attention.step(batch).close();
      attention.save(1);
      assertThat(saved.blocks(SHARD)).hasSize(3);
      assertThat(saved.bytes()).isEqualTo(38L * a.numKvHeads() * a.headSize() * 2 * 2);
    }
  }

  @Test
  void slotsOfRowsWithoutKeysAreNotSaved() {
    Job job = new Job(new KvCacheSpec(16, 4, null), List.of(layer("a").build()));
    Scenario scenario = new Scenario(job, DTYPE, 3);
    LayerSpec a = job.layers().get(0);
    SavedCache saved = new SavedCache();
    StepRow written = scenario.next("s", a, 5);
    StepRow read = scenario.next("s", a, 1, 0).withSlots(1L << 40, 40);
    try (PagedAttention attention = open(job, saved.stores());
        ArrowBatch first = StepBatches.of(noLeaks.allocator(), a, DTYPE, List.of(written));
        ArrowBatch second = StepBatches.of(noLeaks.allocator(), a, DTYPE, List.of(read))) {
      attention.step(first).close();
      attention.step(second).close();
      attention.save(1);
      assertThat(saved.blocks(SHARD)).hasSize(1);
    }
  }

  @ParameterizedTest
  @MethodSource("caches")
  void goesOnBitForBitInAPoolOfAnotherSize(KvCacheDtype dtype, boolean managed) {
    Job job = job(64, dtype);
    Job larger = job(80, dtype);
    Scenario scenario = new Scenario(job, DTYPE, 3);
    int[][] rounds = {{17, 5, 33}, {1, 1, 1}, {14, 1, 2}, {1, 1, 1}};
    SavedCache saved = new SavedCache();
    try (PagedAttention uninterrupted = open(job, CacheStores.onHeap())) {
      PagedAttention attention = open(job, saved.stores());
      try {
        for (int[] tokens : rounds) {
          for (ArrowBatch batch : round(scenario, job, managed, tokens)) {
            try (batch;
                ArrowBatch expected = uninterrupted.step(batch);
                ArrowBatch got = attention.step(batch)) {
              assertSameOutput(got, expected);
            }
            attention.save(1);
            CacheHeader header = attention.header(1).orElseThrow();
            attention.close();
            saved = saved.copy();
            attention = open(larger, saved.stores());
            restore(attention, CacheHeader.of(header.toBytes()), saved);
          }
        }
      } finally {
        attention.close();
      }
    }
  }

  /** What a GPU wrote is what the CPU would have written. */
  @ParameterizedTest
  @MethodSource("caches")
  void goesOnOnAGpuAndBackBitForBit(KvCacheDtype dtype, boolean managed) {
    Overlap.assumeHere();
    Job job = job(64, dtype);
    Scenario scenario = new Scenario(job, DTYPE, 3);
    int[][] rounds = {{17, 5, 33}, {1, 1, 1}, {14, 1, 2}, {1, 1, 1}, {1, 1, 1}};
    SavedCache saved = new SavedCache();
    CacheHeader header = null;
    try (PagedAttention uninterrupted = open(job, CacheStores.onHeap())) {
      for (int i = 0; i < rounds.length; i++) {
        boolean onCpu = i % 2 == 0;
        try (PagedAttention attention = open(onCpu ? "cpu" : "auto", job, saved.stores())) {
          if (header != null) {
            restore(attention, header, saved);
          }
          for (ArrowBatch batch : round(scenario, job, managed, rounds[i])) {
            try (batch;
                ArrowBatch expected = uninterrupted.step(batch);
                ArrowBatch got = attention.step(batch)) {
              if (onCpu) {
                assertSameOutput(got, expected);
              } else {
                double[][][] close = StepBatches.read(expected, "output");
                assertThat(StepBatches.error(close, StepBatches.read(got, "output")))
                    .isLessThan(1e-2);
              }
            }
          }
          attention.save(i);
          header = attention.header(1).orElseThrow();
        }
        saved = saved.copy();
      }
    }
  }

  @Test
  void aSeriesOfSavesWritesEachTokenOnce() {
    Job job = job(64, KvCacheDtype.AUTO);
    for (boolean managed : new boolean[] {true, false}) {
      Scenario scenario = new Scenario(job, DTYPE, 3);
      SavedCache saved = new SavedCache();
      try (PagedAttention attention = open(job, saved.stores())) {
        long tokens = 0;
        for (int step : new int[] {17, 1, 1, 20, 1}) {
          for (ArrowBatch batch : round(scenario, job, managed, step, 1)) {
            try (batch;
                ArrowBatch result = attention.step(batch)) {
              assertThat(result.numRows()).isEqualTo(2);
            }
          }
          tokens += step + 1;
          attention.save(tokens);
          long headsOfAllLayers = 2 + 4 + 2;
          assertThat(saved.bytesPut()).isEqualTo(tokens * headsOfAllLayers * 64 * 2 * 2);
        }
      }
    }
  }

  @Test
  void whatCannotBeSavedOrRestoredIsRefused() {
    Job job = job(64, KvCacheDtype.AUTO);
    Scenario scenario = new Scenario(job, DTYPE, 3);
    SavedCache saved = new SavedCache();
    CacheStores metadata = new CacheStores(new HostPartStore(), saved, false);
    List<ArrowBatch> external = round(scenario, job, false, 3);
    List<ArrowBatch> managed = round(new Scenario(job, DTYPE, 4), job, true, 3);
    try (PagedAttention attention = open(job, metadata)) {
      assertThatThrownBy(() -> attention.step(external.get(0)))
          .hasMessage(
              "layer 'a': columns block_table and slot_mapping: expected neither, because only"
                  + " metadata is saved, and nobody but the producer knows the sequences of these"
                  + " tables; set broadhead.state to full or none");
      assertThat(attention.header(1)).isEmpty();
    }
    CacheHeader header;
    try (PagedAttention attention = open(job, saved.stores());
        ArrowBatch result = attention.step(managed.get(0))) {
      assertThat(result.numRows()).isEqualTo(1);
      attention.save(1);
      header = attention.header(1).orElseThrow();
    }
    try (PagedAttention attention = open(job, saved.stores())) {
      restore(attention, header, saved);
      assertThatThrownBy(() -> attention.step(external.get(0)))
          .hasMessageContaining(
              "expected neither, as in the batches before, whose block tables are managed");
    }
    try (PagedAttention attention = open(job, saved.stores())) {
      assertThatThrownBy(() -> attention.restore(header, 4, SHARD, List.of(), List.of()))
          .hasMessage("broadhead.shards: expected 1, as when the state was written, got 4");
    }
    external.forEach(ArrowBatch::close);
    managed.forEach(ArrowBatch::close);
  }
}
