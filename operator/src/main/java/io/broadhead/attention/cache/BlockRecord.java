// SPDX-License-Identifier: Apache-2.0
package io.broadhead.attention.cache;

import java.util.ArrayList;
import java.util.List;

/**
 * What is written down of a block: which parts the store has of it, and what tokens it holds.
 *
 * <p>Format 1: flag and two numbers of the hash; count and ids of the tokens of a block without
 * one; time; count of the parts, and of each its number, caches and tokens. Format 2: behind the
 * time the checkpoint.
 *
 * @param hash of a managed block that is full of known tokens, or null
 * @param tokenIds of the leading known tokens of a managed block without a hash
 * @param writtenAt when a block of external tables was last written to, in milliseconds; else 0
 * @param checkpoint the first one that has what was written then; 0 for managed blocks and in
 *     format 1
 */
record BlockRecord(
    BlockHash hash, long[] tokenIds, long writtenAt, long checkpoint, List<BlockPart> parts) {
  static final int VERSION = 2;

  /** A record of a managed block. */
  BlockRecord(BlockHash hash, long[] tokenIds, List<BlockPart> parts) {
    this(hash, tokenIds, 0, 0, parts);
  }

  byte[] toBytes() {
    RecordWriter writer = new RecordWriter(VERSION).flag(hash != null);
    if (hash != null) {
      writer.signed(hash.high()).signed(hash.low());
    }
    writer.number(tokenIds.length);
    for (long id : tokenIds) {
      writer.signed(id);
    }
    writer.number(writtenAt).number(checkpoint).number(parts.size());
    for (BlockPart part : parts) {
      writer
          .number(part.number())
          .number(part.firstCache())
          .number(part.endCache())
          .number(part.from())
          .number(part.to());
    }
    return writer.toBytes();
  }

  static BlockRecord of(byte[] bytes) {
    RecordReader reader = new RecordReader(bytes, "record of a block", VERSION);
    BlockHash hash = reader.flag() ? new BlockHash(reader.signed(), reader.signed()) : null;
    long[] tokenIds = new long[reader.integer()];
    for (int i = 0; i < tokenIds.length; i++) {
      tokenIds[i] = reader.signed();
    }
    long writtenAt = reader.number();
    long checkpoint = reader.version() >= 2 ? reader.number() : 0;
    int count = reader.integer();
    List<BlockPart> parts = new ArrayList<>(count);
    for (int i = 0; i < count; i++) {
      parts.add(
          new BlockPart(
              reader.integer(),
              reader.integer(),
              reader.integer(),
              reader.integer(),
              reader.integer()));
    }
    return new BlockRecord(hash, tokenIds, writtenAt, checkpoint, parts);
  }
}
