// SPDX-License-Identifier: Apache-2.0
package io.broadhead.attention;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import com.sun.management.ThreadMXBean;
import io.broadhead.arrow.ArrowBatch;
import io.broadhead.arrow.ArrowColumn;
import io.broadhead.arrow.DType;
import io.broadhead.attention.cache.KvCacheManager;
import io.broadhead.attention.job.AttnType;
import io.broadhead.attention.job.Job;
import io.broadhead.attention.job.KvCacheDtype;
import io.broadhead.attention.job.KvCacheSpec;
import io.broadhead.attention.job.LayerSpec;
import io.broadhead.attention.job.RopeSpec;
import io.broadhead.attention.testing.Closing;
import io.broadhead.attention.testing.Collected;
import io.broadhead.attention.testing.ManagedRow;
import io.broadhead.attention.testing.NoLeaks;
import io.broadhead.attention.testing.Scenario;
import io.broadhead.attention.testing.StepBatches;
import io.broadhead.attention.testing.StepRow;
import io.broadhead.kernel.ErrorCode;
import io.broadhead.kernel.KernelException;
import java.lang.management.ManagementFactory;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.stream.IntStream;
import java.util.stream.LongStream;
import java.util.stream.Stream;
import org.assertj.core.api.InstanceOfAssertFactories;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.extension.RegisterExtension;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.Arguments;
import org.junit.jupiter.params.provider.MethodSource;
import org.junit.jupiter.params.provider.ValueSource;

class ManagedTablesTest {
  private static final DType DTYPE = DType.FLOAT16;

  @RegisterExtension private final NoLeaks noLeaks = new NoLeaks();

  private static LayerSpec.Builder layer(String name) {
    return LayerSpec.builder(name, 4, 64).numKvHeads(2);
  }

  private static Job job(int numBlocks, LayerSpec... layers) {
    return new Job(new KvCacheSpec(16, numBlocks, null), List.of(layers));
  }

  private PagedAttention open(Job job, int threads, OutOfBlocks outOfBlocks) {
    return PagedAttention.open(
        job, new AttentionConfig("cpu", threads, 0, outOfBlocks), noLeaks.allocator());
  }

  private ArrowBatch managed(LayerSpec layer, ManagedRow... rows) {
    return StepBatches.managed(noLeaks.allocator(), layer, DTYPE, true, List.of(rows));
  }

  private ArrowBatch managed(LayerSpec layer, List<StepRow> rows, boolean seqLens) {
    return StepBatches.managed(
        noLeaks.allocator(), layer, DTYPE, seqLens, rows.stream().map(ManagedRow::of).toList());
  }

  private ArrowBatch external(LayerSpec layer, List<StepRow> rows) {
    return StepBatches.of(noLeaks.allocator(), layer, DTYPE, rows);
  }

  private static void assertSameBits(ArrowBatch got, ArrowBatch expected) {
    assertThat(got.numRows()).isEqualTo(expected.numRows());
    ArrowColumn left = got.column("output");
    ArrowColumn right = expected.column("output");
    for (int row = 0; row <= got.numRows(); row++) {
      assertThat(left.offset(row)).isEqualTo(right.offset(row));
    }
    for (long i = 0; i < left.child().child().length(); i++) {
      assertThat(left.child().child().getLong(i)).isEqualTo(right.child().child().getLong(i));
    }
  }

  private static void assertClose(double[][] got, double[][] expected) {
    assertThat(StepBatches.error(new double[][][] {expected}, new double[][][] {got}))
        .isLessThan(StepBatches.tolerance(DTYPE));
  }

  private static KvCacheManager tables(PagedAttention attention) {
    return attention.blockTables().orElseThrow();
  }

  private static int inUse(PagedAttention attention) {
    return tables(attention).capacity() - tables(attention).free();
  }

  static Stream<Arguments> jobs() {
    return Stream.of(
            job(64, layer("a").build(), layer("b").slidingWindow(9).build()),
            job(
                64,
                layer("rope").rope(new RopeSpec(64, 256, 10000, true)).build(),
                layer("sharing").kvSharingTargetLayerName("rope").build()),
            job(
                64,
                layer("self").build(),
                layer("cross").attnType(AttnType.ENCODER_DECODER).build(),
                layer("sharing")
                    .attnType(AttnType.ENCODER_DECODER)
                    .kvSharingTargetLayerName("cross")
                    .build()),
            job(64, layer("fp8").kvCacheDtype(KvCacheDtype.FP8_E4M3).kScale(0.5f).build()))
        .flatMap(job -> Stream.of(Arguments.of(job, 1), Arguments.of(job, 2)));
  }

