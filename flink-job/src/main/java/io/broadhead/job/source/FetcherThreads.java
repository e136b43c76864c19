// SPDX-License-Identifier: Apache-2.0
package io.broadhead.job.source;

import java.util.Arrays;
import java.util.Set;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.CountDownLatch;

/**
 * The threads that read splits for one source reader. One that has no split any more tells the
 * reader so and waits for its answer; Flink 2.3 loses the message where the reader's queue is full
 * (FLINK-40660), and then the thread waits forever, and the reader for half a minute when it is
 * closed.
 *
 * <p>Safe for use from any thread.
 */
final class FetcherThreads {
  private final Set<Thread> threads = ConcurrentHashMap.newKeySet();

  /** The calling thread reads a split. */
  void add() {
    threads.removeIf(thread -> !thread.isAlive());
    threads.add(Thread.currentThread());
  }

  /**
   * Ends those that wait for the reader, which is about to be closed and need not answer. They have
   * no file open.
   */
  void endWaiting() {
    threads.stream().filter(FetcherThreads::isWaiting).forEach(Thread::interrupt);
  }

  private static boolean isWaiting(Thread thread) {
    return Arrays.stream(thread.getStackTrace())
        .anyMatch(frame -> frame.getClassName().equals(CountDownLatch.class.getName()));
  }
}
