// SPDX-License-Identifier: Apache-2.0
package io.broadhead.kernel;

/** A native call that failed: what kind of failure, which row if one is to blame, and the text. */
public final class KernelException extends RuntimeException {
  private static final long serialVersionUID = 1L;

  private final ErrorCode code;
  private final long row;

  public KernelException(ErrorCode code, long row, String message) {
    super(message);
    this.code = code;
    this.row = row;
  }

  public ErrorCode code() {
    return code;
  }

  /** Row of the batch, or -1 where no row is to blame. */
  public long row() {
    return row;
  }

  @Override
  public String toString() {
    return getClass().getName()
        + ": "
        + code
        + (row < 0 ? "" : ", row " + row)
        + ": "
        + getMessage();
  }
}
