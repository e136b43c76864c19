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

  /** Those that have the class loader of the calling task get Flink's own. */
  static void letGoOfTask() {
    ClassLoader task = Thread.currentThread().getContextClassLoader();
    for (Thread thread : Thread.getAllStackTraces().keySet()) {
      if (thread.getName().startsWith(NAME) && thread.getContextClassLoader() == task) {
        thread.setContextClassLoader(StreamTask.class.getClassLoader());
      }
    }
  }
}
