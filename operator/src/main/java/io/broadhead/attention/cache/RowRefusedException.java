// SPDX-License-Identifier: Apache-2.0
package io.broadhead.attention.cache;

import io.broadhead.kernel.ErrorCode;

/** A row that cannot be placed. The message names column, expected and got, but not the row. */
public final class RowRefusedException extends Exception {
  private static final long serialVersionUID = 1;

  private final ErrorCode code;

  RowRefusedException(ErrorCode code, String message) {
    super(message, null, false, false);
    this.code = code;
  }

  /** For a value that does not fit; see {@link String#format}. */
  public static RowRefusedException badRow(String format, Object... arguments) {
    return new RowRefusedException(ErrorCode.INVALID_ROW, String.format(format, arguments));
  }

  public ErrorCode code() {
    return code;
  }
}
