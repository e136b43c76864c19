// SPDX-License-Identifier: Apache-2.0
package io.broadhead.flink;

import org.apache.flink.configuration.DescribedEnum;
import org.apache.flink.configuration.description.InlineElement;
import org.apache.flink.configuration.description.TextElement;

/** What happens to a row with a value out of range. */
public enum OnBadRow implements DescribedEnum {
  FAIL("fail", "the job fails"),
  SIDE_OUTPUT("side-output", "the row goes to the side output, and its batch goes on without it");

  private final String label;
  private final String description;

  OnBadRow(String label, String description) {
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
