// SPDX-License-Identifier: Apache-2.0
package io.broadhead.job.bench;

/**
 * One line of a table: a step of some shape on some threads.
 *
 * @param mode what is measured
 */
public record Cell(Mode mode, StepShape shape, int threads) {
  /** {@code decode llama-3-8b float16 8x1@4096, 2 threads}. */
  @Override
  public String toString() {
    return mode
        + " "
        + shape.heads().name()
        + " "
        + dtypes()
        + " "
        + Rows.text(shape.rows())
        + (shape.rope() ? " rope" : "")
        + (shape.blockSize() == 16 ? "" : " blocks of " + shape.blockSize())
        + (threads == 1 ? ", 1 thread" : ", " + threads + " threads");
  }

  /** The element type, and that of the cache where it differs. */
  String dtypes() {
    return shape.dtype() == shape.cacheDtype()
        ? shape.dtype().label()
        : shape.dtype().label() + "/" + shape.cacheDtype().label();
  }
}
