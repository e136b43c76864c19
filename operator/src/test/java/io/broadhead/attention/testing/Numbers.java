// SPDX-License-Identifier: Apache-2.0
package io.broadhead.attention.testing;

import io.broadhead.arrow.DType;
import org.apache.arrow.memory.ArrowBuf;
import org.apache.arrow.memory.util.Float16;

/** Element types in Java arithmetic: one rounding from double, nearest even. */
public final class Numbers {
  private Numbers() {}

  /** {@code x} as an element of {@code dtype} holds it; eight-bit floats saturate. */
  public static double round(double x, DType dtype) {
    return switch (dtype) {
      case FLOAT32 -> (float) x;
      case FLOAT16 -> round(x, 10, -14, Double.POSITIVE_INFINITY);
      case BFLOAT16 -> round(x, 7, -126, Double.POSITIVE_INFINITY);
      case FLOAT8_E4M3FN -> round(x, 3, -6, 448);
      case FLOAT8_E5M2 -> round(x, 2, -14, 57344);
    };
  }

  private static double round(double x, int mantissaBits, int minExponent, double max) {
    if (x == 0 || Double.isNaN(x)) {
      return x;
    }
    double quantum = Math.scalb(1.0, Math.max(Math.getExponent(x), minExponent) - mantissaBits);
    return Math.max(-max, Math.min(max, Math.rint(x / quantum) * quantum));
  }

  /** Writes element {@code index}; {@code x} is already rounded. */
  public static void write(ArrowBuf buffer, long index, double x, DType dtype) {
    switch (dtype) {
      case FLOAT32 -> buffer.setFloat(index * 4, (float) x);
      case FLOAT16 -> buffer.setShort(index * 2, Float16.toFloat16((float) x));
      case BFLOAT16 -> buffer.setShort(index * 2, Float.floatToIntBits((float) x) >>> 16);
      default -> throw new IllegalArgumentException(dtype.toString());
    }
  }

  /** Reads element {@code index}. */
  public static double read(ArrowBuf buffer, long index, DType dtype) {
    return switch (dtype) {
      case FLOAT32 -> buffer.getFloat(index * 4);
      case FLOAT16 -> Float16.toFloat(buffer.getShort(index * 2));
      case BFLOAT16 -> Float.intBitsToFloat(buffer.getShort(index * 2) << 16);
      case FLOAT8_E4M3FN -> e4m3(buffer.getByte(index));
      case FLOAT8_E5M2 -> throw new IllegalArgumentException(dtype.toString());
    };
  }

  private static double e4m3(int bits) {
    int exponent = bits >> 3 & 15;
    int mantissa = bits & 7;
    double magnitude =
        exponent == 0 ? Math.scalb(mantissa, -9) : Math.scalb(8 + mantissa, exponent - 10);
    if (exponent == 15 && mantissa == 7) {
      return Double.NaN;
    }
    return bits < 0 ? -magnitude : magnitude;
  }
}
