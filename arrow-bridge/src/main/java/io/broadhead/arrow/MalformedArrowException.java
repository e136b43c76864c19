// SPDX-License-Identifier: Apache-2.0
package io.broadhead.arrow;

import java.io.IOException;

/**
 * Bytes that are not what the Arrow format says they should be: truncated, damaged, or a layout
 * that step batches do not use. The message names the source and the column.
 */
public final class MalformedArrowException extends IOException {
  private static final long serialVersionUID = 1L;

  public MalformedArrowException(String message) {
    super(message);
  }

  public MalformedArrowException(String message, Throwable cause) {
    super(message, cause);
  }
}
