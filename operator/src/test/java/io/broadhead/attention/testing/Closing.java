// SPDX-License-Identifier: Apache-2.0
package io.broadhead.attention.testing;

import io.broadhead.arrow.ArrowBatch;
import io.broadhead.attention.InvalidBatchException;
import io.broadhead.attention.RefusedRow;
import io.broadhead.attention.StepHandler;

/** Drops the results of a queue; a row that is refused fails the step. */
public final class Closing implements StepHandler {
  @Override
  public void refused(RefusedRow row) {
    throw new InvalidBatchException(row, null);
  }

  @Override
  public void done(ArrowBatch result) {
    result.close();
  }
}
