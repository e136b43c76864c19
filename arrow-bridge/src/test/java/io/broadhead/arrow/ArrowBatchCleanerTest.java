// SPDX-License-Identifier: Apache-2.0
package io.broadhead.arrow;

import static org.assertj.core.api.Assertions.assertThat;

import io.broadhead.testing.StepBatchBuilder;
import org.apache.arrow.memory.BufferAllocator;
import org.junit.jupiter.api.Test;

/** Loses a batch on purpose, which the extension of the other tests would report. */
class ArrowBatchCleanerTest {
  @Test
  void cleanerFreesAndCountsWhatWasForgotten() throws InterruptedException {
    long before = ArrowBatch.leakedCount();
    try (BufferAllocator allocator = Allocators.root()) {
      new StepBatchBuilder(allocator, 2).int32("seq_len", 1, 2).build();
      for (int i = 0; i < 500 && allocator.getAllocatedMemory() > 0; i++) {
        System.gc();
        Thread.sleep(10);
      }
      assertThat(allocator.getAllocatedMemory()).isZero();
      assertThat(ArrowBatch.leakedCount()).isEqualTo(before + 1);
    }
  }
}
