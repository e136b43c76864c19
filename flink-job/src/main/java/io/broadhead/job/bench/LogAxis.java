// SPDX-License-Identifier: Apache-2.0
package io.broadhead.job.bench;

import java.util.DoubleSummaryStatistics;
import java.util.stream.DoubleStream;

/**
 * A logarithmic scale.
 *
 * @param base ticks stand at its powers
 * @param first exponent of the first tick, where the scale begins
 * @param last exponent of the last tick, where the scale ends
 */
record LogAxis(int base, int first, int last) {
  /** A scale from the tick at or below the least of {@code values} to one above the greatest. */
  static LogAxis over(int base, DoubleStream values) {
    DoubleSummaryStatistics all = values.summaryStatistics();
    if (all.getCount() == 0) {
      return new LogAxis(base, 0, 1);
    }
    // The logarithms of powers are not quite whole.
    int first = (int) Math.floor(exponent(base, all.getMin()) + 1e-9);
    int last = (int) Math.ceil(exponent(base, all.getMax()) - 1e-9);
    return new LogAxis(base, first, Math.max(last, first + 1));
  }

  private static double exponent(int base, double value) {
    return Math.log(value) / Math.log(base);
  }

  /** Where {@code value} lies: 0 at the beginning, 1 at the end. */
  double place(double value) {
    return (exponent(base, value) - first) / (last - first);
  }

  double[] ticks() {
    double[] ticks = new double[last - first + 1];
    for (int i = 0; i < ticks.length; i++) {
      ticks[i] = Math.pow(base, first + i);
    }
    return ticks;
  }
}
