// SPDX-License-Identifier: Apache-2.0
package io.broadhead.attention.cache;

import java.util.List;

/**
 * How large the cache is, and who uses it. Immutable.
 *
 * @param blockSize tokens of a block
 * @param numBlocks places of the pool
 * @param layers the layers that use a cache, each at its index
 */
public record CacheShape(int blockSize, int numBlocks, List<LayerRole> layers) {
  public CacheShape {
    layers = List.copyOf(layers);
  }

  /** Caches that the layers use. */
  public int caches() {
    return layers.stream().mapToInt(layer -> layer.cache() + 1).max().orElse(0);
  }
}
