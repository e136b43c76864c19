// SPDX-License-Identifier: Apache-2.0
package io.broadhead.attention;

import io.broadhead.arrow.ArrowBatch;
import io.broadhead.attention.cache.KvCacheManager;
import io.broadhead.attention.cache.RowRefusedException;
import io.broadhead.attention.cache.RowRequest;
import io.broadhead.attention.job.AttnType;
import io.broadhead.kernel.ErrorCode;
import io.broadhead.kernel.ResultDraft;
import io.broadhead.kernel.StepPart;
import java.util.BitSet;
import java.util.HashMap;
import java.util.Map;
import java.util.Set;
import java.util.function.IntUnaryOperator;
import java.util.stream.Collectors;
import java.util.stream.IntStream;

/**
 * A step batch on its way: which of its rows are still to be computed, and the draft of its result.
 * Keeps the batch until it is closed. Used by one thread.
 */
final class PendingBatch implements AutoCloseable {
  private final ArrowBatch batch;
  private final BoundLayer layer;
  private final IntUnaryOperator shardOfRow;
  private final long knownLosses;
  private final long added;
  private final StepHandler handler;
  private final StepRows rows;
  private final ResultDraft draft;
  private final int[] tokens;
  private final BitSet open = new BitSet();
  private final Map<Integer, Boolean> divisible = new HashMap<>();
  private int[] tokensDone;
  private boolean begun;
  private Boolean separable;
  private Set<ShardSequence> sequences;
  private long tokensLeft;

  /**
   * @param knownLosses {@link KvCacheManager#losses} now
   * @param added now, by the caller's clock
   */
  PendingBatch(
      ArrowBatch batch,
      BoundLayer layer,
      IntUnaryOperator shardOfRow,
      long knownLosses,
      long added,
      StepHandler handler) {
    this.layer = layer;
    this.shardOfRow = shardOfRow;
    this.knownLosses = knownLosses;
    this.added = added;
    this.handler = handler;
    this.rows = new StepRows(batch, layer.batchSchema());
    this.draft = layer.results().draft(batch);
    this.batch = batch.retain();
    open.set(0, batch.numRows());
    tokens = new int[batch.numRows()];
    for (int row = 0; row < tokens.length; row++) {
      tokens[row] = Math.max(draft.tokens(row), rows.keys(row));
      tokensLeft += tokens[row];
    }
  }

  ArrowBatch batch() {
    return batch;
  }

  BoundLayer layer() {
    return layer;
  }

  long added() {
    return added;
  }

  int shard(int row) {
    return shardOfRow.applyAsInt(row);
  }

  StepRows rows() {
    return rows;
  }

  /** What a row, or its new tokens {@code from} to {@code to} - 1, asks of the cache. */
  RowRequest request(int row, int from, int to) throws RowRefusedException {
    return rows.request(row, from, to, layer.role(), knownLosses);
  }

  ResultDraft draft() {
    return draft;
  }

  /** The first row at or after {@code from} that is still to be computed, or -1. */
  int nextOpen(int from) {
    return open.nextSetBit(from);
  }

  /** Whether it has a row of a sequence of {@code earlier}, in the same layer. */
  boolean continues(PendingBatch earlier) {
    if (layer.spec() != earlier.layer.spec()) {
      return false;
    }
    Set<ShardSequence> sequences = earlier.sequences();
    return IntStream.range(0, batch.numRows()).anyMatch(row -> sequences.contains(sequence(row)));
  }

  private Set<ShardSequence> sequences() {
    if (sequences == null) {
      sequences =
          IntStream.range(0, batch.numRows()).mapToObj(this::sequence).collect(Collectors.toSet());
    }
    return sequences;
  }

  /** The sequence of a row. */
  ShardSequence sequence(int row) {
    return new ShardSequence(shard(row), rows.sequence(row));
  }

  /** Sequences of one id in different shards are different ones. */
  record ShardSequence(int shard, Object id) {}

  /** Tokens of a block of the layer's cache. */
  int blockSize() {
    return layer.binding().layer().cache().config().blockSize();
  }

  /** Blocks of the layer's cache. */
  long numBlocks() {
    return layer.binding().layer().cache().config().numBlocks();
  }

  /** Whether rows of it may be computed in different steps. */
  boolean isSeparable() {
    if (separable == null) {
      separable = begun || !layer.isExternal() || ExternalConflicts.isSeparable(this);
    }
    return separable;
  }

  /** Whether a row can be computed in runs of tokens, one after the other. */
  boolean isDivisible(int row) {
    return divisible.computeIfAbsent(
        row,
        r ->
            layer.spec().attnType() == AttnType.DECODER
                && rows.hasRunsOfTokens(r)
                && (rows.keys(r) > 0 || !placesOwnTokens())
                && isSeparable()
                && (!layer.isExternal() || ExternalConflicts.isInPlace(this, r))
                && isSound(r));
  }

  /** Whether the cache, asked for a run, takes it for the last tokens that the layer wrote. */
  private boolean placesOwnTokens() {
    return layer.isManaged() && layer.writesCache() >= 0;
  }

  /** Whether a row has no fault that only its later tokens would show. */
  private boolean isSound(int row) {
    StepPart part = layer.takePart();
    try {
      if (layer.isManaged()) {
        part.planned().clear();
        part.planned().addPadding(rows.keys(row));
        part.planned().endRow(0);
      }
      part.pointAtRows(batch, row, 1, draft);
      return layer.binding().firstBadRow(part, 0).isEmpty();
    } finally {
      layer.giveBack(part);
    }
  }

  boolean isDone() {
    return open.isEmpty();
  }

  /** New tokens of a row that were computed already. */
  int tokensDone(int row) {
    return tokensDone == null ? 0 : tokensDone[row];
  }

  /** New tokens that are still to be computed. */
  long tokensLeft() {
    return tokensLeft;
  }

  void computed(RowRun run) {
    begun = true;
    if (run.isWhole()) {
      close(run.row(), run.row() + run.count());
      return;
    }
    if (tokensDone == null) {
      tokensDone = new int[batch.numRows()];
    }
    if (run.to() == rows.tokens(run.row())) {
      close(run.row(), run.row() + 1);
    } else {
      tokensLeft -= run.to() - run.from();
      tokensDone[run.row()] = run.to();
    }
  }

  private void close(int from, int to) {
    open.clear(from, to);
    for (int row = from; row < to; row++) {
      tokensLeft -= tokens[row] - tokensDone(row);
    }
  }

  /** Leaves a row out of the result. */
  void refuse(int row, ErrorCode code, String message) {
    refuse(row, layer.spec().name(), code, message);
  }

  /** As above, for a row that says it is of another layer. */
  void refuse(int row, String layerName, ErrorCode code, String message) {
    handler.refused(refused(row, layerName, code, message));
    close(row, row + 1);
    draft.refuse(row);
  }

  /** What is said of a row that is refused. */
  RefusedRow refused(int row, ErrorCode code, String message) {
    return refused(row, layer.spec().name(), code, message);
  }

  private RefusedRow refused(int row, String layerName, ErrorCode code, String message) {
    return new RefusedRow(
        code, layerName, layer.batchSchema().sequenceId(batch, row), row, message);
  }

  /** Hands the result over. */
  void finish() {
    handler.done(draft.finish(0));
  }

  @Override
  public void close() {
    draft.close();
    batch.close();
  }
}
