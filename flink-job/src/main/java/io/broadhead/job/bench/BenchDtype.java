// SPDX-License-Identifier: Apache-2.0
package io.broadhead.job.bench;

import io.broadhead.arrow.DType;
import java.util.Arrays;
import java.util.stream.Collectors;

/** Element types that {@code broadhead bench} measures with. */
public enum BenchDtype {
  FLOAT16("float16", DType.FLOAT16, DType.FLOAT16),
  BFLOAT16("bfloat16", DType.BFLOAT16, DType.BFLOAT16),
  FLOAT32("float32", DType.FLOAT32, DType.FLOAT32),
  /** An fp8 cache under queries, keys and values of float16. */
  FP8("fp8", DType.FLOAT16, DType.FLOAT8_E4M3FN);

  private final String label;
  public final DType tensors;
  public final DType cache;

  BenchDtype(String label, DType tensors, DType cache) {
    this.label = label;
    this.tensors = tensors;
    this.cache = cache;
  }

  /**
   * Reads {@code fp8} and the like, in upper or lower case.
   *
   * @throws IllegalArgumentException naming what is accepted
   */
  static BenchDtype parse(String text) {
    for (BenchDtype dtype : values()) {
      if (dtype.label.equalsIgnoreCase(text)) {
        return dtype;
      }
    }
    throw new IllegalArgumentException(
        "dtype: expected one of "
            + Arrays.stream(values()).map(BenchDtype::toString).collect(Collectors.joining(", "))
            + ", got "
            + text);
  }

  /** How the command line spells it. */
  @Override
  public String toString() {
    return label;
  }
}
