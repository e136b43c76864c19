// SPDX-License-Identifier: Apache-2.0
package io.broadhead.job.bench;

import io.broadhead.arrow.DType;
import java.util.List;

/**
 * What a step computes, and how much that is.
 *
 * @param dtype of queries, keys and values
 * @param cacheDtype of what the cache stores
 * @param attends whether there are queries; a step without them only updates the cache
 * @param rope whether queries and keys are rotated
 */
public record StepShape(
    Heads heads,
    DType dtype,
    DType cacheDtype,
    int blockSize,
    List<Rows> rows,
    boolean attends,
    boolean rope) {
  /** All steps together are at least so large: several times a last-level cache. */
  private static final long LARGER_THAN_CACHES = 256L << 20;

  private static final int MOST_DECODE_COPIES = 64;
  private static final int MOST_PROMPT_COPIES = 4;

  public StepShape {
    rows = List.copyOf(rows);
  }

  /** The same with other rows. */
  StepShape withRows(List<Rows> others) {
    return new StepShape(heads, dtype, cacheDtype, blockSize, others, attends, rope);
  }

  /** The same of other element types. */
  StepShape withDtype(BenchDtype other) {
    return new StepShape(heads, other.tensors, other.cache, blockSize, rows, attends, rope);
  }

  /** The same as an update of the cache alone. */
  StepShape withoutQueries() {
    return new StepShape(heads, dtype, cacheDtype, blockSize, rows, false, rope);
  }

  /** Sequences of the step. */
  public int sequences() {
    return rows.stream().mapToInt(Rows::count).sum();
  }

  /** New tokens of all sequences. */
  public long newTokens() {
    return rows.stream().mapToLong(r -> (long) r.count() * r.tokens()).sum();
  }

  /** Tokens in the cache of the sequence that has most. */
  public int longestContext() {
    return rows.stream().mapToInt(Rows::context).max().orElse(0);
  }

  /** Whether a sequence brings one token only, so that reading its context is what takes time. */
  boolean decodes() {
    return rows.stream().anyMatch(row -> row.tokens() == 1);
  }

  /** Cache blocks of one sequence of {@code row}. */
  int blocks(Rows row) {
    return (row.context() + blockSize - 1) / blockSize;
  }

  /** Cache blocks of all sequences. */
  long blocks() {
    return rows.stream().mapToLong(r -> (long) r.count() * blocks(r)).sum();
  }

  /** Bytes of the keys and values that all sequences have in the cache. */
  public long contextBytes() {
    long tokens = rows.stream().mapToLong(r -> (long) r.count() * r.context()).sum();
    return 2 * tokens * heads.numKvHeads() * heads.headSize() * cacheDtype.byteWidth();
  }

  /** Bytes of the new keys and values: read in {@code dtype}, written in {@code cacheDtype}. */
  public long updateBytes() {
    int bytes = dtype.byteWidth() + cacheDtype.byteWidth();
    return 2 * newTokens() * heads.numKvHeads() * heads.headSize() * bytes;
  }

  /** Bytes that a step has to move at least. */
  public long bytes() {
    return attends ? contextBytes() : updateBytes();
  }

  /** Operations of a step: two products over the keys that its query tokens see. */
  public double flops() {
    if (!attends) {
      return 0;
    }
    double keys = 0;
    for (Rows row : rows) {
      double first = row.context() - row.tokens() + 1;
      keys += (double) row.count() * row.tokens() * (first + row.context()) / 2;
    }
    return 4 * keys * heads.numHeads() * heads.headSize();
  }

  /**
   * Different steps that have to take turns so that each finds its keys and values in memory and
   * not in a cache of the processor.
   */
  public int copies() {
    int most = newTokens() > sequences() ? MOST_PROMPT_COPIES : MOST_DECODE_COPIES;
    return (int) Math.min(most, LARGER_THAN_CACHES / contextBytes() + 1);
  }
}
