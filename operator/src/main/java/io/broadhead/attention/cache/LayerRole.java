// SPDX-License-Identifier: Apache-2.0
package io.broadhead.attention.cache;

/**
 * What a layer is to the cache. Immutable.
 *
 * @param index of the layer among those that use a cache
 * @param name for messages
 * @param cache index of its cache
 * @param owner index of the layer that writes that cache: itself, or the one whose cache it shares
 * @param cross whether it attends to an encoder's tokens, whose number has nothing to do with the
 *     sequence's own
 */
public record LayerRole(int index, String name, int cache, int owner, boolean cross) {
  /** Whether it writes its cache, rather than to read another layer's. */
  public boolean writes() {
    return owner == index;
  }

  /** Tokens that a row with so many queries and keys adds to the sequence. */
  int newTokens(int queries, int keys) {
    if (writes()) {
      return keys;
    }
    return cross ? 0 : Math.max(queries, keys);
  }
}
