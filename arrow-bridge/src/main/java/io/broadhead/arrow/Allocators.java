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

  private static final AllocationManager.Factory FACTORY = new AlignedFactory(new JvmMemory());

  private Allocators() {}

  /** Where buffers come from. Safe for use from several threads. */
  public interface Memory {
    /**
     * At least {@code bytes} bytes at a multiple of {@link #ALIGNMENT}.
     *
     * @return the address, or 0 if the system refuses
     */
    long allocate(long bytes);

    /** Frees what {@link #allocate} returned. */
    void free(long address);
  }

  /** A root allocator without a limit. */
  public static BufferAllocator root() {
    return root(Long.MAX_VALUE, AllocationListener.NOOP);
  }

  /** A root allocator that refuses to hold more than {@code limit} bytes at once. */
  public static BufferAllocator root(long limit, AllocationListener listener) {
    return root(FACTORY, limit, listener);
  }

  /**
   * A root allocator without a limit whose buffers lie in {@code memory}: that of an engine, so
   * that a GPU reads and writes them where they are.
   */
  public static BufferAllocator root(Memory memory) {
    return root(new AlignedFactory(memory), Long.MAX_VALUE, AllocationListener.NOOP);
  }

  private static BufferAllocator root(
      AllocationManager.Factory factory, long limit, AllocationListener listener) {
    JvmFlags.requireJavaNioOpen();
    return new RootAllocator(
        RootAllocator.configBuilder()
            .allocationManagerFactory(factory)
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

  /** Memory of the C library; the block's own address is kept in front of the aligned one. */
  private static final class JvmMemory implements Memory {
    @Override
    public long allocate(long bytes) {
      long base;
      try {
        base = MemoryUtil.allocateMemory(bytes + ALIGNMENT);
      } catch (OutOfMemoryError e) {
        return 0;
      }
      // The C library aligns to 16 bytes, so there is always room for the address.
      long address = roundUp(base + Long.BYTES);
      MemoryUtil.putLong(address - Long.BYTES, base);
      return address;
    }

    @Override
    public void free(long address) {
      MemoryUtil.freeMemory(MemoryUtil.getLong(address - Long.BYTES));
    }
  }

  private static final class AlignedFactory implements AllocationManager.Factory {
    private final Memory memory;
    private final ArrowBuf empty =
        new ArrowBuf(org.apache.arrow.memory.ReferenceManager.NO_OP, null, 0, 0);

    AlignedFactory(Memory memory) {
      this.memory = memory;
    }

    @Override
    public AllocationManager create(BufferAllocator accountingAllocator, long size) {
      return new Aligned(accountingAllocator, memory, size);
    }

    @Override
    public ArrowBuf empty() {
      return empty;
    }
  }

  private static final class Aligned extends AllocationManager {
    private final Memory memory;
    private final long size;
    private final long address;

    Aligned(BufferAllocator allocator, Memory memory, long size) {
      super(allocator);
      this.memory = memory;
      this.size = size;
      this.address = memory.allocate(size);
      if (address == 0) {
        throw new OutOfMemoryException(
            "the system refused " + size + " bytes for allocator " + allocator.getName());
      }
    }

    @Override
    public long getSize() {
      return size;
    }

    @Override
    protected long memoryAddress() {
      return address;
    }

    @Override
    protected void release0() {
      memory.free(address);
    }
  }
}
