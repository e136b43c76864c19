// SPDX-License-Identifier: Apache-2.0
package io.broadhead.arrow;

import org.apache.arrow.memory.AllocationListener;
import org.apache.arrow.memory.AllocationManager;
import org.apache.arrow.memory.ArrowBuf;
import org.apache.arrow.memory.BufferAllocator;
import org.apache.arrow.memory.OutOfMemoryException;
import org.apache.arrow.memory.RootAllocator;
import org.apache.arrow.memory.util.MemoryUtil;

/**
 * Arrow allocators whose buffers start at a multiple of {@value #ALIGNMENT} bytes, which Arrow's
 * own managers do not promise and wide vector instructions want.
 *
 * <p>Allocators are safe for use from several threads. Whoever opens one closes it; closing throws
 * if a buffer is still in use, and the message names the allocator.
 */
public final class Allocators {
  /** Alignment of every buffer, as the Arrow specification recommends. */
  public static final long ALIGNMENT = 64;

  private static final AllocationManager.Factory FACTORY = new AlignedFactory();

  private Allocators() {}

  /** A root allocator without a limit. */
  public static BufferAllocator root() {
    return root(Long.MAX_VALUE, AllocationListener.NOOP);
  }

  /** A root allocator that refuses to hold more than {@code limit} bytes at once. */
  public static BufferAllocator root(long limit, AllocationListener listener) {
    JvmFlags.requireJavaNioOpen();
    return new RootAllocator(
        RootAllocator.configBuilder()
            .allocationManagerFactory(FACTORY)
            .roundingPolicy(Allocators::roundUp)
            .maxAllocation(limit)
            .listener(listener)
            .build());
  }

  /** A child of {@code parent} under its limit, called {@code name} in leak reports. */
  public static BufferAllocator child(BufferAllocator parent, String name) {
    return parent.newChildAllocator(name, 0, parent.getLimit());
  }

  /** The smallest multiple of {@link #ALIGNMENT} that is not below {@code size}. */
  public static long roundUp(long size) {
    return (size + ALIGNMENT - 1) & -ALIGNMENT;
  }

  private static final class AlignedFactory implements AllocationManager.Factory {
    private final ArrowBuf empty =
        new ArrowBuf(org.apache.arrow.memory.ReferenceManager.NO_OP, null, 0, 0);

    @Override
    public AllocationManager create(BufferAllocator accountingAllocator, long size) {
      return new Aligned(accountingAllocator, size);
    }

    @Override
    public ArrowBuf empty() {
      return empty;
    }
  }

  private static final class Aligned extends AllocationManager {
    private final long size;
    private final long base;

    Aligned(BufferAllocator allocator, long size) {
      super(allocator);
      this.size = size;
      try {
        this.base = MemoryUtil.allocateMemory(size + ALIGNMENT);
      } catch (OutOfMemoryError e) {
        throw new OutOfMemoryException(
            "the system refused " + size + " bytes for allocator " + allocator.getName(), e);
      }
    }

    @Override
    public long getSize() {
      return size;
    }

    @Override
    protected long memoryAddress() {
      return roundUp(base);
    }

    @Override
    protected void release0() {
      MemoryUtil.freeMemory(base);
    }
  }
}
