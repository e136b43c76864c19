// SPDX-License-Identifier: Apache-2.0
package io.broadhead.attention.cache;

import java.util.HashMap;
import java.util.Map;

/** The sequences that move together when a job is rescaled; only they share blocks. */
final class Shard {
  final int key;
  final Map<Object, Sequence> sequences = new HashMap<>();

  /** Full blocks in the pool that a sequence which begins alike can use. */
  final Map<BlockHash, CacheBlock> blocksByHash = new HashMap<>();

  /** Id of the next block. */
  long nextBlock;

  Shard(int key) {
    this.key = key;
  }
}
