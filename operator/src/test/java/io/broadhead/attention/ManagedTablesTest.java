// SPDX-License-Identifier: Apache-2.0
package io.broadhead.attention;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import io.broadhead.arrow.ArrowBatch;
import io.broadhead.attention.job.AttnType;
import io.broadhead.attention.job.Job;
import io.broadhead.attention.job.KvCacheDtype;
import io.broadhead.attention.job.LayerSpec;
import io.broadhead.attention.job.RopeSpec;
import io.broadhead.attention.testing.ManagedRow;
import io.broadhead.attention.testing.Scenario;
import io.broadhead.attention.testing.StepBatches;
import io.broadhead.attention.testing.StepRow;
import io.broadhead.kernel.ErrorCode;
import io.broadhead.kernel.KernelException;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.stream.LongStream;
import java.util.stream.Stream;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.Arguments;
import org.junit.jupiter.params.provider.MethodSource;
import org.junit.jupiter.params.provider.ValueSource;

/** Block tables that are kept here: their tokens, forks, shared prefixes, and swapping. */
class ManagedTablesTest extends AttentionFixture {
  static Stream<Arguments> jobs() {
    return Stream.of(
            job(layer("a").build(), layer("b").slidingWindow(9).build()),
            job(
                layer("rope").rope(new RopeSpec(64, 256, 10000, true)).build(),
                layer("sharing").kvSharingTargetLayerName("rope").build()),
            job(
                layer("self").build(),
                layer("cross").attnType(AttnType.ENCODER_DECODER).build(),
                layer("sharing")
                    .attnType(AttnType.ENCODER_DECODER)
                    .kvSharingTargetLayerName("cross")
                    .build()),
            job(layer("fp8").kvCacheDtype(KvCacheDtype.FP8_E4M3).kScale(0.5f).build()))
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
    try (PagedAttention managed = open(job);
        PagedAttention external = open(job)) {
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

  /** The layer that shares has had no rows for keys that came without queries. */
  @Test
  void aForkHasWhatItsParentHasInTheLayersThatWrite() {
    LayerSpec sharing = layer("sharing").kvSharingTargetLayerName("a").build();
    Job job = job(a, sharing);
    Scenario scenario = new Scenario(job, DTYPE, 3);
    StepRow prompt = scenario.next("parent", a, 9);
    StepRow first = scenario.next("parent", sharing, 9, 9).withoutKeys();
    StepRow rest = scenario.next("parent", a, 0, 20);
    StepRow child = scenario.next("parent", a, 2).withSequenceId("child");
    StepRow shared = scenario.next("parent", sharing, 2, 22).withSequenceId("child").withoutKeys();
    try (PagedAttention attention = open(job);
        PagedAttention apart = open(job)) {
      run(attention, a, ManagedRow.of(prompt));
      run(attention, sharing, ManagedRow.of(first));
      run(attention, a, ManagedRow.of(rest));
      for (StepRow row : List.of(prompt, rest)) {
        run(apart, a, ManagedRow.of(row.withSequenceId("child")));
      }
      for (StepRow row : List.of(child, shared)) {
        LayerSpec layer = job.layer(row.layer()).orElseThrow();
        try (ArrowBatch forked = managed(layer, ManagedRow.of(row).forkedFrom("parent"));
            ArrowBatch whole = managed(layer, ManagedRow.of(row));
            ArrowBatch expected = apart.step(whole);
            ArrowBatch got = attention.step(forked)) {
          assertSameBits(got, expected);
        }
      }
    }
  }

  @Test
  void aForkReadsItsParentsTokensAndWritesItsOwn() {
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
        StepRow child =
            scenario.next("other" + layer, spec, 1).withSequenceId("child").withSeqLen(21);
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

  /** What the row gives if its sequence is sent by itself. */
  private double[][] alone(
      PagedAttention attention, LayerSpec layer, Object id, StepRow prompt, StepRow row) {
    run(attention, layer, ManagedRow.of(prompt.withSequenceId(id)));
    try (ArrowBatch batch = managed(layer, ManagedRow.of(row.withSequenceId(id)));
        ArrowBatch result = attention.step(batch)) {
      return StepBatches.read(result, "output")[0];
    }
  }

  @Test
  void sequencesThatBeginAlikeShareFullBlocks() {
    Job job = job(16, a, b);
    Scenario scenario = new Scenario(job, DTYPE, 3);
    long[] ids = LongStream.range(100, 140).toArray();
    try (PagedAttention attention = open(job, 1, OutOfBlocks.FAIL)) {
      for (LayerSpec layer : job.layers()) {
        StepRow first = scenario.next("first", layer, 40);
        StepRow second = first.withSequenceId("second").withSeqLen(40);
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
            ManagedRow.of(scenario.next("x", layer, 1).withSequenceId("second").withSeqLen(41))
                .withTokenIds(2)
                .last());
      }
      assertThat(inUse(attention)).isZero();
      // The blocks are kept for those who come later.
      StepRow third = scenario.next("y", a, 40).withSequenceId("third").withSeqLen(40);
      run(attention, a, ManagedRow.of(third).withTokenIds(ids));
      assertThat(attention.lastStep().writtenTokens()).isEqualTo(8);
      assertThat(tables(attention).counters().tokensHit()).isEqualTo(3 * 32);
    }
  }

  @ParameterizedTest
  @ValueSource(ints = {1, 2})
  void swappedSequencesGiveTheSameResults(int threads) {
    List<LayerSpec> layers = List.of(a, b);
    Scenario scenario = new Scenario(job(a, b), DTYPE, 5);
    try (PagedAttention small = open(job(7, a, b), threads, OutOfBlocks.SWAP);
        PagedAttention large = open(job(a, b), threads, OutOfBlocks.SWAP)) {
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
    Job job = job(4, a);
    Scenario scenario = new Scenario(job(a), DTYPE, 5);
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
    Scenario scenario = new Scenario(job(a), DTYPE, 5);
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
    Job job = job(8, a);
    Scenario scenario = new Scenario(job, DTYPE, 5);
    try (PagedAttention attention = open(job);
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

  @Test
  void paddingRowsSeeNothing() {
    Job job = job(8, a);
    Scenario scenario = new Scenario(job, DTYPE, 5);
    StepRow padding = scenario.next("nobody", a, 2, 0).withSeqLen(0);
    try (PagedAttention attention = open(job);
        ArrowBatch batch = managed(a, ManagedRow.of(padding));
        ArrowBatch result = attention.step(batch)) {
      assertThat(
              Arrays.stream(StepBatches.read(result, "output")[0]).flatMapToDouble(Arrays::stream))
          .containsOnly(0.0);
      assertThat(tables(attention).sequences()).isZero();
    }
  }

  /** However large it says they are: it reads no block that is not its sequence's. */
  @Test
  void aSharingLayerSeesNoMoreTokensThanItsOwnerHas() {
    LayerSpec own = layer("own").build();
    LayerSpec ownShared = layer("own shared").kvSharingTargetLayerName("own").build();
    LayerSpec cross = layer("cross").attnType(AttnType.ENCODER_DECODER).build();
    LayerSpec crossShared =
        layer("cross shared")
            .attnType(AttnType.ENCODER_DECODER)
            .kvSharingTargetLayerName("cross")
            .build();
    Job job = job(own, ownShared, cross, crossShared);
    Scenario scenario = new Scenario(job, DTYPE, 5);
    List<RefusedRow> refused = new ArrayList<>();
    try (PagedAttention attention = open(job)) {
      for (LayerSpec owner : List.of(own, cross)) {
        run(attention, owner, ManagedRow.of(scenario.next("s", owner, 5)));
      }
      for (int seqLen : new int[] {6, 70, 1000}) {
        for (StepRow row :
            List.of(
                scenario.next("s", crossShared, 1, 0),
                scenario.next("s", ownShared, 1, 0),
                scenario.next("s", ownShared, 0, 0))) {
          LayerSpec layer = job.layer(row.layer()).orElseThrow();
          try (ArrowBatch batch = managed(layer, ManagedRow.of(row.withSeqLen(seqLen)));
              ArrowBatch result = attention.step(batch, refused::add)) {
            assertThat(result.numRows()).as("%s tokens in %s", seqLen, layer.name()).isZero();
          }
        }
      }
      assertThat(refused.subList(0, 3))
          .extracting(RefusedRow::message)
          .containsExactly(
              "column seq_len: 6, expected 5 (5 tokens in the cache and 0 new ones)",
              "column sequence_id: sequence s has 5 tokens in the cache that layer own shared reads,"
                  + " expected 6 (those of own come first)",
              "column sequence_id: sequence s has 5 tokens in the cache that layer own shared reads,"
                  + " expected 6 (those of own come first)");
    }
  }
}
