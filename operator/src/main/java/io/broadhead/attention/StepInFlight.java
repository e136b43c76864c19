// SPDX-License-Identifier: Apache-2.0
package io.broadhead.attention;

import io.broadhead.kernel.KernelException;
import io.broadhead.kernel.PendingStep;
import io.broadhead.kernel.StepStats;
import java.util.ArrayList;
import java.util.List;

/**
 * A step that a device computes beside the caller, and the batches that are complete with it. Its
 * owner ends or closes it; used by one thread, {@link #await} apart.
 */
final class StepInFlight implements StepQueue.InFlight, AutoCloseable {
  private final PendingStep step;
  private final List<StepPlan.Placed> placed;
  private final long nanosToBegin;
  private final List<PendingBatch> complete = new ArrayList<>();

  StepInFlight(PendingStep step, List<StepPlan.Placed> placed, long nanosToBegin) {
    this.step = step;
    this.placed = placed;
    this.nanosToBegin = nanosToBegin;
  }

  /** These have their results when the step has ended; they are this object's from now on. */
  void completes(List<PendingBatch> batches) {
    complete.addAll(batches);
  }

  /** The batches that are complete with the step. */
  List<PendingBatch> complete() {
    return complete;
  }

  @Override
  public void await() {
    step.await();
  }

  /**
   * Waits for the step; its batches are left to the caller to finish and close.
   *
   * @throws KernelException if the device failed, naming the layer
   */
  StepReport end() {
    long start = System.nanoTime();
    try {
      StepStats stats = step.end();
      return new StepReport(StepPlan.rows(placed), stats, nanosToBegin + System.nanoTime() - start);
    } catch (KernelException e) {
      throw StepRunner.named(e, placed.get(0).layer().spec());
    } finally {
      placed.forEach(StepPlan.Placed::giveBack);
    }
  }

  /** Waits for the step and drops what it computed. */
  @Override
  public void close() {
    step.close();
    placed.forEach(StepPlan.Placed::giveBack);
    complete.forEach(PendingBatch::close);
  }
}