  @ParameterizedTest
  @MethodSource("jobs")
  void givesTheBitsThatExternalTablesGive(Job job, int threads) {
    Scenario scenario = new Scenario(job, DTYPE, 5);
    int[][] tokens = {{17, 1, 40}, {1, 30, 1}, {1, 1, 1}, {20, 1, 1}};
    try (PagedAttention managed = open(job, threads, OutOfBlocks.SWAP);
        PagedAttention external = open(job, threads, OutOfBlocks.SWAP)) {
      for (int[] step : tokens) {
        for (LayerSpec layer : job.layers()) {
          List<StepRow> rows = new ArrayList<>();
          for (int s = 0; s < step.length; s++) {
            rows.add(scenario.next("s" + s, layer, step[s]));
          }
          try (ArrowBatch with = external(layer, rows);
              ArrowBatch without = managed(layer, rows, step[0] == 1);
              ArrowBatch expected = external.step(with);
              ArrowBatch got = managed.step(without)) {
            assertSameBits(got, expected);
            assertThat(managed.lastStep().bytesStaged()).isZero();
            assertThat(managed.lastStep().queryAddress())
                .isEqualTo(without.column("query").child().child().values().memoryAddress());
          }
        }
      }
    }
  }

  @Test
  void aSharingLayerNeedsNoRowsForKeysThatCameWithoutQueries() {
    LayerSpec owner = layer("owner").build();
    LayerSpec sharing = layer("sharing").kvSharingTargetLayerName("owner").build();
    Job job = job(8, owner, sharing);
    Scenario scenario = new Scenario(job, DTYPE, 3);
    List<StepRow> rows =
        List.of(
            scenario.next("s", owner, 0, 9),
            scenario.next("s", owner, 2, 2),
            scenario.next("s", sharing, 2, 11).withoutKeys());
    try (PagedAttention managed = open(job, 1, OutOfBlocks.SWAP);
        PagedAttention external = open(job, 1, OutOfBlocks.SWAP)) {
      for (StepRow row : rows) {
        LayerSpec layer = managed.job().layer(row.layer()).orElseThrow();
        try (ArrowBatch with = external(layer, List.of(row));
            ArrowBatch without = managed(layer, List.of(row), true);
            ArrowBatch expected = external.step(with);
            ArrowBatch got = managed.step(without)) {
          assertSameBits(got, expected);
        }
      }
    }
  }

  @Test
  void blocksAreFreeWhenEveryLayerHasSeenTheEnd() {
    LayerSpec a = layer("a").build();
    LayerSpec b = layer("b").build();
    Job job = job(8, a, b);
    Scenario scenario = new Scenario(job, DTYPE, 1);
    try (PagedAttention attention = open(job, 1, OutOfBlocks.FAIL)) {
      run(attention, a, ManagedRow.of(scenario.next("s", a, 40)));
      run(attention, b, ManagedRow.of(scenario.next("s", b, 40)));
      assertThat(inUse(attention)).isEqualTo(3);
      run(attention, a, ManagedRow.of(scenario.next("s", a, 1)).last());
      assertThat(inUse(attention)).isEqualTo(3);
      run(attention, b, ManagedRow.of(scenario.next("s", b, 1)).last());
      assertThat(inUse(attention)).isZero();
      assertThat(tables(attention).sequences()).isZero();
    }
  }

  /** However its batch is divided into steps. */
  @ParameterizedTest
  @ValueSource(ints = {0, 4, 64})
  void aRowBehindTheEndOfItsSequenceBeginsItAnew(int maxTokens) {
    LayerSpec a = layer("a").build();
    Job job = job(64, a);
    Scenario scenario = new Scenario(job, DTYPE, 5);
    ManagedRow first = ManagedRow.of(scenario.next("s", a, 2));
    ManagedRow last = ManagedRow.of(scenario.next("s", a, 1)).last();
    ManagedRow anew = ManagedRow.of(new Scenario(job, DTYPE, 6).next("s", a, 3));
    Collected collected = new Collected();
    try (PagedAttention attention = open(job, 1, OutOfBlocks.SWAP);
        PagedAttention other = open(job, 1, OutOfBlocks.SWAP);
        StepQueue queue = attention.queue(maxTokens)) {
      ManagedRow atOnce = ManagedRow.of(scenario.next("s", a, 0)).last();
      for (ManagedRow[] rows :
          new ManagedRow[][] {{first}, {last, anew}, {atOnce, anew.last(), anew}}) {
        try (ArrowBatch batch =
            StepBatches.managed(noLeaks.allocator(), a, DTYPE, false, List.of(rows))) {
          queue.add(batch, collected);
        }
      }
      queue.drain();
      assertThat(collected.refused).isEmpty();
      try (ArrowBatch batch = managed(a, anew);
          ArrowBatch result = other.step(batch)) {
        double[][] expected = StepBatches.read(result, "output")[0];
        assertClose(StepBatches.read(collected.results.get(1), "output")[1], expected);
        assertClose(StepBatches.read(collected.results.get(2), "output")[1], expected);
        assertClose(StepBatches.read(collected.results.get(2), "output")[2], expected);
      }
      collected.results.forEach(ArrowBatch::close);
    }
  }

