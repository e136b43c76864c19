// SPDX-License-Identifier: Apache-2.0
package io.broadhead.attention;

import io.broadhead.kernel.ErrorCode;

/**
 * A step batch that cannot be computed. The message names layer, sequence, row and column where
 * they are known, what is expected and what was found; the caller knows where the batch came from
 * and adds it.
 */
public final class InvalidBatchException extends RuntimeException {
  private static final long serialVersionUID = 1;

  private final ErrorCode code;
  private final long row;

  public InvalidBatchException(ErrorCode code, long row, String message, Throwable cause) {
    super(message, cause);
    this.code = code;
    this.row = row;
  }

  /** For a row that is not left out. */
  public InvalidBatchException(RefusedRow refused, Throwable cause) {
    this(refused.code(), refused.row(), refused.toString(), cause);
  }

  public ErrorCode code() {
    return code;
  }

  /** The first row at fault, or -1 where it is the whole batch. */
  public long row() {
    return row;
  }
}
