// SPDX-License-Identifier: Apache-2.0
package io.broadhead.job.bench;

/**
 * What one contender took.
 *
 * @param nanos median of its samples
 * @param timesOurs median of its samples' ratios to ours just before; 1 for ours
 * @param samples how many
 * @param disturbed whether others worked during the samples, because there was no quiet moment
 */
record Timing(
    Contender contender, double nanos, double timesOurs, int samples, boolean disturbed) {}
