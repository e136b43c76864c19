// SPDX-License-Identifier: Apache-2.0
package io.broadhead.flink;

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

  @Override
  public String toString() {
    return label;
  }
}
