// SPDX-License-Identifier: Apache-2.0
package io.broadhead.kernel;

import java.nio.ByteOrder;
import java.nio.IntBuffer;
import org.apache.arrow.memory.ArrowBuf;
import org.apache.arrow.memory.BufferAllocator;
import org.apache.arrow.memory.util.MemoryUtil;

/**
 * Off-heap memory that grows to what was asked for and is kept for the next use. Its owner closes
 * it; used by one thread at a time.
 */
final class ScratchMemory implements AutoCloseable {
  private static final long LEAST = 256;

  private final BufferAllocator allocator;
  private ArrowBuf memory;
  private long capacity;
  private long address;
  private IntBuffer ints;

  ScratchMemory(BufferAllocator allocator) {
    this.allocator = allocator;
  }

  /** Address of {@code bytes} bytes at least, the first {@code used} of them as they were. */
  long atLeast(long bytes, long used) {
    if (bytes > capacity) {
      grow(Math.max(Math.max(LEAST, bytes), 2 * capacity), used);
    }
    return address;
  }

  private void grow(long bytes, long used) {
    ArrowBuf larger = allocator.buffer(bytes);
    if (used > 0) {
      MemoryUtil.copyMemory(address, larger.memoryAddress(), used);
    }
    close();
    memory = larger;
    capacity = larger.capacity();
    address = larger.memoryAddress();
    int whole = (int) Math.min(capacity, Integer.MAX_VALUE);
    ints = larger.nioBuffer(0, whole).order(ByteOrder.nativeOrder()).asIntBuffer();
  }

  /** Copies {@code count} of {@code values} to element {@code at}; there is room for them. */
  void putInts(int at, int[] values, int count) {
    ints.put(at, values, 0, count);
  }

  @Override
  public void close() {
    if (memory != null) {
      memory.close();
      memory = null;
      capacity = 0;
    }
  }
}