  /** Its sequence has had its last row in layer a, and goes on in layer b. */
  @ParameterizedTest
  @ValueSource(booleans = {true, false})
  void aRowBehindTheEndInItsLayerEndsNothingUnlessItIsComputed(boolean isChecked) {
    LayerSpec a = layer("a").rope(new RopeSpec(64, 64, 10000, true)).build();
    LayerSpec b = layer("b").build();
    Job job = job(8, a, b);
    Scenario scenario = new Scenario(job, DTYPE, 5);
    StepRow bad = new Scenario(job, DTYPE, 6).next("s", a, 3);
    bad.positions()[2] = 64;
    try (PagedAttention attention = open(job, 1, OutOfBlocks.FAIL);
        PagedAttention other = open(job, 1, OutOfBlocks.FAIL)) {
      for (PagedAttention each : List.of(attention, other)) {
        run(each, a, ManagedRow.of(new Scenario(job, DTYPE, 5).next("s", a, 21)).last());
      }
      ManagedRow prompt = ManagedRow.of(scenario.next("s", b, 20));
      run(attention, b, prompt);
      run(other, b, prompt);
      try (ArrowBatch anew = managed(a, ManagedRow.of(bad))) {
        if (isChecked) {
          assertThat(attention.check(anew)).hasSize(1);
        } else {
          assertThatThrownBy(() -> attention.step(anew)).isInstanceOf(InvalidBatchException.class);
        }
      }
      try (ArrowBatch last = managed(b, ManagedRow.of(scenario.next("s", b, 1)).last());
          ArrowBatch expected = other.step(last);
          ArrowBatch got = attention.step(last)) {
        assertSameBits(got, expected);
      }
      assertThat(inUse(attention)).isZero();
      assertThat(tables(attention).sequences()).isZero();
    }
  }

  /** Only with the blocks of the one before it is there room for it. */
  @Test
  void whatIsBegunAnewHasTheBlocksOfTheSequenceThatHasEnded() {
    LayerSpec a = layer("a").build();
    LayerSpec b = layer("b").build();
    Job job = job(4, a, b);
    Scenario scenario = new Scenario(job, DTYPE, 5);
    try (PagedAttention attention = open(job, 1, OutOfBlocks.FAIL)) {
      run(attention, a, ManagedRow.of(scenario.next("s", a, 40)).last());
      run(
          attention,
          a,
          ManagedRow.of(scenario.next("other", a, 5)),
          ManagedRow.of(new Scenario(job, DTYPE, 6).next("s", a, 48)));
      assertThat(inUse(attention)).isEqualTo(4);
      assertThat(tables(attention).sequences()).isEqualTo(2);
    }
  }

  @Test
  void aCheckWithoutBlocksNeitherCountsNorEndsTheSequenceThatHasEnded() {
    LayerSpec a = layer("a").build();
    Job job = job(4, a, layer("b").build());
    try (PagedAttention attention = open(job, 1, OutOfBlocks.REJECT)) {
      run(attention, a, ManagedRow.of(new Scenario(job, DTYPE, 5).next("s", a, 40)).last());
      try (ArrowBatch anew =
          managed(a, ManagedRow.of(new Scenario(job, DTYPE, 6).next("s", a, 48)))) {
        assertThat(attention.check(anew))
            .singleElement()
            .extracting(RefusedRow::message, InstanceOfAssertFactories.STRING)
            .startsWith("sequence s has 0 tokens in the cache and 48 new ones, and none of ");
        assertThat(inUse(attention)).isEqualTo(3);
      }
    }
  }

  private void run(PagedAttention attention, LayerSpec layer, ManagedRow... rows) {
    try (ArrowBatch batch = managed(layer, rows)) {
      attention.step(batch).close();
    }
  }

  @Test
  void aForkReadsItsParentsTokensAndWritesItsOwn() {
    LayerSpec a = layer("a").build();
    LayerSpec b = layer("b").build();
    Job job = job(32, a, b);
    Scenario scenario = new Scenario(job, DTYPE, 3);
    try (PagedAttention attention = open(job, 2, OutOfBlocks.FAIL);
        PagedAttention apart = open(job, 2, OutOfBlocks.FAIL)) {
      StepRow[] prompts = {scenario.next("parent", a, 20), scenario.next("parent", b, 20)};
      run(attention, a, ManagedRow.of(prompts[0]));
      run(attention, b, ManagedRow.of(prompts[1]));
      for (int layer = 0; layer < 2; layer++) {
        LayerSpec spec = job.layers().get(layer);
        StepRow parent = scenario.next("parent", spec, 1);
        StepRow child = likeNext("child", scenario.next("other" + layer, spec, 1), 21);
        try (ArrowBatch batch =
                managed(spec, ManagedRow.of(parent), ManagedRow.of(child).forkedFrom("parent"));
            ArrowBatch result = attention.step(batch)) {
          double[][][] got = StepBatches.read(result, "output");
          assertClose(got[0], alone(apart, spec, "p" + layer, prompts[layer], parent));
          assertClose(got[1], alone(apart, spec, "c" + layer, prompts[layer], child));
        }
      }
      // One full block is shared, the other was copied once, in both layers.
      assertThat(inUse(attention)).isEqualTo(3);
      assertThat(tables(attention).counters().blocksCopied()).isEqualTo(1);
    }
  }

