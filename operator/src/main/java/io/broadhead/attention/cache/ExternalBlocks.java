// SPDX-License-Identifier: Apache-2.0
package io.broadhead.attention.cache;

import java.util.ArrayList;
import java.util.BitSet;
import java.util.HashMap;
import java.util.List;
import java.util.Map;

/**
 * What has to be saved of a pool whose blocks a producer hands out. Nobody here knows the
 * sequences: a block belongs to the shard whose rows wrote to it last, and is saved under its own
 * number, run by run of what was written since the last time. Runs that later ones have replaced
 * are removed.
 *
 * <p>Used by one thread.
 */
public final class ExternalBlocks {
  private final int blockSize;
  private final int numBlocks;
  private final int caches;
  private final PartContents contents;
  private final PartStore store;
  private final RecordStore records;
  private final CacheCounters counters = new CacheCounters();
  private final Map<Integer, Block> blocks = new HashMap<>();

  /** For each cache, slots that were written since the last time. */
  private final BitSet[] dirty;

  private final BitSet dirtyBlocks = new BitSet();

  private static final class Block {
    int shard;
    long writtenAt;
    long checkpoint;
    int nextPart;
    final List<BlockPart> parts = new ArrayList<>();

    Block(int shard) {
      this.shard = shard;
    }

    /**
     * Whether it was written to after {@code other}, by a subtask of the same job. Clocks of
     * different machines are only asked for what one checkpoint has.
     */
    boolean isYounger(Block other) {
      return checkpoint == other.checkpoint
          ? writtenAt > other.writtenAt
          : checkpoint > other.checkpoint;
    }
  }

  /** A run of written tokens of a block in one cache. */
  private record Run(int from, int to) {}

  /**
   * @throws IllegalStateException if the pool has so many slots that what was written to them
   *     cannot be noted
   */
  public ExternalBlocks(
      CacheShape shape, BlockMemory memory, PartStore store, RecordStore records) {
    int mostBlocks = Integer.MAX_VALUE / shape.blockSize();
    if (shape.numBlocks() > mostBlocks) {
      throw new IllegalStateException(
          "kv_cache.num_blocks: expected at most "
              + mostBlocks
              + " where caches with external block tables are saved, got "
              + shape.numBlocks());
    }
    this.blockSize = shape.blockSize();
    this.numBlocks = shape.numBlocks();
    this.caches = shape.caches();
    this.contents = new PartContents(memory, blockSize);
    this.store = store;
    this.records = records;
    this.dirty = new BitSet[caches];
    for (int cache = 0; cache < caches; cache++) {
      dirty[cache] = new BitSet();
    }
  }

  public CacheCounters counters() {
    return counters;
  }

  /**
   * Tokens were written to slots {@code from} to {@code to} - 1 of a cache by a row of {@code
   * shard}.
   *
   * @param now milliseconds since the epoch
   */
  public void written(int shard, int cache, long from, long to, long now) {
    int end = Math.toIntExact(to);
    dirty[cache].set((int) from, end);
    for (int number = (int) from / blockSize; number <= (end - 1) / blockSize; number++) {
      dirtyBlocks.set(number);
      Block block = blocks.computeIfAbsent(number, n -> new Block(shard));
      if (block.shard != shard) {
        moveTo(shard, number, block);
      }
      block.writtenAt = now;
    }
  }

  /** The block goes to another shard with all it has. */
  private void moveTo(int shard, int number, Block block) {
    for (BlockPart part : block.parts) {
      for (int cache = part.firstCache(); cache < part.endCache(); cache++) {
        dirty[cache].set(number * blockSize + part.from(), number * blockSize + part.to());
      }
    }
    remove(number, block);
    block.shard = shard;
  }

  private void remove(int number, Block block) {
    for (BlockPart part : block.parts) {
      store.remove(block.shard, number, part.number());
    }
    if (!block.parts.isEmpty()) {
      records.removeBlock(block.shard, number);
      block.parts.clear();
    }
  }

