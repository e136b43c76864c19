// SPDX-License-Identifier: Apache-2.0
package io.broadhead.job;

import io.broadhead.job.sink.ResultFileSink;
import java.io.IOException;
import java.nio.file.Path;

/**
 * The files that a run begins in its folders, told from older ones by their names.
 *
 * @param madeOutput whether the run made its output folder
 * @param resultsSince before the names of its results, behind those of older ones
 * @param refusedSince the same for files of refused rows
 */
record RunParts(
    Path output, Path refused, boolean madeOutput, String resultsSince, String refusedSince) {
  /** Those that are begun from now on. */
  static RunParts fromNowOn(Path output, Path refused, boolean madeOutput) {
    return new RunParts(
        output,
        refused,
        madeOutput,
        ResultFileSink.namesFromNowOn(ResultFileSink.RESULTS),
        ResultFileSink.namesFromNowOn(ResultFileSink.REFUSED));
  }

  /**
   * Removes what a run that did not end well has written. Without checkpoints a subtask that ends
   * commits its files whatever becomes of the others, so those are part of a result that never was;
   * what a checkpoint made visible stays.
   */
  synchronized void remove(boolean checkpointed) throws IOException {
    OutputFolder.removeParts(
        output, ResultFileSink.RESULTS, resultsSince, !checkpointed, madeOutput);
    OutputFolder.removeParts(
        refused, ResultFileSink.REFUSED, refusedSince, !checkpointed, !checkpointed);
  }
}
