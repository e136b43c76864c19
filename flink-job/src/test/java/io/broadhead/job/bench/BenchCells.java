// SPDX-License-Identifier: Apache-2.0
package io.broadhead.job.bench;

import io.broadhead.arrow.DType;
import java.util.List;

/** Cells and results to test with. */
final class BenchCells {
  private BenchCells() {}

  static StepShape shape(Heads heads, DType dtype, Rows... rows) {
    return new StepShape(heads, dtype, dtype, 16, List.of(rows), true, false);
  }

  static Cell decode(String model, int batch, int context, int threads) {
    return new Cell(
        Mode.DECODE,
        shape(Heads.parse(model), DType.FLOAT16, new Rows(batch, 1, context)),
        threads);
  }

  static Result ours(Cell cell, double microseconds) {
    return new Result(
        cell, KernelWorkload.OURS, Contender.Kind.OURS, microseconds, 1, 9, false, 776);
  }

  static Result other(Cell cell, Contender.Kind kind, String name, double timesOurs) {
    return new Result(cell, name, kind, 100 * timesOurs, timesOurs, 9, false, Double.NaN);
  }
}
