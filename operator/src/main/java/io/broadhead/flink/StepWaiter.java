// SPDX-License-Identifier: Apache-2.0
package io.broadhead.flink;

import io.broadhead.attention.StepQueue;
import java.util.concurrent.RejectedExecutionException;
import java.util.concurrent.atomic.AtomicReference;
import java.util.concurrent.locks.LockSupport;
import java.util.function.Consumer;
import org.apache.flink.api.common.operators.MailboxExecutor;

/**
 * Waits for the step that a device computes, in a thread of its own, and tells the task's thread by
 * a mail: so results go out as soon as they are there, also if no input follows. The task's thread
 * does not wait for it: it settles the step itself if it gets there first.
 *
 * <p>Its owner closes it, which ends the thread.
 */
final class StepWaiter implements AutoCloseable {
  private final MailboxExecutor mailbox;
  private final Consumer<StepQueue.InFlight> settle;

  /** Those before it are settled by now: a step is begun before the one before it is settled. */
  private final AtomicReference<StepQueue.InFlight> latest = new AtomicReference<>();

  private final Thread thread;
  private volatile boolean closed;

  /** The last one that was given here; for the task's thread. */
  private StepQueue.InFlight last;

  /**
   * @param settle called by the task's thread with a step that is done
   */
  StepWaiter(String task, MailboxExecutor mailbox, Consumer<StepQueue.InFlight> settle) {
    this.mailbox = mailbox;
    this.settle = settle;
    this.thread = new Thread(this::run, "Broadhead steps of " + task);
    thread.setDaemon(true);
    thread.start();
  }

  /** Has {@code step} settled when it is done. */
  void await(StepQueue.InFlight step) {
    if (step != last) {
      last = step;
      latest.set(step);
      LockSupport.unpark(thread);
    }
  }

  private void run() {
    while (!closed) {
      StepQueue.InFlight step = latest.getAndSet(null);
      if (step == null) {
        LockSupport.park(this);
        continue;
      }
      step.await();
      try {
        mailbox.execute(() -> settle.accept(step), "results of a step");
      } catch (RejectedExecutionException e) {
        return; // the task is ending, and settles its steps itself
      }
    }
  }

  @Override
  public void close() throws InterruptedException {
    closed = true;
    LockSupport.unpark(thread);
    thread.join();
  }
}
