// SPDX-License-Identifier: Apache-2.0
package io.broadhead.flink;

/** What checkpoints and savepoints hold of the KV caches. Free of Flink, as {@link OnBadRow} is. */
public enum StateMode {
  /** Keys and values. */
  FULL("full"),
  /** Which sequences there are; needs managed block tables. */
  METADATA("metadata"),
  /** Nothing. */
  NONE("none");

  private final String label;

  StateMode(String label) {
    this.label = label;
  }

  @Override
  public String toString() {
    return label;
  }
}
