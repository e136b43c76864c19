// SPDX-License-Identifier: Apache-2.0
package io.broadhead.attention.cache;

import io.broadhead.kernel.PlannedRows;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;

/**
 * Extends a sequence's table by a row's new tokens and says which of them are written where. Used
 * by one thread.
 */
final class TokenWriter {
  private final int blockSize;
  private final int caches;
  private final BlockMemory memory;
  private final Residency residency;
  private final CacheCounters counters;
  private final UndoLog undo;

  /** Borrowed blocks that were copied, until the step is computed. */
  private final List<CacheBlock> returned = new ArrayList<>();

  TokenWriter(
      CacheShape shape,
      BlockMemory memory,
      Residency residency,
      CacheCounters counters,
      UndoLog undo) {
    this.blockSize = shape.blockSize();
    this.caches = shape.caches();
    this.memory = memory;
    this.residency = residency;
    this.counters = counters;
    this.undo = undo;
  }

  /** Places the row's tokens at positions {@code start} to {@code end} - 1 of {@code sequence}. */
  void write(Sequence sequence, RowRequest row, int start, int end, PlannedRows places)
      throws StepFullException {
    int cache = row.layer().cache();
    BlockTable table = sequence.table(row.layer().cross());
    for (int position = start; position < end; ) {
      int index = position / blockSize;
      int from = position % blockSize;
      int to = Math.min(blockSize, from + end - position);
      TokenIds ids = TokenIds.of(row, position - start, to - from);
      CacheBlock block =
          index < table.size() ? ownBlock(sequence, table, index) : nextBlock(sequence, table, ids);
      int there = Math.max(0, Math.min(block.written[cache], to) - from);
      if (there > 0) {
        counters.tokensHit += there;
        places.addPadding(there);
      }
      if (from + there < to) {
        places.addSlots((long) block.place * blockSize + from + there, to - from - there);
        setWritten(block, cache, to);
      }
      know(table, index, from, ids);
      position += to - from;
    }
  }

  /** The step was computed: copies have taken the place of what was borrowed. */
  void commit() {
    returned.forEach(residency::drop);
    returned.clear();
  }

  private void setWritten(CacheBlock block, int cache, int tokens) {
    int before = block.written[cache];
    undo.add(() -> block.written[cache] = before);
    block.written[cache] = tokens;
  }

  /** The block at {@code index}, copied first if it is only borrowed. */
  private CacheBlock ownBlock(Sequence sequence, BlockTable table, int index)
      throws StepFullException {
    CacheBlock block = table.get(index);
    if (index != table.borrowed) {
      return block;
    }
    CacheBlock copy = newBlock(sequence);
    memory.copy(block.place, copy.place);
    counters.blocksCopied++;
    int kept = table.borrowedTokens;
    for (int cache = 0; cache < caches; cache++) {
      copy.written[cache] = Math.min(block.written[cache], kept);
    }
    if (block.tokenIds != null && block.knownIds >= kept) {
      copy.tokenIds = Arrays.copyOf(block.tokenIds, blockSize);
      copy.knownIds = kept;
    }
    table.set(index, copy);
    table.borrowed = -1;
    undo.add(
        () -> {
          table.set(index, block);
          table.borrowed = index;
        });
    returned.add(block);
    undo.add(() -> returned.remove(returned.size() - 1));
    return copy;
  }

  /**
   * Adds the next block to a table: one with the same tokens that is there already, or a new one.
   */
  private CacheBlock nextBlock(Sequence sequence, BlockTable table, TokenIds ids)
      throws StepFullException {
    BlockHash hash = ids.count() == blockSize ? hash(table, table.size(), ids.toArray()) : null;
    CacheBlock same = hash == null ? null : sequence.shard.blocksByHash.get(hash);
    CacheBlock block = same;
    if (same == null) {
      block = newBlock(sequence);
    } else {
      residency.share(same, sequence);
      undo.add(() -> residency.drop(same));
    }
    table.add(block);
    undo.add(table::removeLast);
    return block;
  }

  private CacheBlock newBlock(Sequence sequence) throws StepFullException {
    CacheBlock block = new CacheBlock(sequence.shard, sequence.shard.nextBlock++, caches);
    residency.create(block, sequence);
    undo.add(() -> residency.drop(block));
    return block;
  }

  /** Null unless every block before is full of known tokens. */
  private static BlockHash hash(BlockTable table, int index, long[] tokenIds) {
    BlockHash before = index == 0 ? BlockHash.START : table.get(index - 1).hash;
    return before == null ? null : BlockHash.of(before, tokenIds);
  }

  /**
   * Remembers the ids of tokens from {@code from} on in a block, and what it is once it is full.
   */
  private void know(BlockTable table, int index, int from, TokenIds ids) {
    CacheBlock block = table.get(index);
    // Rows of other layers name the same tokens again.
    if (ids.count() == 0 || block.hash != null || block.knownIds != from) {
      return;
    }
    if (block.tokenIds == null) {
      block.tokenIds = new long[blockSize];
    }
    ids.copyTo(block.tokenIds, from);
    block.knownIds = from + ids.count();
    block.isRecorded = false;
    undo.add(() -> block.knownIds = from);
    if (block.knownIds == blockSize) {
      seal(table, index, block);
    }
  }

  private void seal(BlockTable table, int index, CacheBlock block) {
    long[] ids = block.tokenIds;
    BlockHash hash = hash(table, index, ids);
    if (hash == null) {
      return;
    }
    block.hash = hash;
    block.tokenIds = null;
    block.isRecorded = false;
    boolean first = block.shard.blocksByHash.putIfAbsent(hash, block) == null;
    undo.add(
        () -> {
          if (first) {
            block.shard.blocksByHash.remove(hash, block);
          }
          block.hash = null;
          block.tokenIds = ids;
        });
  }
}
