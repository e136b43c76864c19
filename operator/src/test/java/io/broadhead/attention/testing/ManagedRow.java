// SPDX-License-Identifier: Apache-2.0
package io.broadhead.attention.testing;

/**
 * One row of a step batch with managed block tables.
 *
 * @param row its slots and blocks are not sent
 * @param parent what its sequence is forked from, or null
 * @param tokenIds id of each new token, or null
 * @param group what its shard goes by, or null
 */
public record ManagedRow(StepRow row, Object parent, long[] tokenIds, boolean ends, Object group) {
  public static ManagedRow of(StepRow row) {
    return new ManagedRow(row, null, null, false, null);
  }

  public ManagedRow forkedFrom(Object value) {
    return new ManagedRow(row, value, tokenIds, ends, group);
  }

  public ManagedRow withTokenIds(long... value) {
    return new ManagedRow(row, parent, value, ends, group);
  }

  public ManagedRow last() {
    return new ManagedRow(row, parent, tokenIds, true, group);
  }

  public ManagedRow inGroup(Object value) {
    return new ManagedRow(row, parent, tokenIds, ends, value);
  }
}
