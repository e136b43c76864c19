// SPDX-License-Identifier: Apache-2.0
package io.broadhead.job;

import io.broadhead.arrow.DType;

/** Element types that {@code broadhead bench} measures with. */
enum BenchDtype {
  FLOAT16("float16", DType.FLOAT16, DType.FLOAT16),
  BFLOAT16("bfloat16", DType.BFLOAT16, DType.BFLOAT16),
  FLOAT32("float32", DType.FLOAT32, DType.FLOAT32),
  /** An fp8 cache under queries, keys and values of float16. */
  FP8("fp8", DType.FLOAT16, DType.FLOAT8_E4M3FN);

  private final String label;
  final DType tensors;
  final DType cache;

  BenchDtype(String label, DType tensors, DType cache) {
    this.label = label;
    this.tensors = tensors;
    this.cache = cache;
  }

  /** How the command line spells it. */
  @Override
  public String toString() {
    return label;
  }
}
