// SPDX-License-Identifier: Apache-2.0
package io.broadhead.attention.cache;

import java.util.ArrayList;
import java.util.List;

/**
 * A run of {@code block_size} tokens of a sequence in all caches, wherever its contents are: in the
 * pool, in the store, or both. Shared by sequences that begin alike.
 */
final class CacheBlock {
  /** For {@link #place}: the contents are not in the pool. */
  static final int NOWHERE = -1;

  final Shard shard;

  /** Unique in its shard, and rising: what the store knows it by. */
  final long id;

  /** Block of the pool, or {@link #NOWHERE}. */
  int place = NOWHERE;

  /** Sequences in the pool that have it in their table; while there is one it keeps its place. */
  int users;

  /** Sequences that have it in their table. */
  int references;

  /** Tokens written, for each cache. */
  final int[] written;

  /** Tokens that the store has, for each cache. */
  final int[] saved;

  /** What the store has. */
  final List<BlockPart> parts = new ArrayList<>(1);

  /** Whether its record says what it is. */
  boolean isRecorded;

  /** Whether there is a record. */
  boolean wasRecorded;

  /** Contents, once it is full of tokens with known ids; null before and otherwise. */
  BlockHash hash;

  /** Ids of the first {@link #knownIds} tokens; null once there is a hash, or if none is known. */
  long[] tokenIds;

  int knownIds;

  CacheBlock(Shard shard, long id, int caches) {
    this.shard = shard;
    this.id = id;
    this.written = new int[caches];
    this.saved = new int[caches];
  }
}
