// SPDX-License-Identifier: Apache-2.0
package io.broadhead.attention.cache;

import java.util.Arrays;
import java.util.HashMap;
import java.util.Map;

/**
 * Makes the sequences of a shard anew from what was written down. Their blocks stay in the store
 * until a step needs them. Used by one thread, before the first step.
 */
final class CacheRestorer {
  private final Shard shard;
  private final CacheShape shape;
  private final BlockSaver saver;
  private final Map<Long, CacheBlock> blocks = new HashMap<>();

  CacheRestorer(Shard shard, CacheShape shape, BlockSaver saver) {
    this.shard = shard;
    this.shape = shape;
    this.saver = saver;
  }

  void addBlock(long id, byte[] record) {
    BlockRecord saved = BlockRecord.of(record);
    CacheBlock block = new CacheBlock(shard, id, shape.caches());
    block.parts.addAll(saved.parts());
    for (BlockPart part : saved.parts()) {
      for (int cache = part.firstCache(); cache < part.endCache(); cache++) {
        block.saved[cache] = part.to();
        block.written[cache] = part.to();
      }
    }
    block.hash = saved.hash();
    if (saved.tokenIds().length > 0) {
      block.tokenIds = Arrays.copyOf(saved.tokenIds(), shape.blockSize());
      block.knownIds = saved.tokenIds().length;
    }
    block.isRecorded = true;
    block.wasRecorded = true;
    blocks.put(id, block);
    shard.nextBlock = Math.max(shard.nextBlock, id + 1);
  }

  void addSequence(String key, byte[] record) {
    SequenceRecord saved = SequenceRecord.of(record);
    Object parent = saved.parent() == null ? null : SequenceKey.parse(saved.parent());
    int layers = shape.layers().size();
    Sequence sequence = new Sequence(shard, SequenceKey.parse(key), parent, layers);
    sequence.wasRecorded = true;
    sequence.lost = saved.lost();
    sequence.lostAt = saved.lostAt();
    System.arraycopy(saved.done(), 0, sequence.done, 0, layers);
    System.arraycopy(saved.done(), 0, sequence.planned, 0, layers);
    sequence.unverified.or(saved.unverified());
    sequence.ended.or(saved.ended());
    sequence.endAt = saved.endAt();
    restore(sequence.own, saved.own());
    restore(sequence.cross, saved.cross());
    shard.sequences.put(sequence.id, sequence);
  }

  private void restore(BlockTable table, SequenceRecord.Table saved) {
    for (long id : saved.blocks()) {
      CacheBlock block = blocks.get(id);
      if (block == null) {
        throw new IllegalStateException("the state lacks block " + id + " of a sequence");
      }
      block.references++;
      table.add(block);
    }
    table.borrowed = saved.borrowed();
    table.borrowedTokens = saved.borrowedTokens();
  }

  /** Ends the restoration: blocks that no sequence has are of those that had ended. */
  void finish() {
    for (CacheBlock block : blocks.values()) {
      if (block.references == 0) {
        saver.remove(block);
      } else if (block.hash != null) {
        shard.blocksByHash.putIfAbsent(block.hash, block);
      }
    }
  }
}
