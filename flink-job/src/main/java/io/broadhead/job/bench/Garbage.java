// SPDX-License-Identifier: Apache-2.0
package io.broadhead.job.bench;

import com.sun.management.ThreadMXBean;
import java.lang.management.ManagementFactory;

/** Counts the heap memory that the calling thread asks for. */
final class Garbage {
  private static final ThreadMXBean THREADS = (ThreadMXBean) ManagementFactory.getThreadMXBean();
  private static final int RUNS = 8;

  private Garbage() {}

  /** Bytes that a run of {@code contender} allocates on the heap. */
  static double perRun(Contender contender) {
    long thread = Thread.currentThread().getId();
    long before = THREADS.getThreadAllocatedBytes(thread);
    for (int i = 0; i < RUNS; i++) {
      contender.run().getAsLong();
    }
    return (double) (THREADS.getThreadAllocatedBytes(thread) - before) / RUNS;
  }
}
