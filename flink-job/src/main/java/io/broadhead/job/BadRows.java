// SPDX-License-Identifier: Apache-2.0
package io.broadhead.job;

/** What to do with a row that is wrong. */
enum BadRows {
  FAIL("fail"),
  SIDE_OUTPUT("side-output");

  private final String label;

  BadRows(String label) {
    this.label = label;
  }

  /** How the command line and the configuration spell it. */
  @Override
  public String toString() {
    return label;
  }
}
