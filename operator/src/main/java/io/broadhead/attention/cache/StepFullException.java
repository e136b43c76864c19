// SPDX-License-Identifier: Apache-2.0
package io.broadhead.attention.cache;

/**
 * A row cannot be in one step with the rows that were planned before it: they are to be computed
 * first. Where there are none, it needs more blocks than it can ever get; the message says so.
 */
public final class StepFullException extends Exception {
  private static final long serialVersionUID = 1;

  StepFullException(String message) {
    super(message, null, false, false);
  }
}
