// SPDX-License-Identifier: Apache-2.0
package io.broadhead.attention.cache;

import java.nio.ByteBuffer;

/**
 * The contents of the pool's places: each cache has one block for every place. Images are in the
 * order [block_size, num_kv_heads, head_size], all keys, then all values.
 */
public interface BlockMemory {
  /** Bytes of the key of one token in cache {@code cache}; its value takes as many. */
  int tokenBytes(int cache);

  /** Copies place {@code source} to {@code target} in every cache. */
  void copy(int source, int target);

  /** The image of a place, valid until the next call. */
  ByteBuffer read(int cache, int place);

  /** An image to be filled and written, of zeros, valid until the next call. */
  ByteBuffer image(int cache);

  /** Writes what {@link #image} returned last, for the same cache, to a place. */
  void write(int cache, int place);
}
