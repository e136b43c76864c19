// SPDX-License-Identifier: Apache-2.0
package io.broadhead.attention;

/** What happens to a row of managed block tables for which the pool has no blocks. */
public enum OutOfBlocks {
  /** Sequences that were not used for the longest time make room, and come back on demand. */
  SWAP("swap"),
  /** The row is refused, and its sequence is given up until it comes again from the start. */
  REJECT("reject"),
  /** The job fails. */
  FAIL("fail");

  private final String label;

  OutOfBlocks(String label) {
    this.label = label;
  }

  @Override
  public String toString() {
    return label;
  }
}
