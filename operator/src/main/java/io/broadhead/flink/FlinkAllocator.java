// SPDX-License-Identifier: Apache-2.0
package io.broadhead.flink;

import io.broadhead.arrow.Allocators;
import org.apache.arrow.memory.BufferAllocator;

/**
 * The root allocator of the Flink tasks of one JVM, for batches that arrive over the network and
 * for sources; results lie in memory of their operator's engine. It is never closed, because a
 * batch may outlive the task that made it; whether tasks leave anything behind shows in its
 * allocated bytes. Safe for use from any thread.
 */
public final class FlinkAllocator {
  private FlinkAllocator() {}

  /** Lazy: a client that only builds a job graph needs no Arrow memory and none of its flags. */
  private static final class Holder {
    static final BufferAllocator ROOT = Allocators.root();
  }

  /** The shared root; nobody closes it. */
  public static BufferAllocator root() {
    return Holder.ROOT;
  }

  /** A child for one source subtask, which closes it with {@link #close}. */
  public static BufferAllocator child(String name) {
    return Allocators.child(root(), name);
  }

  /**
   * Closes a subtask's allocator unless somebody downstream still holds batches of it; they free
   * its memory when they are closed.
   *
   * @return bytes still held
   */
  public static long close(BufferAllocator allocator) {
    long held = allocator.getAllocatedMemory();
    if (held == 0) {
      allocator.close();
    }
    return held;
  }
}