  /**
   * Saves what was written since the last time.
   *
   * @param checkpoint rises from one time to the next, and is the same in all subtasks of a job
   */
  public void save(long checkpoint) {
    for (int number = dirtyBlocks.nextSetBit(0);
        number >= 0;
        number = dirtyBlocks.nextSetBit(number + 1)) {
      Block block = blocks.get(number);
      block.checkpoint = checkpoint;
      save(number, block);
    }
    dirtyBlocks.clear();
    for (BitSet slots : dirty) {
      slots.clear();
    }
  }

  private void save(int number, Block block) {
    for (int first = 0, end; first < caches; first = end) {
      List<Run> runs = runs(first, number);
      end = first + 1;
      if (runs.isEmpty()) {
        continue;
      }
      int tokens = runs.stream().mapToInt(run -> run.to - run.from).sum();
      long size = contents.bytes(first, tokens);
      while (end < caches
          && written(end, number).equals(written(first, number))
          && size + contents.bytes(end, tokens) <= PartContents.PART_BYTES) {
        size += contents.bytes(end++, tokens);
      }
      for (Run run : runs) {
        BlockPart part = new BlockPart(block.nextPart++, first, end, run.from, run.to);
        byte[] bytes = contents.read(number, part);
        store.put(block.shard, number, part.number(), bytes);
        block.parts.add(part);
        counters.bytesSaved += bytes.length;
      }
    }
    removeReplaced(number, block);
    records.putBlock(
        block.shard,
        number,
        new BlockRecord(
                null, new long[0], block.writtenAt, block.checkpoint, List.copyOf(block.parts))
            .toBytes());
  }

  /** The slots of a block that were written in a cache. */
  private BitSet written(int cache, int number) {
    return dirty[cache].get(number * blockSize, (number + 1) * blockSize);
  }

  private List<Run> runs(int cache, int number) {
    List<Run> runs = new ArrayList<>(1);
    int begin = number * blockSize;
    int end = begin + blockSize;
    for (int from = dirty[cache].nextSetBit(begin), to;
        from >= 0 && from < end;
        from = dirty[cache].nextSetBit(to)) {
      to = Math.min(dirty[cache].nextClearBit(from), end);
      runs.add(new Run(from - begin, to - begin));
    }
    return runs;
  }

  /** A part whose every token is in a later one in each of its caches is not needed. */
  private void removeReplaced(int number, Block block) {
    BitSet later = new BitSet(); // caches * blockSize
    for (int i = block.parts.size() - 1; i >= 0; i--) {
      BlockPart part = block.parts.get(i);
      boolean needed = false;
      for (int cache = part.firstCache(); cache < part.endCache(); cache++) {
        int from = cache * blockSize + part.from();
        int to = cache * blockSize + part.to();
        needed |= later.nextClearBit(from) < to;
        later.set(from, to);
      }
      if (!needed) {
        store.remove(block.shard, number, part.number());
        block.parts.remove(i);
      }
    }
  }

  /**
   * Brings a block back to where it was. Where two shards of different subtasks have written to a
   * block, it is of the one that wrote last.
   *
   * @throws IllegalStateException if the pool has no such block
   */
  public void restore(int shard, long number, byte[] record) {
    if (number >= numBlocks) {
      throw new IllegalStateException(
          "kv_cache.num_blocks: expected more than "
              + number
              + ", a block that the producer's tables had when the state was written, got "
              + numBlocks);
    }
    BlockRecord saved = BlockRecord.of(record);
    Block block = new Block(shard);
    block.parts.addAll(saved.parts());
    block.writtenAt = saved.writtenAt();
    block.checkpoint = saved.checkpoint();
    block.nextPart = block.parts.stream().mapToInt(BlockPart::number).max().orElse(-1) + 1;
    Block other = blocks.get((int) number);
    if (other != null && other.isYounger(block)) {
      remove((int) number, block);
      return;
    }
    if (other != null) {
      remove((int) number, other);
    }
    blocks.put((int) number, block);
    List<byte[]> contentsOfParts =
        block.parts.stream().map(part -> store.get(shard, number, part.number())).toList();
    contents.write((int) number, block.parts, contentsOfParts);
  }
}
