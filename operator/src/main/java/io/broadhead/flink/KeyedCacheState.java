// SPDX-License-Identifier: Apache-2.0
package io.broadhead.flink;

import io.broadhead.attention.PagedAttention;
import io.broadhead.attention.cache.CacheHeader;
import io.broadhead.attention.cache.CacheStores;
import io.broadhead.attention.cache.HostPartStore;
import io.broadhead.attention.cache.PartStore;
import io.broadhead.attention.cache.RecordStore;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashMap;
import java.util.HashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.stream.Stream;
import org.apache.flink.api.common.state.MapState;
import org.apache.flink.api.common.state.MapStateDescriptor;
import org.apache.flink.api.common.state.State;
import org.apache.flink.api.common.state.StateDescriptor;
import org.apache.flink.api.common.state.ValueState;
import org.apache.flink.api.common.state.ValueStateDescriptor;
import org.apache.flink.api.common.typeutils.TypeSerializer;
import org.apache.flink.api.common.typeutils.base.IntSerializer;
import org.apache.flink.api.common.typeutils.base.LongSerializer;
import org.apache.flink.api.common.typeutils.base.StringSerializer;
import org.apache.flink.api.common.typeutils.base.array.BytePrimitiveArraySerializer;
import org.apache.flink.api.java.tuple.Tuple2;
import org.apache.flink.api.java.typeutils.runtime.TupleSerializer;
import org.apache.flink.runtime.state.KeyedStateBackend;
import org.apache.flink.runtime.state.VoidNamespace;
import org.apache.flink.runtime.state.VoidNamespaceSerializer;
import org.apache.flink.runtime.state.internal.InternalValueState;
import org.apache.flink.util.FlinkRuntimeException;

/**
 * A cache as Flink keyed state; the key is the shard. Records are maps, one for each shard. A part
 * of a block is a value in a namespace of its own, so that no backend has to touch one part because
 * of another.
 *
 * <p>Everything changes the backend's current key. Used by the task's thread.
 */
final class KeyedCacheState implements PartStore, RecordStore {
  private final KeyedStateBackend<Integer> backend;
  private final ValueState<byte[]> header;
  private final MapState<String, byte[]> sequences;
  private final MapState<Long, byte[]> blocks;
  private final InternalValueState<Integer, Tuple2<Long, Integer>, byte[]> parts;

  /** The headers that are written down. */
  private final Map<Integer, byte[]> headers = new HashMap<>();

  /** Shards with records that were put since the last time. */
  private final Set<Integer> changed = new HashSet<>();

  KeyedCacheState(KeyedStateBackend<Integer> backend) {
    TypeSerializer<byte[]> bytes = BytePrimitiveArraySerializer.INSTANCE;
    this.backend = backend;
    this.header = ofShard(new ValueStateDescriptor<>("kv-header", bytes));
    this.sequences =
        ofShard(new MapStateDescriptor<>("kv-sequences", StringSerializer.INSTANCE, bytes));
    this.blocks = ofShard(new MapStateDescriptor<>("kv-blocks", LongSerializer.INSTANCE, bytes));
    @SuppressWarnings("unchecked")
    Class<Tuple2<Long, Integer>> blockAndNumber =
        (Class<Tuple2<Long, Integer>>) (Class<?>) Tuple2.class;
    TypeSerializer<Tuple2<Long, Integer>> namespaces =
        new TupleSerializer<>(
            blockAndNumber,
            new TypeSerializer<?>[] {LongSerializer.INSTANCE, IntSerializer.INSTANCE});
    ValueStateDescriptor<byte[]> part = new ValueStateDescriptor<>("kv-parts", bytes);
    this.parts =
        call(
            () -> {
              @SuppressWarnings("unchecked")
              InternalValueState<Integer, Tuple2<Long, Integer>, byte[]> state =
                  (InternalValueState<Integer, Tuple2<Long, Integer>, byte[]>)
                      backend
                          .<Tuple2<Long, Integer>, ValueState<byte[]>, byte[]>getOrCreateKeyedState(
                              namespaces, part);
              return state;
            });
  }

  private <S extends State> S ofShard(StateDescriptor<S, ?> descriptor) {
    return call(
        () ->
            backend.getPartitionedState(
                VoidNamespace.INSTANCE, VoidNamespaceSerializer.INSTANCE, descriptor));
  }

