// SPDX-License-Identifier: Apache-2.0
package io.broadhead.attention.cache;

import java.util.function.IntToLongFunction;

/**
 * Ids of some of a row's new tokens. Immutable.
 *
 * @param all ids of the row's new keys, or null
 * @param first the first of these among them
 * @param count how many there are; 0 if ids are not known or mean nothing to the cache
 */
record TokenIds(IntToLongFunction all, int first, int count) {
  /** An encoder's tokens have keys that depend on those behind them, so their ids mean nothing. */
  static TokenIds of(RowRequest row, int first, int count) {
    boolean known = row.tokenIds() != null && !row.layer().cross();
    return new TokenIds(row.tokenIds(), first, known ? count : 0);
  }

  void copyTo(long[] ids, int at) {
    for (int i = 0; i < count; i++) {
      ids[at + i] = all.applyAsLong(first + i);
    }
  }

  long[] toArray() {
    long[] ids = new long[count];
    copyTo(ids, 0);
    return ids;
  }
}
