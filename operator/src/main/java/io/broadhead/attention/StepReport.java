// SPDX-License-Identifier: Apache-2.0
package io.broadhead.attention;

import io.broadhead.kernel.StepStats;

/**
 * What a step of a {@link StepQueue} did. Immutable.
 *
 * @param rows rows that it computed, or some of whose tokens it computed
 */
public record StepReport(int rows, StepStats stats) {
  /** A step in which no row was computed. */
  static final StepReport NOTHING = new StepReport(0, StepStats.NONE);
}
