// SPDX-License-Identifier: Apache-2.0
package io.broadhead.kernel;

import java.util.Objects;

/**
 * Rotary embedding.
 *
 * @param rotaryDim rotated elements of a head: even, at most the head size
 * @param maxPosition rows of the table
 * @param neox pairs (j, j + rotaryDim / 2) if true, (2j, 2j + 1) otherwise
 * @param cosSin {@code [maxPosition, rotaryDim]}: cosines in the first half of a row, sines in the
 *     second; the layer copies it
 */
public record RopeConfig(int rotaryDim, long maxPosition, boolean neox, float[] cosSin) {
  public RopeConfig {
    Objects.requireNonNull(cosSin, "cosSin");
    if (cosSin.length != Math.multiplyExact(maxPosition, (long) rotaryDim)) {
      throw new IllegalArgumentException(
          "rope table: expected "
              + maxPosition
              + " x "
              + rotaryDim
              + " values, got "
              + cosSin.length);
    }
  }
}
