// SPDX-License-Identifier: Apache-2.0
package io.broadhead.attention;

import io.broadhead.kernel.ErrorCode;

/**
 * A row that was left out of a step. Immutable.
 *
 * @param code why
 * @param layer what its layer column says; empty if that is null
 * @param sequenceId its sequence id as text; empty if that is null
 * @param row where it stood in the batch
 * @param message column, expected and got
 */
public record RefusedRow(
    ErrorCode code, String layer, String sequenceId, long row, String message) {

  @Override
  public String toString() {
    String sequence = sequenceId.isEmpty() ? "" : ", sequence " + sequenceId;
    return "layer '" + layer + "'" + sequence + ", row " + row + ": " + message;
  }
}
