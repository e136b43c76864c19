// SPDX-License-Identifier: Apache-2.0
package io.broadhead.attention.cache;

/** What happened in the cache so far. Written by the cache's thread; readers may be a step late. */
public final class CacheCounters {
  volatile long tokensHit;
  volatile long blocksCopied;
  volatile long blocksEvicted;
  volatile long blocksSwappedOut;
  volatile long blocksSwappedIn;
  volatile long sequencesSwappedOut;
  volatile long bytesSaved;

  CacheCounters() {}

  /** New tokens that were not written, because a block with the same tokens was there already. */
  public long tokensHit() {
    return tokensHit;
  }

  /** Blocks that were copied because two sequences would have written to one. */
  public long blocksCopied() {
    return blocksCopied;
  }

  /** Blocks of ended sequences that were kept for others and made room. */
  public long blocksEvicted() {
    return blocksEvicted;
  }

  /** Blocks of living sequences that made room. */
  public long blocksSwappedOut() {
    return blocksSwappedOut;
  }

  /** Blocks that came back from the store. */
  public long blocksSwappedIn() {
    return blocksSwappedIn;
  }

  /** Times that a sequence lost its claim to its places. */
  public long sequencesSwappedOut() {
    return sequencesSwappedOut;
  }

  /** Bytes of keys and values that went to the store. */
  public long bytesSaved() {
    return bytesSaved;
  }
}
