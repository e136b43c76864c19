// SPDX-License-Identifier: Apache-2.0
package io.broadhead.job;

/** Work that failed for a reason the user can act on; the message is the whole story. */
final class WorkFailedException extends Exception {
  private static final long serialVersionUID = 1L;

  WorkFailedException(String message) {
    super(message);
  }

  WorkFailedException(String message, Throwable cause) {
    super(message, cause);
  }
}
