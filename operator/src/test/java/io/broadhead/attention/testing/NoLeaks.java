// SPDX-License-Identifier: Apache-2.0
package io.broadhead.attention.testing;

import static org.assertj.core.api.Assertions.assertThat;

import io.broadhead.arrow.Allocators;
import io.broadhead.arrow.ArrowBatch;
import io.broadhead.flink.FlinkAllocator;
import io.broadhead.kernel.KernelEngine;
import java.time.Duration;
import org.apache.arrow.memory.BufferAllocator;
import org.junit.jupiter.api.extension.AfterEachCallback;
import org.junit.jupiter.api.extension.BeforeEachCallback;
import org.junit.jupiter.api.extension.ExtensionContext;

/**
 * Gives each test an allocator, and fails it unless that one and Flink's are at zero afterwards, no
 * native handle lives and the garbage collector had no batch to free.
 */
public final class NoLeaks implements BeforeEachCallback, AfterEachCallback {
  private static final Duration COLLECTION = Duration.ofSeconds(30);

  /** Batches that Flink has dropped in the tests so far. */
  private static long dropped;

  private BufferAllocator allocator;
  private boolean flinkDrops;

  public BufferAllocator allocator() {
    return allocator;
  }

  /** Flink drops batches of this test, so that only the garbage collector can free them. */
  public void flinkDropsBatches() {
    flinkDrops = true;
  }

  @Override
  public void beforeEach(ExtensionContext context) {
    allocator = Allocators.root();
  }

  @Override
  public void afterEach(ExtensionContext context) throws InterruptedException {
    allocator.close();
    if (flinkDrops) {
      long end = System.nanoTime() + COLLECTION.toNanos();
      while (FlinkAllocator.root().getAllocatedMemory() > 0 && System.nanoTime() < end) {
        System.gc();
        Thread.sleep(10);
      }
      dropped = ArrowBatch.leakedCount();
    }
    assertThat(FlinkAllocator.root().getAllocatedMemory()).as("Flink's Arrow bytes").isZero();
    assertThat(KernelEngine.liveHandles()).as("live native handles").isZero();
    assertThat(ArrowBatch.leakedCount()).as("batches that nobody closed").isEqualTo(dropped);
  }
}
