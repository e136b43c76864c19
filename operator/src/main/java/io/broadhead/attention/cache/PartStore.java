// SPDX-License-Identifier: Apache-2.0
package io.broadhead.attention.cache;

/**
 * Where the contents of blocks are kept beyond the pool, in parts: a part is a run of tokens that
 * was written at once. Parts are never changed. Used by one thread.
 */
public interface PartStore {
  void put(int shard, long block, int part, byte[] contents);

  /** What was put; the caller does not change it. */
  byte[] get(int shard, long block, int part);

  void remove(int shard, long block, int part);
}
