// SPDX-License-Identifier: Apache-2.0
package io.broadhead.job;

import static org.assertj.core.api.Assertions.assertThat;

import io.broadhead.arrow.ArrowBatch;
import io.broadhead.flink.FlinkAllocator;
import io.broadhead.kernel.KernelEngine;
import org.junit.jupiter.api.extension.AfterEachCallback;
import org.junit.jupiter.api.extension.ExtensionContext;

/** After every test: no Arrow byte, no native handle, no batch that only the collector found. */
public final class Leaks implements AfterEachCallback {
  @Override
  public void afterEach(ExtensionContext context) {
    assertThat(FlinkAllocator.root().getAllocatedMemory()).as("bytes of Flink tasks").isZero();
    assertThat(KernelEngine.liveHandles()).as("native handles").isZero();
    assertThat(ArrowBatch.leakedCount()).as("batches found by the collector").isZero();
  }
}
