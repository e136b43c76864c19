// SPDX-License-Identifier: Apache-2.0
package io.broadhead.flink;

import io.broadhead.attention.OutOfBlocks;
import io.broadhead.kernel.ErrorCode;

/** What happens to a row with a value out of range. Free of Flink, for commands that load none. */
public enum OnBadRow {
  /** The job fails. */
  FAIL("fail"),
  /** The row goes to the side output, and its batch goes on without it. */
  SIDE_OUTPUT("side-output");

  private final String label;

  OnBadRow(String label) {
    this.label = label;
  }

  /**
   * Whether a row that is refused with {@code code} is left out, and the job goes on. Rows that are
   * right, and for which the cache has not what it takes, are left out in any case.
   */
  public boolean leavesOut(ErrorCode code, OutOfBlocks outOfBlocks) {
    return this == SIDE_OUTPUT
        || code == ErrorCode.SEQUENCE_LOST
        || code == ErrorCode.OUT_OF_BLOCKS && outOfBlocks == OutOfBlocks.REJECT;
  }

  @Override
  public String toString() {
    return label;
  }
}
