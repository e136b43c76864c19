// SPDX-License-Identifier: Apache-2.0
package io.broadhead.arrow;

import java.util.Arrays;
import java.util.Optional;
import java.util.stream.Collectors;
import org.apache.arrow.vector.types.FloatingPointPrecision;
import org.apache.arrow.vector.types.pojo.ArrowType;

/**
 * Element types of tensors and of the KV cache.
 *
 * <p>Arrow has no bfloat16 and no 8-bit floats: those are stored as unsigned integers of the same
 * width, and the column's field metadata {@code dtype} names the type.
 */
public enum DType {
  FLOAT32(1, 4, "float32"),
  FLOAT16(2, 2, "float16"),
  BFLOAT16(3, 2, "bfloat16"),
  /** OCP e4m3: bias 7, largest 448, no infinity. */
  FLOAT8_E4M3FN(4, 1, "float8_e4m3fn"),
  /** OCP e5m2: bias 15, largest 57344. */
  FLOAT8_E5M2(5, 1, "float8_e5m2");

  private final int code;
  private final int byteWidth;
  private final String label;

  DType(int code, int byteWidth, String label) {
    this.code = code;
    this.byteWidth = byteWidth;
    this.label = label;
  }

  /** The number that the C ABI gives this type ({@code bh_dtype}). */
  public int code() {
    return code;
  }

  /** Bytes of one element. */
  public int byteWidth() {
    return byteWidth;
  }

  /** The name used in files, job files and messages. */
  public String label() {
    return label;
  }

  /** Whether Arrow has this type itself, so that no {@code dtype} metadata is needed. */
  public boolean isArrowNative() {
    return this == FLOAT32 || this == FLOAT16;
  }

  /** The Arrow type that holds the elements. */
  public ArrowType storage() {
    return switch (this) {
      case FLOAT32 -> new ArrowType.FloatingPoint(FloatingPointPrecision.SINGLE);
      case FLOAT16 -> new ArrowType.FloatingPoint(FloatingPointPrecision.HALF);
      case BFLOAT16 -> new ArrowType.Int(16, false);
      case FLOAT8_E4M3FN, FLOAT8_E5M2 -> new ArrowType.Int(8, false);
    };
  }

  /**
   * The type called {@code label}.
   *
   * @throws IllegalArgumentException naming the accepted labels
   */
  public static DType parse(String label) {
    return find(label)
        .orElseThrow(
            () ->
                new IllegalArgumentException(
                    "dtype: expected one of "
                        + Arrays.stream(values())
                            .map(DType::label)
                            .collect(Collectors.joining(", "))
                        + ", got "
                        + label));
  }

  /** The type called {@code label}, if there is one. */
  public static Optional<DType> find(String label) {
    return Arrays.stream(values()).filter(type -> type.label.equals(label)).findFirst();
  }

  /** The type with the C ABI's number {@code code}. */
  public static DType ofCode(int code) {
    return Arrays.stream(values())
        .filter(type -> type.code == code)
        .findFirst()
        .orElseThrow(() -> new IllegalArgumentException("no dtype has the code " + code));
  }

  @Override
  public String toString() {
    return label;
  }
}
