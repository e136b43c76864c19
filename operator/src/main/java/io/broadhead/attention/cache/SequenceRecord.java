// SPDX-License-Identifier: Apache-2.0
package io.broadhead.attention.cache;

import java.util.BitSet;

/**
 * What is written down of a sequence.
 *
 * <p>Format 1: flag and key of the parent; flag, text and layer of a sequence that was lost; tokens
 * of each layer; layers to be verified; layers that have ended; tokens at the end; and of both
 * tables the borrowed block and its tokens, then the blocks, each as its distance from the one
 * before.
 *
 * @param parent key of what it was forked from, or null
 * @param lost why its tokens are gone, or null
 * @param own blocks of its own tokens
 * @param cross blocks of an encoder's tokens
 */
record SequenceRecord(
    String parent,
    String lost,
    int lostAt,
    int[] done,
    BitSet unverified,
    BitSet ended,
    int endAt,
    Table own,
    Table cross) {
  static final int VERSION = 1;

  /** Ids of a table's blocks; {@code borrowed} as in {@link BlockTable}. */
  record Table(long[] blocks, int borrowed, int borrowedTokens) {
    static Table of(BlockTable table) {
      long[] blocks = new long[table.size()];
      for (int i = 0; i < blocks.length; i++) {
        blocks[i] = table.get(i).id;
      }
      return new Table(blocks, table.borrowed, table.borrowedTokens);
    }

    private void write(RecordWriter writer) {
      writer.signed(borrowed).number(borrowedTokens).number(blocks.length);
      long before = 0;
      for (long block : blocks) {
        writer.signed(block - before);
        before = block;
      }
    }

    private static Table read(RecordReader reader) {
      int borrowed = (int) reader.signed();
      int borrowedTokens = reader.integer();
      long[] blocks = new long[reader.integer()];
      long before = 0;
      for (int i = 0; i < blocks.length; i++) {
        blocks[i] = before += reader.signed();
      }
      return new Table(blocks, borrowed, borrowedTokens);
    }
  }

  static SequenceRecord of(Sequence sequence) {
    return new SequenceRecord(
        sequence.parent == null ? null : SequenceKey.of(sequence.parent),
        sequence.lost,
        sequence.lostAt,
        sequence.done,
        sequence.unverified,
        sequence.ended,
        sequence.endAt,
        Table.of(sequence.own),
        Table.of(sequence.cross));
  }

  /** Of a sequence whose keys and values are not saved: to be lost when it is restored. */
  static SequenceRecord withoutContents(Sequence sequence) {
    boolean isLost = sequence.lost != null;
    int firstLayer = 0;
    while (!isLost && sequence.done[firstLayer] == 0 && firstLayer < sequence.done.length - 1) {
      firstLayer++;
    }
    Table none = new Table(new long[0], -1, 0);
    return new SequenceRecord(
        null,
        isLost ? sequence.lost : "its keys and values were not kept when the job was restarted",
        isLost ? sequence.lostAt : firstLayer,
        new int[sequence.done.length],
        new BitSet(),
        sequence.ended,
        0,
        none,
        none);
  }

  byte[] toBytes() {
    RecordWriter writer = new RecordWriter(VERSION).flag(parent != null);
    if (parent != null) {
      writer.text(parent);
    }
    writer.flag(lost != null);
    if (lost != null) {
      writer.text(lost).number(lostAt);
    }
    writer.numbers(done).bits(unverified).bits(ended).number(endAt);
    own.write(writer);
    cross.write(writer);
    return writer.toBytes();
  }

  static SequenceRecord of(byte[] bytes) {
    RecordReader reader = new RecordReader(bytes, "record of a sequence", VERSION);
    String parent = reader.flag() ? reader.text() : null;
    String lost = reader.flag() ? reader.text() : null;
    return new SequenceRecord(
        parent,
        lost,
        lost == null ? 0 : reader.integer(),
        reader.numbers(),
        reader.bits(),
        reader.bits(),
        reader.integer(),
        Table.read(reader),
        Table.read(reader));
  }
}
