// SPDX-License-Identifier: Apache-2.0
package io.broadhead.attention.testing;

import static org.assertj.core.api.Assertions.assertThat;

import io.broadhead.arrow.Allocators;
import io.broadhead.arrow.ArrowBatch;
import io.broadhead.flink.FlinkAllocator;
import io.broadhead.kernel.KernelEngine;
import org.apache.arrow.memory.BufferAllocator;
import org.junit.jupiter.api.extension.AfterEachCallback;
import org.junit.jupiter.api.extension.BeforeEachCallback;
import org.junit.jupiter.api.extension.ExtensionContext;

/**
 * Gives each test an allocator, and fails it unless that one and Flink's are at zero afterwards, no
 * native handle lives and the garbage collector had no batch to free.
 */
public final class NoLeaks implements BeforeEachCallback, AfterEachCallback {
  private BufferAllocator allocator;

  public BufferAllocator allocator() {
    return allocator;
  }

  @Override
  public void beforeEach(ExtensionContext context) {
    allocator = Allocators.root();
  }

  @Override
  public void afterEach(ExtensionContext context) {
    allocator.close();
    assertThat(FlinkAllocator.root().getAllocatedMemory()).as("Flink's Arrow bytes").isZero();
    assertThat(KernelEngine.liveHandles()).as("live native handles").isZero();
    assertThat(ArrowBatch.leakedCount()).as("batches that nobody closed").isZero();
  }
}
