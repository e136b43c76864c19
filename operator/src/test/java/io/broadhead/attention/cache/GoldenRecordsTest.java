// SPDX-License-Identifier: Apache-2.0
package io.broadhead.attention.cache;

import static org.assertj.core.api.Assertions.assertThat;

import io.broadhead.attention.testing.GoldenFiles;
import java.io.IOException;
import java.util.BitSet;
import java.util.List;
import java.util.function.Function;
import org.junit.jupiter.api.Test;

/** State that was written once can be read for ever. */
class GoldenRecordsTest {
  private static <T> void assertGolden(
      String name, T record, Function<T, byte[]> write, Function<byte[], T> read)
      throws IOException {
    byte[] written = write.apply(record);
    byte[] golden = GoldenFiles.read(name, written);
    assertThat(read.apply(golden)).usingRecursiveComparison().isEqualTo(record);
    assertThat(written).isEqualTo(golden);
  }

  @Test
  void sequences() throws IOException {
    SequenceRecord expected =
        new SequenceRecord(
            "=parent",
            null,
            0,
            new int[] {300, 299, 17},
            BitSet.valueOf(new long[] {0b100}),
            BitSet.valueOf(new long[] {0b001}),
            300,
            new SequenceRecord.Table(new long[] {40, 41, 7, 1L << 40}, 3, 12),
            new SequenceRecord.Table(new long[] {2}, -1, 0));
    assertGolden("kv-sequence-v1.bin", expected, SequenceRecord::toBytes, SequenceRecord::of);
  }

  @Test
  void lostSequences() throws IOException {
    SequenceRecord.Table none = new SequenceRecord.Table(new long[0], -1, 0);
    SequenceRecord expected =
        new SequenceRecord(
            null, "for want of blocks", 1, new int[2], new BitSet(), new BitSet(), 0, none, none);
    assertGolden("kv-lost-sequence-v1.bin", expected, SequenceRecord::toBytes, SequenceRecord::of);
  }

  @Test
  void fullBlocks() throws IOException {
    BlockRecord expected =
        new BlockRecord(
            new BlockHash(-3, Long.MAX_VALUE),
            new long[0],
            List.of(new BlockPart(0, 0, 2, 0, 9), new BlockPart(1, 0, 2, 9, 16)));
    assertGolden("kv-full-block-v2.bin", expected, BlockRecord::toBytes, BlockRecord::of);
    assertReads("kv-full-block-v1.bin", expected);
  }

  @Test
  void blocksWithRoom() throws IOException {
    assertGolden("kv-block-v2.bin", blockWithRoom(300), BlockRecord::toBytes, BlockRecord::of);
    assertReads("kv-block-v1.bin", blockWithRoom(0));
  }

  private static BlockRecord blockWithRoom(long checkpoint) {
    return new BlockRecord(
        null,
        new long[] {15496, -1, 0},
        1_700_000_000_000L,
        checkpoint,
        List.of(new BlockPart(4, 1, 33, 5, 8)));
  }

  private static void assertReads(String name, BlockRecord expected) throws IOException {
    BlockRecord read = BlockRecord.of(GoldenFiles.read(name));
    assertThat(read).usingRecursiveComparison().isEqualTo(expected);
  }

  @Test
  void headers() throws IOException {
    CacheHeader expected = header(0.5f, 2);
    assertGolden("kv-header-v2.bin", expected, CacheHeader::toBytes, CacheHeader::of);

    CacheHeader withoutScales = header(CacheHeader.UNKNOWN_SCALE, CacheHeader.UNKNOWN_SCALE);
    assertThat(CacheHeader.of(GoldenFiles.read("kv-header-v1.bin"))).isEqualTo(withoutScales);
  }

  private static CacheHeader header(float kScale, float vScale) {
    return new CacheHeader(
        true,
        true,
        128,
        16,
        List.of(
            new CacheHeader.Layer("layer.0", "layer.0", 8, 128, "bfloat16", kScale, vScale),
            new CacheHeader.Layer("layer.1", "layer.0", 8, 128, "", kScale, vScale)));
  }
}
