// SPDX-License-Identifier: Apache-2.0
package io.broadhead.job.bench;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.within;

import io.broadhead.arrow.DType;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.util.stream.DoubleStream;
import java.util.stream.IntStream;
import org.apache.arrow.memory.util.Float16;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.EnumSource;

class NormalValuesTest {
  private static final int COUNT = 200_000;

  @ParameterizedTest
  @EnumSource
  void valuesAreNormal(DType dtype) {
    ByteBuffer memory =
        ByteBuffer.allocate(COUNT * dtype.byteWidth()).order(ByteOrder.nativeOrder());
    new NormalValues(dtype, 1).fill(memory);
    memory.flip();
    double[] values = DoubleStream.generate(() -> next(memory, dtype)).limit(COUNT).toArray();
    double mean = DoubleStream.of(values).average().orElseThrow();
    double variance = DoubleStream.of(values).map(x -> x * x).average().orElseThrow();
    assertThat(mean).isEqualTo(0, within(0.02));
    assertThat(variance).isEqualTo(1, within(0.05));
  }

  private static double next(ByteBuffer memory, DType dtype) {
    return switch (dtype) {
      case FLOAT32 -> memory.getFloat();
      case FLOAT16 -> Float16.toFloat(memory.getShort());
      case BFLOAT16 -> Float.intBitsToFloat(memory.getShort() << 16);
      case FLOAT8_E4M3FN -> float8(memory.get(), 3, 7);
      case FLOAT8_E5M2 -> float8(memory.get(), 2, 15);
    };
  }

  private static double float8(int code, int mantissaBits, int bias) {
    int exponent = (code & 0x7f) >> mantissaBits;
    double fraction = (code & (1 << mantissaBits) - 1) / (double) (1 << mantissaBits);
    double magnitude =
        exponent == 0 ? Math.scalb(fraction, 1 - bias) : Math.scalb(1 + fraction, exponent - bias);
    return code < 0 ? -magnitude : magnitude;
  }

  @Test
  void eightBitFloatsRoundToTheNearest() {
    double[] codes = IntStream.range(0, 0x70).mapToDouble(c -> float8(c, 3, 7)).toArray();
    for (int code = 1; code < codes.length; code++) {
      float middle = (float) ((codes[code - 1] + codes[code]) / 2);
      int even = code % 2 == 0 ? code : code - 1;
      assertThat((int) NormalValues.float8((float) codes[code], 3, 7)).isEqualTo(code);
      assertThat((int) NormalValues.float8(middle, 3, 7)).isEqualTo(even);
      assertThat((int) NormalValues.float8(Math.nextUp(middle), 3, 7)).isEqualTo(code);
    }
    assertThat(NormalValues.float8(-1, 3, 7)).isEqualTo((byte) 0xb8);
  }
}
