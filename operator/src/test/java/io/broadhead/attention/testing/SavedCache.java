// SPDX-License-Identifier: Apache-2.0
package io.broadhead.attention.testing;

import static org.assertj.core.api.Assertions.assertThat;

import io.broadhead.attention.cache.CacheStores;
import io.broadhead.attention.cache.PartStore;
import io.broadhead.attention.cache.RecordStore;
import java.util.HashMap;
import java.util.Map;
import java.util.TreeMap;

/** What a cache was saved as; complains of what no cache should do. */
public final class SavedCache implements PartStore, RecordStore {
  private record Part(int shard, long block, int number) {}

  private final Map<Part, byte[]> parts = new HashMap<>();
  private final Map<Integer, Map<String, byte[]>> sequences = new HashMap<>();
  private final Map<Integer, Map<Long, byte[]>> blocks = new HashMap<>();
  private long bytesPut;

  public CacheStores stores() {
    return new CacheStores(this, this, true);
  }

  /** Records of a shard's sequences. */
  public Map<String, byte[]> sequences(int shard) {
    return sequences.computeIfAbsent(shard, s -> new TreeMap<>());
  }

  /** Records of a shard's blocks. */
  public Map<Long, byte[]> blocks(int shard) {
    return blocks.computeIfAbsent(shard, s -> new TreeMap<>());
  }

  /** Bytes of all parts that were put. */
  public long bytesPut() {
    return bytesPut;
  }

  /** Bytes of the parts that are there. */
  public long bytes() {
    return parts.values().stream().mapToLong(part -> part.length).sum();
  }

  /** Bytes of the largest part that is there. */
  public int largestPart() {
    return parts.values().stream().mapToInt(part -> part.length).max().orElse(0);
  }

  /** As after a crash: what a new process finds. */
  public SavedCache copy() {
    SavedCache copy = new SavedCache();
    copy.parts.putAll(parts);
    sequences.forEach((shard, records) -> copy.sequences(shard).putAll(records));
    blocks.forEach((shard, records) -> copy.blocks(shard).putAll(records));
    return copy;
  }

  public void requireEmpty() {
    assertThat(parts).as("parts of blocks that are gone").isEmpty();
    assertThat(blocks.values()).as("records of blocks that are gone").allMatch(Map::isEmpty);
    assertThat(sequences.values()).as("records of sequences that are gone").allMatch(Map::isEmpty);
  }

  @Override
  public void put(int shard, long block, int part, byte[] contents) {
    assertThat(parts.put(new Part(shard, block, part), contents)).as("put twice").isNull();
    bytesPut += contents.length;
  }

  @Override
  public byte[] get(int shard, long block, int part) {
    assertThat(parts).containsKey(new Part(shard, block, part));
    return parts.get(new Part(shard, block, part));
  }

  @Override
  public void remove(int shard, long block, int part) {
    assertThat(parts.remove(new Part(shard, block, part))).as("removed, but not there").isNotNull();
  }

  @Override
  public void putSequence(int shard, String sequence, byte[] record) {
    sequences(shard).put(sequence, record);
  }

  @Override
  public void removeSequence(int shard, String sequence) {
    assertThat(sequences(shard).remove(sequence)).as("removed, but not there").isNotNull();
  }

  @Override
  public void putBlock(int shard, long block, byte[] record) {
    blocks(shard).put(block, record);
  }

  @Override
  public void removeBlock(int shard, long block) {
    assertThat(blocks(shard).remove(block)).as("removed, but not there").isNotNull();
  }
}
