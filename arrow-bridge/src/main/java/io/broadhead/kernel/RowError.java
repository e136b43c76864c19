// SPDX-License-Identifier: Apache-2.0
package io.broadhead.kernel;

/**
 * A row that a step would refuse.
 *
 * @param row row of the batch
 * @param code why it is refused
 * @param message column, expected and got
 */
public record RowError(long row, ErrorCode code, String message) {}
