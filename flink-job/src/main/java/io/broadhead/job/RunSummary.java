// SPDX-License-Identifier: Apache-2.0
package io.broadhead.job;

import java.util.Locale;

/**
 * What was done. One line of {@code key=value} pairs, so that people and scripts can read it.
 *
 * @param sequences different sequences seen, -1 if nobody counted
 * @param refused rows left out
 * @param bytesCopied tensor and list bytes that were copied on their way to the kernels
 */
record RunSummary(
    long batches,
    long rows,
    long sequences,
    long tokens,
    long refused,
    long bytesCopied,
    double seconds,
    String backend,
    String tier,
    int threads,
    String output) {

  String line() {
    return "done: batches="
        + batches
        + " rows="
        + rows
        + (sequences < 0 ? "" : " sequences=" + sequences)
        + " tokens="
        + tokens
        + " tokens_per_s="
        + Math.round(tokens / Math.max(seconds, 1e-9))
        + " refused_rows="
        + refused
        + " bytes_copied="
        + bytesCopied
        + String.format(Locale.ROOT, " seconds=%.3f", seconds)
        + " backend="
        + backend
        + " tier="
        + tier
        + " threads="
        + threads
        + " output="
        + output;
  }
}
