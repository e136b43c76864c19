// SPDX-License-Identifier: Apache-2.0
package io.broadhead.job;

/** What checkpoints and savepoints hold of the KV caches. */
enum SavedState {
  FULL("full"),
  METADATA("metadata"),
  NONE("none");

  private final String label;

  SavedState(String label) {
    this.label = label;
  }

  /** How the command line and the configuration spell it. */
  @Override
  public String toString() {
    return label;
  }
}
