// SPDX-License-Identifier: Apache-2.0
package io.broadhead.attention.cache;

import java.util.Arrays;
import java.util.List;

/**
 * Carries the contents of managed blocks from the pool to the store and back. Every token goes to
 * the store once: what was saved before is never written again. Used by one thread.
 */
final class BlockSaver {
  private final PartContents contents;
  private final PartStore parts;
  private final RecordStore records;
  private final CacheCounters counters;

  BlockSaver(
      BlockMemory memory,
      int blockSize,
      PartStore parts,
      RecordStore records,
      CacheCounters counters) {
    this.contents = new PartContents(memory, blockSize);
    this.parts = parts;
    this.records = records;
    this.counters = counters;
  }

  /** Puts what was written since the last time into the store. */
  void save(CacheBlock block) {
    int caches = block.written.length;
    for (int first = 0, end; first < caches; first = end) {
      int from = block.saved[first];
      int to = block.written[first];
      end = first + 1;
      if (from == to) {
        continue;
      }
      int size = contents.bytes(first, to - from);
      while (end < caches
          && block.saved[end] == from
          && block.written[end] == to
          && size + contents.bytes(end, to - from) <= PartContents.PART_BYTES) {
        size += contents.bytes(end++, to - from);
      }
      BlockPart part = new BlockPart(block.parts.size(), first, end, from, to);
      parts.put(block.shard.key, block.id, part.number(), contents.read(block.place, part));
      block.parts.add(part);
      block.isRecorded = false;
      for (int cache = first; cache < end; cache++) {
        block.saved[cache] = to;
      }
      counters.bytesSaved += size;
    }
  }

  /** Writes down what the store has of a block, unless it says so already. */
  void record(CacheBlock block) {
    if (!block.isRecorded) {
      long[] ids = block.tokenIds == null ? new long[0] : block.tokenIds;
      long[] known = Arrays.copyOf(ids, Math.min(ids.length, block.knownIds));
      BlockRecord record = new BlockRecord(block.hash, known, List.copyOf(block.parts));
      records.putBlock(block.shard.key, block.id, record.toBytes());
      block.isRecorded = true;
      block.wasRecorded = true;
    }
  }

  /** Fills the place of a block that has just got one from the store. */
  void load(CacheBlock block) {
    List<byte[]> saved =
        block.parts.stream()
            .map(part -> parts.get(block.shard.key, block.id, part.number()))
            .toList();
    contents.write(block.place, block.parts, saved);
  }

  /** Removes a block that nobody will ask for again from the store. */
  void remove(CacheBlock block) {
    for (BlockPart part : block.parts) {
      parts.remove(block.shard.key, block.id, part.number());
    }
    block.parts.clear();
    if (block.wasRecorded) {
      records.removeBlock(block.shard.key, block.id);
    }
  }
}