  private static StepRow likeNext(Object id, StepRow row, int seqLen) {
    return new StepRow(
        id,
        row.layer(),
        row.query(),
        row.key(),
        row.value(),
        seqLen,
        row.slots(),
        row.blocks(),
        row.positions());
  }

  /** What the row gives if its sequence is sent by itself. */
  private double[][] alone(
      PagedAttention attention, LayerSpec layer, Object id, StepRow prompt, StepRow row) {
    run(attention, layer, ManagedRow.of(likeNext(id, prompt, prompt.seqLen())));
    try (ArrowBatch batch = managed(layer, ManagedRow.of(likeNext(id, row, row.seqLen())));
        ArrowBatch result = attention.step(batch)) {
      return StepBatches.read(result, "output")[0];
    }
  }

  @Test
  void sequencesThatBeginAlikeShareFullBlocks() {
    LayerSpec a = layer("a").build();
    LayerSpec b = layer("b").build();
    Job job = job(16, a, b);
    Scenario scenario = new Scenario(job, DTYPE, 3);
    long[] ids = LongStream.range(100, 140).toArray();
    try (PagedAttention attention = open(job, 1, OutOfBlocks.FAIL)) {
      for (LayerSpec layer : job.layers()) {
        StepRow first = scenario.next("first", layer, 40);
        StepRow second = likeNext("second", first, 40);
        try (ArrowBatch batch =
                managed(
                    layer,
                    ManagedRow.of(first).withTokenIds(ids),
                    ManagedRow.of(second).withTokenIds(ids));
            ArrowBatch result = attention.step(batch)) {
          double[][][] got = StepBatches.read(result, "output");
          assertClose(got[1], got[0]);
          assertThat(attention.lastStep().writtenTokens()).isEqualTo(40 + 8);
        }
      }
      assertThat(inUse(attention)).isEqualTo(2 + 2);
      for (LayerSpec layer : job.layers()) {
        run(
            attention,
            layer,
            ManagedRow.of(scenario.next("first", layer, 1)).withTokenIds(1).last(),
            ManagedRow.of(likeNext("second", scenario.next("x", layer, 1), 41))
                .withTokenIds(2)
                .last());
      }
      assertThat(inUse(attention)).isZero();
      // The blocks are kept for those who come later.
      StepRow third = likeNext("third", scenario.next("y", a, 40), 40);
      run(attention, a, ManagedRow.of(third).withTokenIds(ids));
      assertThat(attention.lastStep().writtenTokens()).isEqualTo(8);
      assertThat(tables(attention).counters().tokensHit()).isEqualTo(3 * 32);
    }
  }

  @ParameterizedTest
  @ValueSource(ints = {1, 2})
  void swappedSequencesGiveTheSameResults(int threads) {
    LayerSpec a = layer("a").build();
    LayerSpec b = layer("b").build();
    List<LayerSpec> layers = List.of(a, b);
    Scenario scenario = new Scenario(job(64, a, b), DTYPE, 5);
    try (PagedAttention small = open(job(7, a, b), threads, OutOfBlocks.SWAP);
        PagedAttention large = open(job(64, a, b), threads, OutOfBlocks.SWAP)) {
      for (int step = 0; step < 6; step++) {
        for (LayerSpec layer : layers) {
          List<StepRow> rows = new ArrayList<>();
          for (int s = 0; s < 8; s++) {
            rows.add(scenario.next("s" + s, layer, step == 0 ? 10 + 5 * s : 1));
          }
          try (ArrowBatch batch = managed(layer, rows, true);
              ArrowBatch expected = large.step(batch);
              ArrowBatch got = small.step(batch)) {
            // A batch that is larger than the pool takes several steps.
            if (threads == 1) {
              assertSameBits(got, expected);
            } else {
              double error =
                  StepBatches.error(
                      StepBatches.read(expected, "output"), StepBatches.read(got, "output"));
              assertThat(error).isLessThan(StepBatches.tolerance(DTYPE));
            }
          }
        }
      }
      assertThat(tables(small).counters().blocksSwappedIn()).isPositive();
      assertThat(tables(large).counters().sequencesSwappedOut()).isZero();
    }
  }

