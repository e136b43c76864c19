// SPDX-License-Identifier: Apache-2.0
package io.broadhead.attention.cache;

/**
 * Where a cache is kept beyond the pool. Immutable.
 *
 * @param parts contents of blocks
 * @param records what there is
 * @param savesContents whether contents are saved when the cache is, or only which sequences there
 *     are
 */
public record CacheStores(PartStore parts, RecordStore records, boolean savesContents) {
  /** Sequences that are swapped out go to the Java heap; nothing is saved. */
  public static CacheStores onHeap() {
    return new CacheStores(new HostPartStore(), RecordStore.NONE, false);
  }

  /** What there is of blocks: nothing, where their contents are not saved. */
  RecordStore blockRecords() {
    return savesContents ? records : RecordStore.NONE;
  }

  /** Whether {@link KvCacheManager#save} has anywhere to write to. */
  public boolean savesAnything() {
    return records != RecordStore.NONE;
  }
}
