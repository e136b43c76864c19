// SPDX-License-Identifier: Apache-2.0
package io.broadhead.attention.cache;

/**
 * Where it is written down which sequences there are and what the parts of blocks are, so that a
 * cache can be restored. Records are put while the cache is saved, and removed as soon as what they
 * describe is gone. Used by one thread.
 */
public interface RecordStore {
  /** Keeps nothing. */
  RecordStore NONE =
      new RecordStore() {
        @Override
        public void putSequence(int shard, String key, byte[] record) {}

        @Override
        public void removeSequence(int shard, String key) {}

        @Override
        public void putBlock(int shard, long block, byte[] record) {}

        @Override
        public void removeBlock(int shard, long block) {}
      };

  void putSequence(int shard, String key, byte[] record);

  void removeSequence(int shard, String key);

  void putBlock(int shard, long block, byte[] record);

  void removeBlock(int shard, long block);
}