  @Test
  void withoutBlocksARowIsRejectedAndItsSequenceGivenUp() {
    LayerSpec a = layer("a").build();
    Job job = job(4, a);
    Scenario scenario = new Scenario(job(64, a), DTYPE, 5);
    List<RefusedRow> refused = new ArrayList<>();
    try (PagedAttention attention = open(job, 1, OutOfBlocks.REJECT)) {
      StepRow prompt = scenario.next("large", a, 40);
      try (ArrowBatch batch =
              managed(a, ManagedRow.of(scenario.next("kept", a, 20)), ManagedRow.of(prompt));
          ArrowBatch result = attention.step(batch, refused::add)) {
        assertThat(result.numRows()).isEqualTo(1);
      }
      try (ArrowBatch batch =
              managed(
                  a,
                  ManagedRow.of(scenario.next("large", a, 1)),
                  ManagedRow.of(scenario.next("kept", a, 1)).last());
          ArrowBatch result = attention.step(batch, refused::add)) {
        assertThat(result.column("sequence_id").getString(0)).isEqualTo("kept");
      }
      assertThat(refused)
          .extracting(RefusedRow::code)
          .containsExactly(ErrorCode.OUT_OF_BLOCKS, ErrorCode.SEQUENCE_LOST);
      assertThat(refused.get(0).message())
          .isEqualTo(
              "sequence large has 0 tokens in the cache and 40 new ones, and none of the pool's 4"
                  + " blocks can be had; raise kv_cache.num_blocks in the job file");
      assertThat(refused.get(1).message())
          .isEqualTo(
              "sequence large: it was given up for want of blocks in layer a; expected it again"
                  + " from its first token, with seq_len as many as its keys, or after a row without"
                  + " tokens that ends it");
      // Now there is room.
      run(attention, a, ManagedRow.of(prompt));
      assertThat(inUse(attention)).isEqualTo(3);
    }
  }

  @Test
  void withoutBlocksTheJobFailsIfAsked() {
    LayerSpec a = layer("a").build();
    Scenario scenario = new Scenario(job(64, a), DTYPE, 5);
    try (PagedAttention attention = open(job(4, a), 1, OutOfBlocks.FAIL);
        ArrowBatch batch = managed(a, ManagedRow.of(scenario.next("large", a, 65)))) {
      assertThatThrownBy(() -> attention.step(batch))
          .isInstanceOfSatisfying(
              KernelException.class, e -> assertThat(e.code()).isEqualTo(ErrorCode.OUT_OF_BLOCKS))
          .hasMessageContainingAll(
              "layer 'a', sequence large, row 0", "65 new", "kv_cache.num_blocks");
      assertThat(inUse(attention)).isZero();
    }
  }

  @Test
  void aRefusedStepLeavesTheTablesAsTheyWere() {
    LayerSpec a = layer("a").rope(new RopeSpec(64, 64, 10000, true)).build();
    Job job = job(8, a);
    Scenario scenario = new Scenario(job, DTYPE, 5);
    StepRow good = scenario.next("good", a, 20);
    StepRow bad = scenario.next("bad", a, 4);
    bad.positions()[2] = 64;
    List<RefusedRow> refused = new ArrayList<>();
    try (PagedAttention attention = open(job, 1, OutOfBlocks.FAIL);
        ArrowBatch batch = managed(a, ManagedRow.of(good), ManagedRow.of(bad))) {
      assertThatThrownBy(() -> attention.step(batch))
          .isInstanceOf(InvalidBatchException.class)
          .hasMessageContainingAll("layer 'a', sequence bad, row 1", "position", "64");
      assertThat(inUse(attention)).isZero();
      assertThat(tables(attention).sequences()).isZero();
      assertThat(attention.check(batch)).extracting(RefusedRow::sequenceId).containsExactly("bad");
      assertThat(tables(attention).sequences()).isZero();
      try (ArrowBatch result = attention.step(batch, refused::add)) {
        assertThat(result.numRows()).isEqualTo(1);
      }
      assertThat(tables(attention).sequences()).isEqualTo(1);
      assertThat(inUse(attention)).isEqualTo(2);
    }
  }

  @Test
  void batchesAreRehearsedOneAfterTheOther() {
    LayerSpec a = layer("a").build();
    Job job = job(8, a);
    Scenario scenario = new Scenario(job, DTYPE, 5);
    try (PagedAttention attention = open(job, 1, OutOfBlocks.SWAP);
        ArrowBatch prompt = managed(a, ManagedRow.of(scenario.next("s", a, 20)));
        ArrowBatch next = managed(a, ManagedRow.of(scenario.next("s", a, 1)));
        ArrowBatch again = managed(a, ManagedRow.of(scenario.next("s", a, 1).withSeqLen(7)))) {
      assertThat(attention.rehearse(prompt)).isEmpty();
      assertThat(attention.rehearse(next)).isEmpty();
      assertThat(attention.rehearse(again))
          .singleElement()
          .extracting(RefusedRow::message)
          .isEqualTo("column seq_len: 7, expected 22 (21 tokens in the cache and 1 new ones)");
    }
  }

  // ---- messages ------------------------------------------------------------------------------

  private void expectRefused(PagedAttention attention, ArrowBatch batch, String... mentions) {
    try (batch) {
      assertThatThrownBy(() -> attention.step(batch))
          .isInstanceOf(InvalidBatchException.class)
          .hasMessageContainingAll(mentions);
    }
  }

