// SPDX-License-Identifier: Apache-2.0
package io.broadhead.attention;

import io.broadhead.attention.cache.CacheCounters;
import io.broadhead.attention.cache.CacheHeader;
import io.broadhead.attention.cache.CacheShape;
import io.broadhead.attention.cache.CacheStores;
import io.broadhead.attention.cache.ExternalBlocks;
import io.broadhead.attention.cache.KvCacheManager;
import io.broadhead.attention.cache.RowRefusedException;
import io.broadhead.attention.cache.RowRequest;
import io.broadhead.kernel.ErrorCode;
import io.broadhead.kernel.KernelException;
import java.util.HashSet;
import java.util.Map;
import java.util.Optional;
import java.util.Set;
import org.apache.arrow.memory.BufferAllocator;

/**
 * Who hands out the blocks of a job's caches, the producer or a {@link KvCacheManager}, which the
 * first batch says; and what is saved of the caches. Its owner closes it; used by one thread at a
 * time.
 */
final class BlockTables implements AutoCloseable {
  private final LayerSet layers;
  private final CacheLayers cacheLayers;
  private final PoolMemory memory;
  private final CacheStores stores;
  private final OutOfBlocks outOfBlocks;
  private final StepRunner runner;

  /** Whether block tables are managed, once a batch said so. */
  private Boolean managed;

  private KvCacheManager manager;
  private ExternalBlocks external;

  BlockTables(
      LayerSet layers,
      CacheLayers cacheLayers,
      BufferAllocator allocator,
      CacheStores stores,
      OutOfBlocks outOfBlocks,
      StepRunner runner) {
    this.layers = layers;
    this.cacheLayers = cacheLayers;
    this.memory = new PoolMemory(layers, cacheLayers.owners(), allocator);
    this.stores = stores;
    this.outOfBlocks = outOfBlocks;
    this.runner = runner;
  }

  /** The managed ones; empty before the first batch that needs them. */
  Optional<KvCacheManager> managed() {
    return Optional.ofNullable(manager);
  }

  /** What happened in the caches; empty as long as nobody counts it. */
  Optional<CacheCounters> counters() {
    return managed()
        .map(KvCacheManager::counters)
        .or(() -> Optional.ofNullable(external).map(ExternalBlocks::counters));
  }

  /** Sequences with managed ones that were lost so far. */
  long losses() {
    return manager == null ? 0 : manager.losses();
  }

  /** Blocks that a producer hands out and those that are handed out here would be the same. */
  void requireOneMode(BoundLayer bound) {
    if (!bound.spec().attnType().cached()) {
      return;
    }
    if (managed == null) {
      begin(bound.isManaged());
    }
    if (managed != bound.isManaged()) {
      throw new KernelException(
          ErrorCode.SCHEMA_MISMATCH,
          -1,
          managed
              ? "columns block_table and slot_mapping: expected neither, as in the batches before,"
                  + " whose block tables are managed"
              : "columns block_table and slot_mapping: expected them, as in the batches before, got"
                  + " neither");
    }
  }

  private void begin(boolean isManaged) {
    CacheShape shape = cacheLayers.shape(layers.job().kvCache());
    if (isManaged) {
      manager = new KvCacheManager(shape, memory, stores, outOfBlocks == OutOfBlocks.SWAP);
      runner.manage(manager);
    } else if (stores.savesContents()) {
      external = new ExternalBlocks(shape, memory, stores.parts(), stores.records());
      runner.observe(external);
    } else if (stores.savesAnything()) {
      throw new KernelException(
          ErrorCode.SCHEMA_MISMATCH,
          -1,
          "columns block_table and slot_mapping: expected neither, because only metadata is saved,"
              + " and nobody but the producer knows the sequences of these tables; set"
              + " broadhead.state to full or none");
    }
    managed = isManaged;
  }

  /** Whether a row of {@code pending} means something else before all other rows are computed. */
  boolean dependsOnAllLayers(PendingBatch pending) {
    StepRows rows = pending.rows();
    if (!pending.layer().isManaged()
        || !rows.mayFork() && !rows.mayEnd() && !manager.mayBeginAnew()) {
      return false;
    }
    for (int row = pending.nextOpen(0); row >= 0; row = pending.nextOpen(row + 1)) {
      try {
        if (manager.dependsOnAllLayers(pending.shard(row), request(pending, row))) {
          return true;
        }
      } catch (RowRefusedException e) {
        // Refused for it when its turn comes.
        continue;
      }
    }
    return false;
  }

  /**
   * Begins the sequences that rows of {@code pending} fork: their parents may grow in the same
   * batch, and in a step before theirs. That is too early for an id whose last row is still to
   * come.
   */
  void fork(PendingBatch pending) {
    if (!pending.layer().isManaged() || !pending.rows().mayFork()) {
      return;
    }
    Set<Object> ending = new HashSet<>();
    for (int row = pending.nextOpen(0); row >= 0; row = pending.nextOpen(row + 1)) {
      try {
        RowRequest request = request(pending, row);
        Object id = Map.entry(pending.shard(row), request.sequence());
        if (request.parent() != null && !request.endsAtOnce() && ending.contains(id)) {
          throw RowRefusedException.badRow(
              "column parent_sequence_id: sequence %s ends in an earlier row of the batch, expected"
                  + " null, or this row in a later batch, got %s",
              request.sequence(), request.parent());
        }
        if (request.ends()) {
          ending.add(id);
        }
        manager.fork(pending.shard(row), request);
      } catch (RowRefusedException e) {
        pending.refuse(row, e.code(), e.getMessage());
      }
    }
  }

  private static RowRequest request(PendingBatch pending, int row) throws RowRefusedException {
    return pending.request(row, 0, pending.rows().tokens(row));
  }

  /** What {@link #save} saves a cache of; empty before the first batch of a layer with a cache. */
  Optional<CacheHeader> header(int shards) {
    return Optional.ofNullable(managed).map(isManaged -> header(isManaged, shards));
  }

  private CacheHeader header(boolean isManaged, int shards) {
    return cacheLayers.header(
        isManaged, stores.savesContents(), shards, layers.job().kvCache(), layers);
  }

  /** As {@link PagedAttention#save}. */
  void save(long checkpoint) {
    if (manager != null && stores.savesAnything()) {
      manager.save();
    }
    if (external != null) {
      external.save(checkpoint);
    }
  }

  /**
   * Restores a shard, before the first batch. Sequences whose keys and values were not saved are
   * lost: their rows are refused until they come again.
   *
   * @param header what was saved
   * @param shards that sequences are divided into now
   * @param sequences records of sequences
   * @param blocks records of blocks
   * @throws IllegalStateException naming the key in which the job differs from the one that was
   *     saved
   */
  void restore(
      CacheHeader header,
      int shards,
      int shard,
      Iterable<Map.Entry<String, byte[]>> sequences,
      Iterable<Map.Entry<Long, byte[]>> blocks) {
    header.requireFits(header(header.managed(), shards));
    for (CacheHeader.Layer layer : header.layers()) {
      if (!layer.dtype().isEmpty()) {
        layers.reserve(layers.find(layer.name()).orElseThrow(), layer.dtype());
      }
    }
    if (managed == null) {
      begin(header.managed());
    }
    if (manager != null) {
      manager.restore(shard, sequences, blocks);
    }
    if (external != null) {
      blocks.forEach(block -> external.restore(shard, block.getKey(), block.getValue()));
    }
  }

  @Override
  public void close() {
    memory.close();
  }
}
