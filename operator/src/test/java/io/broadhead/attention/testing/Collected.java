// SPDX-License-Identifier: Apache-2.0
package io.broadhead.attention.testing;

import io.broadhead.arrow.ArrowBatch;
import io.broadhead.attention.RefusedRow;
import io.broadhead.attention.StepHandler;
import java.util.ArrayList;
import java.util.List;

/** Collects the results of a queue; the test closes them. */
public final class Collected implements StepHandler {
  public final List<ArrowBatch> results = new ArrayList<>();
  public final List<RefusedRow> refused = new ArrayList<>();

  @Override
  public void refused(RefusedRow row) {
    refused.add(row);
  }

  @Override
  public void done(ArrowBatch result) {
    results.add(result);
  }
}
