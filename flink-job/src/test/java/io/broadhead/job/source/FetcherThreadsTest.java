// SPDX-License-Identifier: Apache-2.0
package io.broadhead.job.source;

import static org.assertj.core.api.Assertions.assertThat;

import java.util.concurrent.CountDownLatch;
import java.util.concurrent.Semaphore;
import org.junit.jupiter.api.Test;

class FetcherThreadsTest {
  private final FetcherThreads threads = new FetcherThreads();

  private interface Waiting {
    void run() throws InterruptedException;
  }

  /** A thread of the reader that has come to where it waits. */
  private Thread start(Waiting waiting) throws InterruptedException {
    Thread thread =
        new Thread(
            () -> {
              threads.add();
              try {
                waiting.run();
              } catch (InterruptedException e) {
                return;
              }
            });
    thread.start();
    while (thread.getState() != Thread.State.WAITING) {
      Thread.sleep(1);
    }
    return thread;
  }

  @Test
  void onlyThoseEndThatWaitForTheReader() throws Exception {
    Semaphore file = new Semaphore(0);
    Thread waits = start(new CountDownLatch(1)::await);
    Thread reads = start(file::acquire);

    threads.endWaiting();

    waits.join();
    file.release();
    reads.join();
    assertThat(file.availablePermits()).as("taken by the thread that reads").isZero();
  }
}
