// SPDX-License-Identifier: Apache-2.0
package io.broadhead.job.bench;

import io.broadhead.arrow.DType;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.util.Random;
import org.apache.arrow.memory.ArrowBuf;
import org.apache.arrow.memory.util.Float16;

/**
 * Memory full of N(0, 1) values. They are windows of one table, at random places, because drawing
 * gigabytes of them would take longer than any measurement. Used by one thread.
 */
public final class NormalValues {
  private static final int ELEMENTS = 1 << 20;
  private static final int WINDOW = ELEMENTS / 16;

  private final Random random;
  private final DType dtype;
  private final byte[] table;

  public NormalValues(DType dtype, long seed) {
    this.random = new Random(seed);
    this.dtype = dtype;
    this.table = new byte[ELEMENTS * dtype.byteWidth()];
    ByteBuffer elements = ByteBuffer.wrap(table).order(ByteOrder.nativeOrder());
    for (int i = 0; i < ELEMENTS; i++) {
      put(elements, (float) random.nextGaussian());
    }
  }

  private void put(ByteBuffer elements, float value) {
    switch (dtype) {
      case FLOAT32 -> elements.putFloat(value);
      case FLOAT16 -> elements.putShort(Float16.toFloat16(value));
      case BFLOAT16 -> elements.putShort(bfloat16(value));
      case FLOAT8_E4M3FN -> elements.put(float8(value, 3, 7));
      case FLOAT8_E5M2 -> elements.put(float8(value, 2, 15));
    }
  }

  private static short bfloat16(float value) {
    int bits = Float.floatToRawIntBits(value);
    return (short) (bits + 0x7fff + (bits >> 16 & 1) >>> 16);
  }

  /** The nearest 8-bit float, ties to even; for values far below the largest one. */
  static byte float8(float value, int mantissaBits, int bias) {
    double magnitude = Math.abs(value);
    int exponent = Math.max(Math.getExponent(magnitude), 1 - bias);
    // A normal number's leading one adds itself to the exponent field, as does a carry.
    int steps = (int) Math.rint(Math.scalb(magnitude, mantissaBits - exponent));
    int code = (exponent + bias - 1 << mantissaBits) + steps;
    return (byte) (value < 0 ? code | 0x80 : code);
  }

  /** Fills {@code target} from {@code from} on with {@code bytes} bytes of values. */
  void fill(ArrowBuf target, long from, long bytes) {
    long at = from;
    for (long left = bytes; left > 0; ) {
      int length = (int) Math.min(left, (long) WINDOW * dtype.byteWidth());
      target.setBytes(at, table, window(length), length);
      at += length;
      left -= length;
    }
  }

  /** Fills what remains of {@code target}. */
  public void fill(ByteBuffer target) {
    while (target.hasRemaining()) {
      int length = Math.min(target.remaining(), WINDOW * dtype.byteWidth());
      target.put(table, window(length), length);
    }
  }

  /** Where a window of {@code length} bytes begins. */
  private int window(int length) {
    int width = dtype.byteWidth();
    return random.nextInt(ELEMENTS - length / width + 1) * width;
  }
}