  @Test
  void messagesNameColumnExpectedAndGot() {
    LayerSpec a = layer("a").build();
    LayerSpec cross = layer("cross").attnType(AttnType.ENCODER_DECODER).build();
    Job job = job(8, a, cross);
    Scenario scenario = new Scenario(job, DTYPE, 5);
    try (PagedAttention attention = open(job, 1, OutOfBlocks.SWAP)) {
      run(attention, a, ManagedRow.of(scenario.next("s", a, 5)));
      StepRow next = scenario.next("s", a, 1);
      expectRefused(
          attention,
          managed(a, ManagedRow.of(next.withSeqLen(-3))),
          "sequence s, row 0: column seq_len: -3, expected 0 or more");
      expectRefused(
          attention,
          managed(a, ManagedRow.of(next).forkedFrom("t")),
          "column parent_sequence_id: sequence s has begun already, expected null, got t");
      expectRefused(
          attention,
          managed(a, ManagedRow.of(likeNext("c", next, 6)).forkedFrom("nobody")),
          "column parent_sequence_id: expected a sequence in the cache, got nobody",
          "sequence_group");
      expectRefused(
          attention,
          managed(a, ManagedRow.of(next).withTokenIds(1, 2)),
          "column token_ids: 2 entries, expected 1 (one for each key)");
      expectRefused(
          attention,
          managed(a, ManagedRow.of(likeNext("n", next, 1)).withTokenIds(StepBatches.NULL)),
          "column token_ids: entry 0 is null, expected the token's id");
      expectRefused(
          attention,
          managed(a, List.of(scenario.next("nobody", a, 1, 0)), false),
          "column key: sequence nobody is not in the cache, expected its first tokens, got none");
      expectRefused(
          attention,
          managed(cross, ManagedRow.of(scenario.next("s", cross, 3)).withTokenIds(1, 2, 3)),
          "layer 'cross'",
          "column token_ids",
          "encoder_decoder");
      expectRefused(
          attention,
          external(a, List.of(next)),
          "layer 'a'",
          "block_table and slot_mapping: expected neither");
    }
  }

  @Test
  void messagesOfTheBackendNameARowOnce() {
    LayerSpec a = layer("a").build();
    Job job = job(8, a);
    Scenario scenario = new Scenario(job, DTYPE, 5);
    StepRow good = scenario.next("s", a, 2);
    StepRow bad = scenario.next("bad", a, 2);
    try (PagedAttention attention = open(job, 1, OutOfBlocks.SWAP)) {
      for (List<Object> slotAndMessage :
          List.<List<Object>>of(
              List.of(500L, "entry 1 is slot 500, expected below 128 (8 blocks of 16)"),
              List.of(StepBatches.NULL, "expected no nulls inside lists, got some"))) {
        long slot = (Long) slotAndMessage.get(0);
        try (ArrowBatch batch = external(a, List.of(good, bad.withSlots(3, slot)))) {
          assertThatThrownBy(() -> attention.step(batch))
              .isInstanceOf(InvalidBatchException.class)
              .hasMessage(
                  "layer 'a', sequence bad, row 1: column slot_mapping: " + slotAndMessage.get(1));
        }
      }
    }
  }

  @Test
  void columnsOfTheWrongTypeAreNamed() {
    LayerSpec a = layer("a").build();
    Job job = job(8, a);
    StepRow row = new Scenario(job, DTYPE, 5).next("s", a, 1);
    try (PagedAttention attention = open(job, 1, OutOfBlocks.SWAP)) {
      for (String column :
          List.of(
              "seq_len", "end_of_sequence", "parent_sequence_id", "token_ids", "sequence_group")) {
        try (ArrowBatch right = managed(a, List.of(row), false);
            ArrowBatch queries = right.select(right.schema().index("query"));
            ArrowBatch wrong =
                ArrowBatch.join(
                    right
                        .schema()
                        .join(
                            io.broadhead.arrow.BatchSchema.of(
                                renamed(queries.schema().field(0), column))),
                    right,
                    queries)) {
          assertThatThrownBy(() -> attention.step(wrong))
              .isInstanceOf(InvalidBatchException.class)
              .hasMessageContaining("column " + column + ": expected ")
              .hasMessageEndingWith(", got list<tensor[4, 64]<float16>>");
        }
      }
    }
  }

  private static org.apache.arrow.vector.types.pojo.Field renamed(
      org.apache.arrow.vector.types.pojo.Field field, String name) {
    return new org.apache.arrow.vector.types.pojo.Field(
        name, field.getFieldType(), field.getChildren());
  }

  @Test
  void managedTablesCannotFollowExternalOnes() {
    LayerSpec a = layer("a").build();
    Job job = job(8, a);
    Scenario scenario = new Scenario(job, DTYPE, 5);
    try (PagedAttention attention = open(job, 1, OutOfBlocks.SWAP);
        ArrowBatch external = external(a, List.of(scenario.next("s", a, 2)));
        ArrowBatch managed = managed(a, ManagedRow.of(scenario.next("s", a, 1)))) {
      attention.step(external).close();
      assertThatThrownBy(() -> attention.step(managed))
          .isInstanceOf(InvalidBatchException.class)
          .hasMessageContaining("block_table and slot_mapping: expected them");
    }
  }

