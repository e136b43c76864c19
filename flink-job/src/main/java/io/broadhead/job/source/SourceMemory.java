// SPDX-License-Identifier: Apache-2.0
package io.broadhead.job.source;

import io.broadhead.arrow.ArrowBatch;
import io.broadhead.flink.FlinkAllocator;
import java.util.Collections;
import java.util.IdentityHashMap;
import java.util.Set;
import org.apache.arrow.memory.BufferAllocator;
import org.apache.flink.metrics.Counter;

/**
 * What one source reader holds outside the heap: its allocator and every batch that was read and
 * not yet emitted and released. Flink drops queued batches without a word when a task is cancelled;
 * {@link #close} releases them.
 *
 * <p>Safe for use from the fetcher thread, which reads, and the task thread, which releases.
 */
final class SourceMemory implements AutoCloseable {
  private final BufferAllocator allocator = FlinkAllocator.child("step-source");
  private final Set<ArrowBatch> held = Collections.newSetFromMap(new IdentityHashMap<>());
  private final Counter batchesRead;
  private boolean closed;

  SourceMemory(Counter batchesRead) {
    this.batchesRead = batchesRead;
  }

  BufferAllocator allocator() {
    return allocator;
  }

  /** Takes over one reference to {@code batch}. */
  void hold(ArrowBatch batch) {
    synchronized (held) {
      if (!closed) {
        held.add(batch);
        batchesRead.inc();
        return;
      }
    }
    batch.close();
    throw new IllegalStateException("the source reader is closed");
  }

  /** Releases {@code batch} unless that has happened. */
  void release(ArrowBatch batch) {
    boolean last;
    synchronized (held) {
      last = held.remove(batch);
    }
    if (last) {
      batch.close();
    }
  }

  @Override
  public void close() {
    synchronized (held) {
      if (closed) {
        return;
      }
      closed = true;
      held.forEach(ArrowBatch::close);
      held.clear();
    }
    FlinkAllocator.close(allocator);
  }
}
