// SPDX-License-Identifier: Apache-2.0
package io.broadhead.job.bench;

import java.util.Arrays;
import java.util.Collection;

/** Medians and means. */
final class Statistics {
  private Statistics() {}

  /** The middle one of {@code values}, of an even number the mean of the two; NaN of none. */
  static double median(Collection<Double> values) {
    return median(values.stream().mapToDouble(Double::doubleValue).toArray());
  }

  /** As {@link #median(Collection)}. */
  static double median(double... values) {
    double[] sorted = values.clone();
    Arrays.sort(sorted);
    int middle = sorted.length / 2;
    if (sorted.length == 0) {
      return Double.NaN;
    }
    return sorted.length % 2 == 1 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
  }

  /** The geometric mean of {@code values}, which are above 0; NaN of none. */
  static double geometricMean(Collection<Double> values) {
    return Math.exp(values.stream().mapToDouble(Math::log).average().orElse(Double.NaN));
  }
}