  @Test
  void paddingRowsSeeNothing() {
    LayerSpec a = layer("a").build();
    Job job = job(8, a);
    Scenario scenario = new Scenario(job, DTYPE, 5);
    StepRow padding = scenario.next("nobody", a, 2, 0).withSeqLen(0);
    try (PagedAttention attention = open(job, 1, OutOfBlocks.SWAP);
        ArrowBatch batch = managed(a, ManagedRow.of(padding));
        ArrowBatch result = attention.step(batch)) {
      assertThat(
              Arrays.stream(StepBatches.read(result, "output")[0]).flatMapToDouble(Arrays::stream))
          .containsOnly(0.0);
      assertThat(tables(attention).sequences()).isZero();
    }
  }

  // ---- queue ---------------------------------------------------------------------------------

  @ParameterizedTest
  @ValueSource(booleans = {true, false})
  void smallBatchesOfALayerAreOneStep(boolean managedTables) {
    LayerSpec a = layer("a").build();
    LayerSpec b = layer("b").build();
    Job job = job(64, a, b);
    Scenario scenario = new Scenario(job, DTYPE, 5);
    List<List<StepRow>> batches = new ArrayList<>();
    for (int step = 0; step < 3; step++) {
      for (int s = 0; s < 6; s++) {
        for (LayerSpec layer : job.layers()) {
          batches.add(List.of(scenario.next("s" + s, layer, step == 0 ? 3 + s : 1)));
        }
      }
    }
    Collected collected = new Collected();
    List<StepReport> reports = new ArrayList<>();
    try (PagedAttention apart = open(job, 1, OutOfBlocks.SWAP);
        PagedAttention joined = open(job, 1, OutOfBlocks.SWAP);
        StepQueue queue = joined.queue(1000, reports::add)) {
      List<double[][][]> expected = new ArrayList<>();
      for (List<StepRow> rows : batches) {
        LayerSpec layer = job.layer(rows.get(0).layer()).orElseThrow();
        try (ArrowBatch batch =
            managedTables ? managed(layer, rows, true) : external(layer, rows)) {
          try (ArrowBatch result = apart.step(batch)) {
            expected.add(StepBatches.read(result, "output"));
          }
          queue.add(batch, collected);
        }
      }
      assertThat(queue.tokens()).isEqualTo(2 * (3 + 4 + 5 + 6 + 7 + 8 + 6 + 6));
      queue.drain();
      // External tables of one sequence in two steps write to a block that is read.
      assertThat(reports)
          .hasSize(managedTables ? 2 : 6)
          .allMatch(report -> report.stats().queryTokens() > 0);
      assertThat(collected.results).hasSize(batches.size());
      for (ArrowBatch result : collected.results) {
        int index = indexOf(batches, result);
        assertThat(StepBatches.read(result, "output")).isDeepEqualTo(expected.get(index));
        result.close();
      }
    }
  }

  private static int indexOf(List<List<StepRow>> batches, ArrowBatch result) {
    String request = result.column("request").getString(0);
    String layer = result.column("layer").getString(0);
    return IntStream.range(0, batches.size())
        .filter(
            i -> {
              StepRow row = batches.get(i).get(0);
              return row.layer().equals(layer)
                  && request.equals("for " + row.sequenceId() + " at " + row.seqLen());
            })
        .findFirst()
        .orElseThrow();
  }

  @ParameterizedTest
  @ValueSource(booleans = {true, false})
  void aLongPromptIsComputedInPiecesBesideShortRows(boolean managedTables) {
    LayerSpec a = layer("a").returnLse(true).build();
    Job job = job(64, a);
    Scenario scenario = new Scenario(job, DTYPE, 5);
    StepRow begin = scenario.next("short", a, 4);
    StepRow prompt = scenario.next("long", a, 150);
    StepRow after = scenario.next("long", a, 1);
    List<StepRow> decode = List.of(scenario.next("short", a, 1));
    Collected collected = new Collected();
    List<StepReport> reports = new ArrayList<>();
    try (PagedAttention whole = open(job, 1, OutOfBlocks.SWAP);
        PagedAttention inPieces = open(job, 1, OutOfBlocks.SWAP);
        StepQueue queue = inPieces.queue(32, reports::add)) {
      List<double[][][]> expected = new ArrayList<>();
      List<Integer> order = new ArrayList<>();
      for (List<StepRow> rows : List.of(List.of(begin), List.of(prompt), List.of(after), decode)) {
        try (ArrowBatch batch = managedTables ? managed(a, rows, true) : external(a, rows)) {
          try (ArrowBatch result = whole.step(batch)) {
            expected.add(StepBatches.read(result, "output"));
            expected.add(StepBatches.read(result, "lse"));
          }
          queue.add(batch, collected);
        }
      }
      while (!queue.isEmpty()) {
        queue.step();
        for (int i = order.size(); i < collected.results.size(); i++) {
          order.add(reports.size());
        }
      }
      assertThat(reports)
          .hasSize(6)
          .extracting(report -> report.stats().queryTokens())
          .allMatch(tokens -> tokens >= 1 && tokens <= 32);
      List<ArrowBatch> results = collected.results;
      if (managedTables) {
        // The decode row did not wait for the prompt; the prompt's own next row did.
        assertThat(results.get(1).column("sequence_id").getString(0)).isEqualTo("short");
        assertThat(order).containsExactly(1, 1, 5, 6);
        results.add(results.remove(1));
      }
      for (int i = 0; i < results.size(); i++) {
        try (ArrowBatch result = results.get(i)) {
          assertThat(StepBatches.error(expected.get(2 * i), StepBatches.read(result, "output")))
              .isLessThan(StepBatches.tolerance(DTYPE));
          assertThat(StepBatches.error(expected.get(2 * i + 1), StepBatches.read(result, "lse")))
              .isLessThan(StepBatches.LSE_TOLERANCE);
        }
      }
    }
  }

