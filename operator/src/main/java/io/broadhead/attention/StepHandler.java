// SPDX-License-Identifier: Apache-2.0
package io.broadhead.attention;

import io.broadhead.arrow.ArrowBatch;

/** Is told what becomes of a step batch. Called by the thread that runs the steps. */
public interface StepHandler {
  /**
   * A row is left out of the result. May throw, which takes back the step that was being planned
   * and comes out of the call that ran it.
   */
  void refused(RefusedRow row);

  /** All other rows were computed. The handler closes the result. */
  void done(ArrowBatch result);
}
