// SPDX-License-Identifier: Apache-2.0
package io.broadhead.attention.cache;

import java.util.HashMap;
import java.util.Map;

/** Parts on the Java heap: what is swapped out where no engine keeps state. */
public final class HostPartStore implements PartStore {
  private final Map<Key, byte[]> parts = new HashMap<>();

  private record Key(int shard, long block, int part) {}

  @Override
  public void put(int shard, long block, int part, byte[] contents) {
    parts.put(new Key(shard, block, part), contents);
  }

  @Override
  public byte[] get(int shard, long block, int part) {
    return parts.get(new Key(shard, block, part));
  }

  /** Parts that are kept. */
  public int size() {
    return parts.size();
  }

  @Override
  public void remove(int shard, long block, int part) {
    parts.remove(new Key(shard, block, part));
  }
}
