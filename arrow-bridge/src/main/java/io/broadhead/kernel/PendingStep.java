// SPDX-License-Identifier: Apache-2.0
package io.broadhead.kernel;

import io.broadhead.nativelib.bh_error;
import io.broadhead.nativelib.bh_pending_step;
import io.broadhead.nativelib.bh_step_stats;
import io.broadhead.nativelib.global.broadhead;
import java.lang.ref.Reference;
import java.util.List;

/**
 * A step that was begun: it computes beside the caller until {@link #end}. Its parts, their batches
 * and drafts stay as they are until then.
 *
 * <p>Keeps its binding alive. Its owner ends or closes it, on the thread of the binding; {@link
 * #await} is for others.
 */
public final class PendingStep extends NativeHandle {
  private final StepBinding binding;
  private final List<StepPart> parts;
  private final bh_pending_step handle = new bh_pending_step();

  PendingStep(StepBinding binding, List<StepPart> parts) {
    super("step of " + binding.layer(), binding);
    this.binding = binding;
    this.parts = List.copyOf(parts);
  }

  bh_pending_step handle() {
    return handle;
  }

  /** Waits until the device is done, or the step has ended. May be called by any thread. */
  public synchronized void await() {
    if (!handle.isNull()) {
      // What goes wrong is told at the end.
      broadhead.bh_step_wait(handle, null);
    }
  }

  /**
   * Waits for the step and completes its results.
   *
   * @throws KernelException if the device failed, or the engine was cancelled
   */
  public StepStats end() {
    try {
      return binding.end(this);
    } finally {
      close();
    }
  }

  /** The native end of the step, once; batches and results are the caller's again. */
  synchronized int end(bh_step_stats stats, bh_error error) {
    if (handle.isNull()) {
      throw new IllegalStateException(this + " has ended");
    }
    try {
      return broadhead.bh_step_end(handle, stats, error);
    } finally {
      handle.setNull();
      parts.forEach(part -> Reference.reachabilityFence(part.batch()));
    }
  }

  @Override
  synchronized void destroy() {
    if (!handle.isNull()) {
      end(null, null);
    }
  }
}
