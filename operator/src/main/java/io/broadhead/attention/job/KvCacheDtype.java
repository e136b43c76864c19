// SPDX-License-Identifier: Apache-2.0
package io.broadhead.attention.job;

import io.broadhead.arrow.DType;
import java.util.Optional;

/** What a KV cache stores its elements as. */
public enum KvCacheDtype {
  /** As the query, key and value columns of the layer's first batch. */
  AUTO("auto", null),
  FLOAT16("float16", DType.FLOAT16),
  BFLOAT16("bfloat16", DType.BFLOAT16),
  FLOAT32("float32", DType.FLOAT32),
  FP8_E4M3("fp8_e4m3", DType.FLOAT8_E4M3FN),
  FP8_E5M2("fp8_e5m2", DType.FLOAT8_E5M2);

  private final String label;
  private final DType dtype;

  KvCacheDtype(String label, DType dtype) {
    this.label = label;
    this.dtype = dtype;
  }

  /** The word that the job file uses. */
  public String label() {
    return label;
  }

  /** The stored element type; empty for {@link #AUTO}. */
  public Optional<DType> dtype() {
    return Optional.ofNullable(dtype);
  }

  /** Whether elements are eight-bit floats, which {@code k_scale} and {@code v_scale} apply to. */
  public boolean fp8() {
    return this == FP8_E4M3 || this == FP8_E5M2;
  }

  static Optional<KvCacheDtype> parse(String text) {
    if (text.equals("fp8")) {
      return Optional.of(FP8_E4M3);
    }
    for (KvCacheDtype dtype : values()) {
      if (dtype.label.equals(text)) {
        return Optional.of(dtype);
      }
    }
    return Optional.empty();
  }
}
