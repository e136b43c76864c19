// SPDX-License-Identifier: Apache-2.0
package io.broadhead.flink;

import org.apache.flink.streaming.runtime.tasks.StreamTask;

/**
 * Threads of Flink's network. They begin in the task that connects first, have its context class
 * loader from then on, and so would keep the classes of its job as long as the TaskManager lives.
 */
final class NetworkThreads {
  private static final String NAME = "Flink Netty Client";

  private NetworkThreads() {}

  /**
   * They get Flink's own class loader. Whichever job's they have: a task that connects while the
   * last operator of its job is gone already leaves a thread that only the next job can find.
   */
  static void letGoOfJobs() {
    ClassLoader own = StreamTask.class.getClassLoader();
    for (Thread thread : Thread.getAllStackTraces().keySet()) {
      if (thread.getName().startsWith(NAME) && thread.getContextClassLoader() != own) {
        thread.setContextClassLoader(own);
      }
    }
  }
}
