// SPDX-License-Identifier: Apache-2.0
package io.broadhead.attention.job;

import java.io.Serializable;
import java.util.Arrays;
import java.util.List;

/**
 * Rotary position embedding of queries and keys. Immutable.
 *
 * @param rotaryDim leading elements of a head that are rotated; even
 * @param maxPosition positions are 0 to maxPosition - 1
 * @param base wavelength base
 * @param isNeox whether element j pairs with j + rotaryDim / 2 (NeoX) or 2j with 2j + 1 (GPT-J)
 * @param scaling how frequencies are stretched beyond the trained context
 */
public record RopeSpec(
    int rotaryDim, int maxPosition, double base, boolean isNeox, RopeScaling scaling)
    implements Serializable {

  static final double DEFAULT_BASE = 10000.0;

  /** Frequencies without scaling. */
  public RopeSpec(int rotaryDim, int maxPosition, double base, boolean isNeox) {
    this(rotaryDim, maxPosition, base, isNeox, RopeScaling.NONE);
  }

  public RopeSpec {
    if (rotaryDim < 2 || rotaryDim % 2 != 0) {
      throw InvalidJobException.expected(
          JobFileKey.ROTARY_DIM.key(), "an even number, 2 to head_size", rotaryDim);
    }
    if (maxPosition < 1 || (long) maxPosition * rotaryDim > Integer.MAX_VALUE - 8) {
      throw InvalidJobException.expected(
          JobFileKey.MAX_POSITION.key(),
          "1 to " + (Integer.MAX_VALUE - 8) / rotaryDim + " with rotary_dim " + rotaryDim,
          maxPosition);
    }
    if (!(base > 0) || Double.isInfinite(base)) {
      throw InvalidJobException.expected(JobFileKey.BASE.key(), "a finite number above 0", base);
    }
    if (!Arrays.stream(scaling.frequencies(rotaryDim, base, maxPosition))
        .allMatch(Double::isFinite)) {
      throw InvalidJobException.expected(
          JobFileKey.BASE.key(), "a base for which the scaling gives finite frequencies", base);
    }
  }

  // By hand where tasks compare: see "Class loaders" in flink-job/cluster/README.md.
  @Override
  public boolean equals(Object other) {
    return other instanceof RopeSpec o && parts().equals(o.parts());
  }

  @Override
  public int hashCode() {
    return parts().hashCode();
  }

  private List<Object> parts() {
    return List.of(rotaryDim, maxPosition, base, isNeox, scaling);
  }

  /**
   * Rotation table [maxPosition, rotaryDim]: the cosines of a position in the first half of its
   * row, the sines in the second. Angles are computed in double and rounded once.
   */
  public float[] cosSin() {
    int half = rotaryDim / 2;
    double[] frequency = scaling.frequencies(rotaryDim, base, maxPosition);
    double factor = scaling.attentionFactor();
    float[] table = new float[maxPosition * rotaryDim];
    for (int position = 0, row = 0; position < maxPosition; position++, row += rotaryDim) {
      for (int j = 0; j < half; j++) {
        double angle = position * frequency[j];
        table[row + j] = (float) (factor * Math.cos(angle));
        table[row + half + j] = (float) (factor * Math.sin(angle));
      }
    }
    return table;
  }
}
