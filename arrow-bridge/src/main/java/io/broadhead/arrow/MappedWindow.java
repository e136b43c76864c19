// SPDX-License-Identifier: Apache-2.0
package io.broadhead.arrow;

import java.io.IOException;
import java.lang.invoke.MethodHandle;
import java.lang.invoke.MethodHandles;
import java.lang.invoke.MethodType;
import java.lang.reflect.Field;
import java.nio.ByteBuffer;
import java.nio.MappedByteBuffer;
import java.nio.channels.FileChannel;
import java.util.concurrent.atomic.AtomicInteger;
import org.apache.arrow.memory.ArrowBuf;
import org.apache.arrow.memory.BufferAllocator;
import org.apache.arrow.memory.ForeignAllocation;
import org.apache.arrow.memory.util.MemoryUtil;

/**
 * A read-only mapping of a part of a file, unmapped with its last reference: address space and the
 * disk space of a deleted file would otherwise wait for the garbage collector. Any thread may
 * release.
 */
final class MappedWindow {
  private static final MethodHandle UNMAP = findUnmap();

  private final long start;
  private final MappedByteBuffer mapping;
  private final long address;
  private final AtomicInteger references = new AtomicInteger(1);

  /** Maps {@code size} bytes, less than 2 GiB, from {@code start}. */
  MappedWindow(FileChannel channel, long start, long size) throws IOException {
    this.start = start;
    this.mapping = channel.map(FileChannel.MapMode.READ_ONLY, start, size);
    this.address = MemoryUtil.getByteBufferAddress(mapping);
  }

  private static MethodHandle findUnmap() {
    try {
      Class<?> unsafe = Class.forName("sun.misc.Unsafe");
      Field instance = unsafe.getDeclaredField("theUnsafe");
      instance.setAccessible(true);
      return MethodHandles.lookup()
          .findVirtual(unsafe, "invokeCleaner", MethodType.methodType(void.class, ByteBuffer.class))
          .bindTo(instance.get(null));
    } catch (ReflectiveOperationException | RuntimeException e) {
      return null;
    }
  }

  /** A view of {@code length} bytes at file position {@code position}, for reading metadata. */
  ByteBuffer view(long position, int length) {
    return mapping.slice(Math.toIntExact(position - start), length);
  }

  /** {@code length} bytes at file position {@code position} as a buffer that keeps the mapping. */
  ArrowBuf buffer(long position, long length, BufferAllocator allocator) {
    references.incrementAndGet();
    return allocator.wrapForeignAllocation(
        new ForeignAllocation(length, address + (position - start)) {
          @Override
          protected void release0() {
            release();
          }
        });
  }

  void release() {
    if (references.decrementAndGet() == 0 && UNMAP != null) {
      try {
        UNMAP.invoke(mapping);
      } catch (Throwable e) {
        throw new IllegalStateException("a file mapping could not be released", e);
      }
    }
  }

  boolean contains(long from) {
    return from >= address && from < address + mapping.capacity();
  }
}
