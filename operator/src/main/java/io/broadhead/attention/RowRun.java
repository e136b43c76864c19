// SPDX-License-Identifier: Apache-2.0
package io.broadhead.attention;

/**
 * What a step takes of a batch: {@code count} rows from {@code row} on, or new tokens {@code from}
 * to {@code to} - 1 of that row. Immutable.
 */
record RowRun(PendingBatch batch, int row, int count, int from, int to) {
  private static final int ALL = -1;

  static RowRun rows(PendingBatch batch, int row, int count) {
    return new RowRun(batch, row, count, 0, ALL);
  }

  static RowRun tokens(PendingBatch batch, int row, int from, int to) {
    return new RowRun(batch, row, 1, from, to);
  }

  /** Some of these rows, which are whole ones. */
  RowRun rows(int first, int rows) {
    return rows(batch, first, rows);
  }

  /** Whether the rows are taken with all their tokens. */
  boolean isWhole() {
    return to == ALL;
  }
}
