// SPDX-License-Identifier: Apache-2.0
package io.broadhead.job.bench;

import java.util.List;
import java.util.function.UnaryOperator;

/**
 * Our own steps of another cell, to be timed beside those of a cell: what a change of it costs or
 * gains, whatever the speed of the machine at the time.
 *
 * @param name as it was asked for, and as tables call it
 */
public record Variant(String name, UnaryOperator<Cell> change) {
  /**
   * Reads {@code threads=1}, {@code dtype=fp8} or {@code rows=8x1@4096}.
   *
   * @throws IllegalArgumentException naming what is accepted
   */
  public static Variant parse(String text) {
    String value = text.substring(text.indexOf('=') + 1);
    return new Variant(
        text,
        switch (text.substring(0, text.length() - value.length())) {
          case "threads=" -> threads(value);
          case "dtype=" -> dtype(BenchDtype.parse(value));
          case "rows=" -> rows(Rows.parse(value));
          default ->
              throw new IllegalArgumentException(
                  "expected threads=N, dtype=TYPE or rows=COUNTxTOKENS@CONTEXT, got " + text);
        });
  }

  private static UnaryOperator<Cell> threads(String value) {
    if (!value.matches("[1-9]\\d{0,8}")) {
      throw new IllegalArgumentException("threads: expected 1 or more, got " + value);
    }
    int threads = Integer.parseInt(value);
    return cell -> new Cell(cell.mode(), cell.shape(), threads);
  }

  private static UnaryOperator<Cell> dtype(BenchDtype dtype) {
    return cell -> new Cell(cell.mode(), cell.shape().withDtype(dtype), cell.threads());
  }

  private static UnaryOperator<Cell> rows(List<Rows> rows) {
    return cell -> new Cell(cell.mode(), cell.shape().withRows(rows), cell.threads());
  }
}
