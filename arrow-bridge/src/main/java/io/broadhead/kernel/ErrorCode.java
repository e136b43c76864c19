// SPDX-License-Identifier: Apache-2.0
package io.broadhead.kernel;

/** What native code answers ({@code bh_status}), and what a caller should do about it. */
public enum ErrorCode {
  /** An option or argument is wrong: fail the job. */
  INVALID_ARGUMENT(1),
  /** A column is missing or has another type than the layer needs: fail the job. */
  SCHEMA_MISMATCH(2),
  /** A value in one row is out of range: refuse the row or fail. */
  INVALID_ROW(3),
  /** Right, but not something this backend does: try the next backend or fail at open. */
  UNSUPPORTED(4),
  /** The block pool is exhausted: the pool's policy decides. */
  OUT_OF_BLOCKS(5),
  /** Memory is exhausted: fail, naming the budget. */
  OUT_OF_MEMORY(6),
  /** The device refused the work: restart the task. */
  DEVICE_ERROR(7),
  /** The device is gone: fail. */
  DEVICE_LOST(8),
  /** Library and binding are of different versions: fail at load. */
  ABI_MISMATCH(9),
  /** A defect of the library: fail and report it. */
  INTERNAL(10),
  /** {@link KernelEngine#cancel} was called: end. */
  CANCELLED(11),
  /** What came before in a sequence is no longer cached: send it again, or refuse the row. */
  SEQUENCE_LOST(12);

  private final int status;

  ErrorCode(int status) {
    this.status = status;
  }

  /** The code of {@code status}; a number this version does not know is {@link #INTERNAL}. */
  public static ErrorCode of(int status) {
    for (ErrorCode code : values()) {
      if (code.status == status) {
        return code;
      }
    }
    return INTERNAL;
  }
}
