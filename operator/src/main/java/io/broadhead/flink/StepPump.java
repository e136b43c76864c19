// SPDX-License-Identifier: Apache-2.0
package io.broadhead.flink;

import io.broadhead.arrow.ArrowBatch;
import io.broadhead.attention.StepHandler;
import io.broadhead.attention.StepQueue;
import java.util.concurrent.ScheduledFuture;
import java.util.function.IntUnaryOperator;
import org.apache.flink.api.common.operators.MailboxExecutor;
import org.apache.flink.streaming.runtime.tasks.ProcessingTimeService;

/**
 * Decides when the batches of a queue are computed: at once, or when they are enough for a step or
 * have waited long enough. A long prompt is computed step by step; input that is there meanwhile
 * joins the next step.
 *
 * <p>Called by the task's thread, timers and mails included. Its owner closes it.
 */
final class StepPump implements AutoCloseable {
  /** More than this does not wait, so that a slow operator is felt upstream. */
  private static final long MOST_WAITING_BYTES = 256L << 20;

  private final StepQueue queue;
  private final int maxTokens;
  private final long maxDelayMillis;
  private final ProcessingTimeService time;
  private final MailboxExecutor mailbox;
  private ScheduledFuture<?> timer;
  private long timerDue;

  /** Whether a mail is on its way that has the next step computed. */
  private boolean stepFollows;

  /** Whether no batch has come since the last such mail. */
  private boolean inputRests;

  /** New tokens that the last step left. */
  private long tokensLeft;

  /** Null where steps do not overlap. */
  private final StepWaiter waiter;

  /**
   * @param waiter has the last step settled if no input follows; or null
   */
  StepPump(
      StepQueue queue,
      OperatorSettings settings,
      ProcessingTimeService time,
      MailboxExecutor mailbox,
      StepWaiter waiter) {
    this.queue = queue;
    this.maxTokens = settings.batchMaxTokens();
    this.maxDelayMillis = settings.batchMaxDelay().toMillis();
    this.time = time;
    this.mailbox = mailbox;
    this.waiter = waiter;
  }

  /** Adds a batch, which stays the caller's; computes what is due. */
  void add(ArrowBatch batch, IntUnaryOperator shardOfRow, StepHandler handler) {
    if (maxTokens == 0) {
      queue.add(batch, shardOfRow, 0, handler);
      while (queue.batches() > 0) {
        queue.step();
      }
    } else {
      queue.add(batch, shardOfRow, time.getCurrentProcessingTime(), handler);
      inputRests = false;
      if (isEnough() && !mayJoin()) {
        step();
      }
      while (queue.bytes() > MOST_WAITING_BYTES && queue.batches() > 1) {
        step();
      }
      schedule();
    }
    watch();
  }

  private void step() {
    queue.step();
    tokensLeft = queue.tokens();
  }

  /**
   * Whether batches may join the step that follows: no more tokens than it computes, so that they
   * do not pile up.
   */
  private boolean mayJoin() {
    return stepFollows && queue.tokens() - tokensLeft < maxTokens;
  }

  /** Whether there is enough for a step, or nothing is to wait. */
  private boolean isEnough() {
    return maxDelayMillis == 0 || queue.tokens() >= maxTokens;
  }

  /** When the oldest batch has waited long enough, with or without some of its tokens. */
  private long oldestDue() {
    long oldest = queue.oldest();
    return oldest + Math.min(maxDelayMillis, Long.MAX_VALUE - oldest);
  }

  private boolean isDue() {
    return isEnough() || oldestDue() <= time.getCurrentProcessingTime();
  }

  /** Has the last step settled if no input follows. */
  private void watch() {
    if (waiter != null) {
      queue.inFlight().ifPresent(waiter::await);
    }
  }

  /**
   * Computes what is due: one step where there is enough for more, so that other input goes
   * between; else steps until no batch is left that has waited long enough.
   */
  private void computeDue() {
    boolean isLong = isEnough();
    while (queue.batches() > 0 && isDue()) {
      step();
      if (isLong) {
        break;
      }
    }
    schedule();
    watch();
  }

  /** Sees to it that what waits is computed when it is due. */
  private void schedule() {
    if (queue.batches() == 0) {
      return;
    }
    if (isDue()) {
      if (!stepFollows) {
        stepFollows = true;
        inputRests = false;
        sendMail();
      }
      return;
    }
    long due = oldestDue();
    if (timer == null || due < timerDue) { // else it comes before, and finds nothing due
      cancelTimer();
      timerDue = due;
      timer =
          time.registerTimer(
              due,
              at -> {
                timer = null;
                computeDue();
              });
    }
  }

  /** Before it is opened, the task takes what input there is, but no more than an element. */
  private void sendMail() {
    mailbox.execute(this::computeUnlessMoreJoins, "a step of what waits");
  }

  private void computeUnlessMoreJoins() {
    if (inputRests || !mayJoin() || queue.batches() == 0) {
      stepFollows = false;
      computeDue();
    } else {
      inputRests = true;
      sendMail();
    }
  }

  private void cancelTimer() {
    if (timer != null) {
      timer.cancel(false);
      timer = null;
    }
  }

  /** Computes all that waits, and emits all results. */
  void drain() {
    queue.drain();
    tokensLeft = 0;
  }

  @Override
  public void close() {
    cancelTimer();
  }
}