  @Test
  void aRefusedRowOfOneBatchLeavesTheOthersAlone() {
    LayerSpec a = layer("a").build();
    Job job = job(64, a);
    Scenario scenario = new Scenario(job, DTYPE, 5);
    Collected collected = new Collected();
    try (PagedAttention attention = open(job, 1, OutOfBlocks.SWAP);
        StepQueue queue = attention.queue(100)) {
      for (List<StepRow> rows :
          List.of(
              List.of(scenario.next("a", a, 2)),
              List.of(scenario.next("b", a, 2), scenario.next("c", a, 1).withSlots(1 << 20)),
              List.of(scenario.next("d", a, 2).withBlocks(77)),
              List.of(scenario.next("e", a, 2)))) {
        try (ArrowBatch batch = external(a, rows)) {
          queue.add(batch, collected);
        }
      }
      queue.drain();
      assertThat(collected.refused).extracting(RefusedRow::sequenceId).containsExactly("c", "d");
      assertThat(collected.refused).extracting(RefusedRow::row).containsExactly(1L, 0L);
      assertThat(collected.results)
          .extracting(ArrowBatch::numRows)
          .containsExactlyInAnyOrder(1, 1, 0, 1);
      collected.results.forEach(ArrowBatch::close);
    }
  }

  @Test
  void anAbsurdBlockIdIsRefusedAndCostsNoMemory() {
    LayerSpec a = layer("a").build();
    Job job = job(8, a);
    StepRow row = new Scenario(job, DTYPE, 5).next("s", a, 2).withBlocks(Integer.MAX_VALUE);
    Collected collected = new Collected();
    ThreadMXBean threads = (ThreadMXBean) ManagementFactory.getThreadMXBean();
    try (PagedAttention attention = open(job, 1, OutOfBlocks.SWAP);
        StepQueue queue = attention.queue(100);
        ArrowBatch batch = external(a, List.of(row))) {
      long before = threads.getCurrentThreadAllocatedBytes();
      queue.add(batch, collected);
      queue.drain();
      assertThat(threads.getCurrentThreadAllocatedBytes() - before).isLessThan(32 << 20);
      assertThat(collected.refused).extracting(RefusedRow::row).containsExactly(0L);
      collected.results.forEach(ArrowBatch::close);
    }
  }

  @Test
  void stepsThatAForkNeedsAreToldAlsoIfTheLastOneFails() {
    LayerSpec a = layer("a").build();
    LayerSpec b = layer("b").build();
    Job job = job(8, a, b);
    Scenario scenario = new Scenario(job, DTYPE, 5);
    ManagedRow parent = ManagedRow.of(scenario.next("parent", a, 3));
    ManagedRow child =
        ManagedRow.of(scenario.next("child", a, 1).withSeqLen(4)).forkedFrom("parent");
    ManagedRow bad = ManagedRow.of(scenario.next("bad", b, 1).withSeqLen(4));
    List<StepReport> reports = new ArrayList<>();
    try (PagedAttention attention = open(job, 1, OutOfBlocks.SWAP);
        StepQueue queue = attention.queue(100, reports::add);
        ArrowBatch first = managed(a, parent);
        ArrowBatch refused = managed(b, bad);
        ArrowBatch second = managed(a, child)) {
      queue.add(first, new Closing());
      queue.add(refused, new Closing());
      assertThat(reports).isEmpty();
      assertThatThrownBy(() -> queue.add(second, new Closing()))
          .isInstanceOf(InvalidBatchException.class)
          .hasMessageContaining("sequence bad, row 0");
      assertThat(reports)
          .singleElement()
          .satisfies(report -> assertThat(report.stats().queryTokens()).isEqualTo(3));
    }
  }

  @Test
  void closingAQueueDropsWhatWaits() {
    LayerSpec a = layer("a").build();
    Job job = job(8, a);
    try (PagedAttention attention = open(job, 1, OutOfBlocks.SWAP);
        StepQueue queue = attention.queue(100);
        ArrowBatch batch = managed(a, ManagedRow.of(new Scenario(job, DTYPE, 5).next("s", a, 2)))) {
      queue.add(batch, new Collected());
      assertThat(queue.isEmpty()).isFalse();
      queue.close();
      assertThat(queue.isEmpty()).isTrue();
    }
  }
}
