// SPDX-License-Identifier: Apache-2.0
package io.broadhead.attention.cache;

import io.broadhead.arrow.Allocators;
import io.broadhead.kernel.PlannedRows;
import java.util.List;
import java.util.function.IntToLongFunction;
import org.apache.arrow.memory.BufferAllocator;

/** Rows of two layers in one shard, and steps of one row that compute nothing. */
final class CacheRows implements AutoCloseable {
  static final int BLOCK = 4;
  static final int SHARD = 5;
  static final LayerRole A = new LayerRole(0, "a", 0, 0, false);
  static final LayerRole B = new LayerRole(1, "b", 1, 1, false);

  private final BufferAllocator allocator = Allocators.root();
  final PlannedRows places = new PlannedRows(allocator);

  static KvCacheManager open(int numBlocks, CacheStores stores) {
    return new KvCacheManager(
        new CacheShape(BLOCK, numBlocks, List.of(A, B)),
        new TaggedMemory(2, BLOCK, numBlocks),
        stores,
        true);
  }

  /** Plans a row behind those that were planned before. */
  void plan(KvCacheManager manager, RowRequest row) throws RowRefusedException, StepFullException {
    manager.plan(SHARD, row, places);
  }

  /** What was planned has been computed. */
  void commit(KvCacheManager manager) {
    manager.commit();
    places.clear();
  }

  /** What was planned has failed. */
  void rollBack(KvCacheManager manager) {
    manager.rollBack();
    places.clear();
  }

  void step(KvCacheManager manager, RowRequest row) throws RowRefusedException, StepFullException {
    plan(manager, row);
    commit(manager);
  }

  static RowRequest row(Object sequence, LayerRole layer, int tokens, int seqLen) {
    return new RowRequest(sequence, null, layer, tokens, tokens, 0, seqLen, null, 0, false);
  }

  static RowRequest row(Object sequence, LayerRole layer, int tokens) {
    return row(sequence, layer, tokens, RowRequest.UNKNOWN);
  }

  static RowRequest child(Object sequence, Object parent, LayerRole layer, long... ids) {
    IntToLongFunction tokenIds = i -> ids[i];
    int tokens = ids.length;
    return new RowRequest(
        sequence, parent, layer, tokens, tokens, 0, RowRequest.UNKNOWN, tokenIds, 0, false);
  }

  /** A row of tokens with these ids. */
  static RowRequest known(Object sequence, LayerRole layer, long... ids) {
    return child(sequence, null, layer, ids);
  }

  /** The last row in one layer. */
  static RowRequest last(Object sequence, LayerRole layer, int tokens) {
    return new RowRequest(
        sequence, null, layer, tokens, tokens, 0, RowRequest.UNKNOWN, null, 0, true);
  }

  /** A row without tokens, which ends the sequence. */
  static RowRequest last(Object sequence) {
    return last(sequence, A, 0);
  }

  @Override
  public void close() {
    places.close();
    allocator.close();
  }
}
