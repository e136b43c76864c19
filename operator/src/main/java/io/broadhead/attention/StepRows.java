// SPDX-License-Identifier: Apache-2.0
package io.broadhead.attention;

import io.broadhead.arrow.ArrowBatch;
import io.broadhead.arrow.ArrowColumn;
import io.broadhead.arrow.StepColumns;
import io.broadhead.attention.cache.KvCacheManager;
import io.broadhead.attention.cache.LayerRole;
import io.broadhead.attention.cache.RowRefusedException;
import io.broadhead.attention.cache.RowRequest;
import java.util.function.IntToLongFunction;

/**
 * Reads what planning needs of the rows of one batch; tensors are left alone. Owns nothing: valid
 * while the batch is.
 */
final class StepRows {
  private final boolean idsAreText;
  private final ArrowColumn ids;
  private final ArrowColumn query;
  private final ArrowColumn key;
  private final ArrowColumn seqLens;
  private final ArrowColumn slots;
  private final ArrowColumn tables;
  private final ArrowColumn parents;
  private final ArrowColumn tokenIds;
  private final ArrowColumn ends;

  // Made when they are asked for: a batch may have lists that its layer does not look at.
  private ArrowColumn slotValues;
  private ArrowColumn blockIds;

  StepRows(ArrowBatch batch, StepBatchSchema schema) {
    this.idsAreText = schema.idsAreText();
    this.ids = batch.column(StepColumns.SEQUENCE_ID);
    this.query = column(batch, StepColumns.QUERY);
    this.key = column(batch, StepColumns.KEY);
    this.seqLens = column(batch, StepColumns.SEQ_LEN);
    this.slots = column(batch, StepColumns.SLOT_MAPPING);
    this.tables = column(batch, StepColumns.BLOCK_TABLE);
    this.parents = column(batch, StepColumns.PARENT_SEQUENCE_ID);
    this.tokenIds = column(batch, StepColumns.TOKEN_IDS);
    this.ends = column(batch, StepColumns.END_OF_SEQUENCE);
  }

  private static ArrowColumn column(ArrowBatch batch, String name) {
    int index = batch.schema().index(name);
    return index < 0 ? null : batch.column(index);
  }

  /** The sequence's id, a Long or a String. */
  Object sequence(int row) {
    return id(ids, row);
  }

  private Object id(ArrowColumn column, int row) {
    return idsAreText ? column.getString(row) : (Object) column.getLong(row);
  }

  private static int size(ArrowColumn lists, int row) {
    return lists == null ? 0 : (int) lists.listSize(row);
  }

  /** New tokens of a row. */
  int tokens(int row) {
    return Math.max(size(query, row), size(key, row));
  }

  /** New tokens of a row that have keys. */
  int keys(int row) {
    return size(key, row);
  }

  /** Whether every query of a row has its key, or none has. */
  boolean hasRunsOfTokens(int row) {
    int keys = keys(row);
    return keys == 0 || keys == size(query, row);
  }

  /** Slots that the producer gives for a row. */
  int slots(int row) {
    return size(slots, row);
  }

  /** Slot {@code i} of a row. */
  long slot(int row, int i) {
    if (slotValues == null) {
      slotValues = slots.child();
    }
    return slotValues.getLong(slots.offset(row) + i);
  }

  /** Blocks of the producer's that a row reads, or fewer if its table is too short. */
  int blocks(int row, int blockSize) {
    return (int) Math.min(((long) seqLen(row) + blockSize - 1) / blockSize, size(tables, row));
  }

  /** Block {@code i} of a row's table. */
  int block(int row, int i) {
    if (blockIds == null) {
      blockIds = tables.child();
    }
    return blockIds.getInt(tables.offset(row) + i);
  }

  /** Whether sequences may end with rows of such batches. */
  boolean mayEnd() {
    return ends != null;
  }

  /** Whether a sequence ends with this row. */
  boolean ends(int row) {
    return ends != null && !ends.isNull(row) && ends.getBoolean(row);
  }

  /** What {@code seq_len} says of a row; null counts as 0. */
  int seqLen(int row) {
    return seqLens == null || seqLens.isNull(row) ? 0 : seqLens.getInt(row);
  }

  /** Is told of slots {@code from} to {@code to} - 1. */
  interface SlotsVisitor {
    void visit(long from, long to);
  }

  /**
   * Visits the slots that the tokens of a row of {@code run} are written to, neighbours together.
   */
  void forEachSlots(RowRun run, int row, SlotsVisitor visitor) {
    int keys = keys(row);
    int end = run.isWhole() ? keys : Math.min(run.to(), keys);
    for (int i = run.isWhole() ? 0 : Math.min(run.from(), keys), next; i < end; i = next) {
      long from = slot(row, i);
      next = i + 1;
      if (from < 0) {
        continue; // padding
      }
      while (next < end && slot(row, next) == from + next - i) {
        next++;
      }
      visitor.visit(from, from + next - i);
    }
  }

  /** Whether rows of this batch may fork sequences. */
  boolean mayFork() {
    return parents != null && parents.nullCount() < parents.length();
  }

  /**
   * What a row, or its new tokens {@code from} to {@code to} - 1, asks of the cache.
   *
   * @param knownLosses {@link KvCacheManager#losses} when the row came
   */
  RowRequest request(int row, int from, int to, LayerRole layer, long knownLosses)
      throws RowRefusedException {
    int tokens = tokens(row);
    boolean whole = to - from == tokens;
    int queries = whole ? size(query, row) : to - from;
    int keys = whole || size(key, row) == 0 ? size(key, row) : to - from;
    return new RowRequest(
        sequence(row),
        parents == null || parents.isNull(row) ? null : id(parents, row),
        layer,
        queries,
        keys,
        tokens - to,
        seqLens == null ? RowRequest.UNKNOWN : requiredSeqLen(row) - (tokens - to),
        idsOfTokens(row, from),
        knownLosses,
        ends(row));
  }

  private int requiredSeqLen(int row) throws RowRefusedException {
    if (seqLens.isNull(row)) {
      throw RowRefusedException.badRow("column seq_len: null, expected an int32");
    }
    if (seqLens.getInt(row) < 0) {
      throw RowRefusedException.badRow(
          "column seq_len: %d, expected 0 or more", seqLens.getInt(row));
    }
    return seqLens.getInt(row);
  }

  private IntToLongFunction idsOfTokens(int row, int from) throws RowRefusedException {
    if (tokenIds == null || tokenIds.isNull(row)) {
      return null;
    }
    int keys = keys(row);
    if (tokenIds.listSize(row) != keys) {
      throw RowRefusedException.badRow(
          "column token_ids: %d entries, expected %d (one for each key)",
          tokenIds.listSize(row), keys);
    }
    ArrowColumn values = tokenIds.child();
    for (int i = 0; values.nullCount() > 0 && i < keys; i++) {
      if (values.isNull(tokenIds.offset(row) + i)) {
        throw RowRefusedException.badRow(
            "column token_ids: entry %d is null, expected the token's id", i);
      }
    }
    long first = tokenIds.offset(row) + from;
    return i -> values.getLong(first + i);
  }
}