  /**
   * Where caches are kept, and saved in {@code mode}.
   *
   * @throws IllegalStateException if there is state that would be dropped
   */
  CacheStores stores(StateMode mode) {
    return switch (mode) {
      case FULL -> new CacheStores(this, this, true);
      case METADATA -> new CacheStores(new HostPartStore(), this, false);
      case NONE -> {
        requireNoState();
        yield CacheStores.onHeap();
      }
    };
  }

  // ---- saving and restoring ------------------------------------------------------------------

  /** Brings state up to what the caches hold. */
  void save(PagedAttention attention, int shards, long checkpoint) {
    attention.save(checkpoint);
    byte[] current = attention.header(shards).map(CacheHeader::toBytes).orElse(null);
    for (int shard : changed) {
      if (!Arrays.equals(current, headers.put(shard, current))) {
        backend.setCurrentKey(shard);
        run(() -> header.update(current));
      }
    }
    changed.clear();
  }

  /**
   * Restores the shards that this subtask has got.
   *
   * @throws IllegalStateException naming the key in which the job differs from the one that was
   *     saved
   */
  void restore(PagedAttention attention, int shards) {
    for (int shard : savedShards()) {
      CacheHeader saved = CacheHeader.of(headers.get(shard));
      backend.setCurrentKey(shard);
      attention.restore(saved, shards, shard, entries(sequences), entries(blocks));
    }
  }

  /** The shards that have a header, whose headers are known then. */
  private List<Integer> savedShards() {
    try (Stream<Integer> keys = backend.getKeys("kv-header", VoidNamespace.INSTANCE)) {
      List<Integer> shards = keys.sorted().toList();
      for (int shard : shards) {
        backend.setCurrentKey(shard);
        headers.put(shard, call(header::value));
      }
      return shards;
    }
  }

  private void requireNoState() {
    for (int shard : savedShards()) {
      boolean contents = CacheHeader.of(headers.get(shard)).contents();
      throw new IllegalStateException(
          PagedAttentionOptions.STATE.key()
              + ": expected "
              + (contents ? StateMode.FULL : StateMode.METADATA)
              + ", as when the state was written, got "
              + StateMode.NONE);
    }
  }

  /** A copy: what is restored may have to be removed at once. */
  private static <K> List<Map.Entry<K, byte[]>> entries(MapState<K, byte[]> state) {
    List<Map.Entry<K, byte[]>> entries = new ArrayList<>();
    for (Map.Entry<K, byte[]> entry : call(state::entries)) {
      entries.add(Map.entry(entry.getKey(), entry.getValue()));
    }
    return entries;
  }

  // ---- records -------------------------------------------------------------------------------

  @Override
  public void putSequence(int shard, String key, byte[] record) {
    change(shard);
    run(() -> sequences.put(key, record));
  }

  @Override
  public void removeSequence(int shard, String key) {
    backend.setCurrentKey(shard);
    run(() -> sequences.remove(key));
  }

  @Override
  public void putBlock(int shard, long block, byte[] record) {
    change(shard);
    run(() -> blocks.put(block, record));
  }

  @Override
  public void removeBlock(int shard, long block) {
    backend.setCurrentKey(shard);
    run(() -> blocks.remove(block));
  }

  private void change(int shard) {
    backend.setCurrentKey(shard);
    changed.add(shard);
  }

  // ---- parts ---------------------------------------------------------------------------------

  @Override
  public void put(int shard, long block, int part, byte[] contents) {
    at(shard, block, part);
    run(() -> parts.update(contents));
  }

  @Override
  public byte[] get(int shard, long block, int part) {
    at(shard, block, part);
    return call(parts::value);
  }

  @Override
  public void remove(int shard, long block, int part) {
    at(shard, block, part);
    parts.clear();
  }

  private void at(int shard, long block, int part) {
    backend.setCurrentKey(shard);
    parts.setCurrentNamespace(Tuple2.of(block, part));
  }

  private interface Call<T> {
    T get() throws Exception;
  }

  private interface Run {
    void run() throws Exception;
  }

  private static <T> T call(Call<T> call) {
    try {
      return call.get();
    } catch (Exception e) {
      throw new FlinkRuntimeException("the state backend failed: " + e.getMessage(), e);
    }
  }

  private static void run(Run run) {
    call(
        () -> {
          run.run();
          return null;
        });
  }
}
