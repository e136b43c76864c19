// SPDX-License-Identifier: Apache-2.0
package io.broadhead.attention.cache;

import java.util.function.IntToLongFunction;

/**
 * What a row asks of the cache. Immutable.
 *
 * @param sequence its id, a Long or a String
 * @param parent what it is to be forked from, or null
 * @param queries new query tokens
 * @param keys new keys
 * @param later new tokens of the row that are asked for by themselves, after these
 * @param seqLen what the producer says the sequence has after these tokens, or {@link #UNKNOWN}
 * @param tokenIds id of each new key's token, or null
 * @param knownLosses {@link KvCacheManager#losses} when the row came
 * @param ends whether the sequence ends with this row
 */
public record RowRequest(
    Object sequence,
    Object parent,
    LayerRole layer,
    int queries,
    int keys,
    int later,
    int seqLen,
    IntToLongFunction tokenIds,
    long knownLosses,
    boolean ends) {
  /** Of the first tokens of a row that says too little, {@link #seqLen} may be below 0. */
  public static final int UNKNOWN = Integer.MIN_VALUE;

  /** Whether the sequence ends with these tokens. */
  boolean endsNow() {
    return ends && later == 0;
  }

  /** A row without tokens ends a sequence wherever it is. */
  public boolean endsAtOnce() {
    return ends && queries == 0 && keys == 0;
  }
}
