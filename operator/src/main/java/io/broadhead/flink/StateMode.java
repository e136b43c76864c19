// SPDX-License-Identifier: Apache-2.0
package io.broadhead.flink;

import org.apache.flink.configuration.DescribedEnum;
import org.apache.flink.configuration.description.InlineElement;
import org.apache.flink.configuration.description.TextElement;

/** What checkpoints and savepoints hold of the KV caches. */
public enum StateMode implements DescribedEnum {
  FULL(
      "full",
      "keys and values: a job that is restored goes on where it was. Each token is written once,"
          + " at the first checkpoint after its step, or when its sequence makes room for others"),
  METADATA(
      "metadata",
      "which sequences there are: after a restart, rows of these are refused with SEQUENCE_LOST"
          + " until the producer sends them again from the first token. Needs managed block tables"),
  NONE("none", "nothing: a job that is restored begins with empty caches");

  private final String label;
  private final String description;

  StateMode(String label, String description) {
    this.label = label;
    this.description = description;
  }

  @Override
  public InlineElement getDescription() {
    return TextElement.text(description);
  }

  @Override
  public String toString() {
    return label;
  }
}
