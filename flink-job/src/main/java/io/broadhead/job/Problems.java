// SPDX-License-Identifier: Apache-2.0
package io.broadhead.job;

import io.broadhead.arrow.ArrowBatch;
import io.broadhead.arrow.StepInput;
import io.broadhead.attention.InvalidBatchException;
import io.broadhead.attention.PagedAttention;
import io.broadhead.attention.RefusedRow;
import io.broadhead.kernel.KernelException;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Collections;
import java.util.List;
import java.util.function.Function;
import java.util.function.Predicate;

/** Everything that is wrong with some step batches. Used by one thread. */
final class Problems {
  private final Function<ArrowBatch, List<RefusedRow>> rehearsal;
  private final Predicate<RefusedRow> isProblem;
  private final List<String> found = new ArrayList<>();

  /**
   * @param rehearsal finds the rows of a batch that would be refused, as {@link
   *     PagedAttention#rehearse} does
   * @param isProblem whether a row that would be refused counts
   */
  Problems(Function<ArrowBatch, List<RefusedRow>> rehearsal, Predicate<RefusedRow> isProblem) {
    this.rehearsal = rehearsal;
    this.isProblem = isProblem;
  }

  /** Adds what is wrong with {@code batch}. */
  void check(StepInput.Origin origin, ArrowBatch batch) {
    try {
      for (RefusedRow row : rehearsal.apply(batch)) {
        if (isProblem.test(row)) {
          found.add(origin + ", " + row);
        }
      }
    } catch (InvalidBatchException | KernelException e) {
      found.add(origin + ", " + e.getMessage());
    }
  }

  /** Adds that {@code file} could not be read to its end. */
  void add(Path file, Exception failure) {
    String text = Failure.describe(failure);
    found.add(text.startsWith(file.toString()) ? text : file + ": " + text);
  }

  /** The problems in the order in which they were found. */
  List<String> all() {
    return Collections.unmodifiableList(found);
  }
}
