// SPDX-License-Identifier: Apache-2.0
package io.broadhead.attention;

import io.broadhead.kernel.StepStats;

/**
 * What a step of a {@link StepQueue} did. Immutable.
 *
 * @param rows rows that it computed, or some of whose tokens it computed
 * @param nanos of the caller's thread: to plan and compute it, or to plan and begin it and then to
 *     wait for its end
 */
public record StepReport(int rows, StepStats stats, long nanos) {}
