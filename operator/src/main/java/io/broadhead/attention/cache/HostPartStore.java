// SPDX-License-Identifier: Apache-2.0
package io.broadhead.attention.cache;

import java.util.HashMap;
import java.util.List;
import java.util.Map;

/** Parts on the Java heap: what is swapped out where no engine keeps state. */
public final class HostPartStore implements PartStore {
  private final Map<List<Number>, byte[]> parts = new HashMap<>();

  private static List<Number> key(int shard, long block, int part) {
    return List.of(shard, block, part);
  }

  @Override
  public void put(int shard, long block, int part, byte[] contents) {
    parts.put(key(shard, block, part), contents);
  }

  @Override
  public byte[] get(int shard, long block, int part) {
    return parts.get(key(shard, block, part));
  }

  @Override
  public void remove(int shard, long block, int part) {
    parts.remove(key(shard, block, part));
  }
}
