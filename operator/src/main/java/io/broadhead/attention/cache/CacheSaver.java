// SPDX-License-Identifier: Apache-2.0
package io.broadhead.attention.cache;

import java.util.Collection;

/**
 * Writes down what changed in the sequences of a cache since the last time. Used by one thread,
 * between steps.
 */
final class CacheSaver {
  private final BlockSaver blocks;
  private final RecordStore records;
  private final boolean savesContents;
  private final int blockSize;

  /**
   * @param savesContents whether keys and values are saved, or only which sequences there are
   */
  CacheSaver(BlockSaver blocks, RecordStore records, boolean savesContents, int blockSize) {
    this.blocks = blocks;
    this.records = records;
    this.savesContents = savesContents;
    this.blockSize = blockSize;
  }

  /**
   * @param step number of the step that comes next
   */
  void save(Collection<Shard> shards, long step) {
    for (Shard shard : shards) {
      for (Sequence sequence : shard.sequences.values()) {
        if (sequence.lastStep >= sequence.savedBefore) {
          save(sequence);
          sequence.savedBefore = step;
        }
      }
    }
  }

  private void save(Sequence sequence) {
    if (savesContents) {
      save(sequence.own);
      save(sequence.cross);
    }
    SequenceRecord record =
        savesContents ? SequenceRecord.of(sequence) : SequenceRecord.withoutContents(sequence);
    records.putSequence(sequence.shard.key, SequenceKey.of(sequence.id), record.toBytes());
    sequence.wasRecorded = true;
  }

  private void save(BlockTable table) {
    for (int i = table.finished; i < table.size(); i++) {
      CacheBlock block = table.get(i);
      blocks.save(block);
      blocks.record(block);
      if (i == table.finished && isFinished(block)) {
        table.finished++;
      }
    }
  }

  /** Whether nothing will ever be added to a block. */
  private boolean isFinished(CacheBlock block) {
    for (int saved : block.saved) {
      if (saved < blockSize) {
        return false;
      }
    }
    return true;
  }
}
