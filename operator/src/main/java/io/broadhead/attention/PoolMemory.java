// SPDX-License-Identifier: Apache-2.0
package io.broadhead.attention;

import io.broadhead.attention.cache.BlockMemory;
import io.broadhead.attention.job.LayerSpec;
import io.broadhead.kernel.KernelCache;
import java.nio.ByteBuffer;
import java.util.List;
import org.apache.arrow.memory.ArrowBuf;
import org.apache.arrow.memory.BufferAllocator;

/**
 * The caches of a job's layers as the block tables see them. Its owner closes it; used by one
 * thread at a time.
 */
final class PoolMemory implements BlockMemory, AutoCloseable {
  private final LayerSet layers;
  private final List<LayerSpec> owners;
  private final BufferAllocator allocator;
  private ArrowBuf memory;

  /**
   * @param owners the layers that write the caches, in the caches' order
   */
  PoolMemory(LayerSet layers, List<LayerSpec> owners, BufferAllocator allocator) {
    this.layers = layers;
    this.owners = owners;
    this.allocator = allocator;
  }

  private KernelCache cache(int cache) {
    return layers.cache(owners.get(cache)).orElseThrow();
  }

  @Override
  public int tokenBytes(int cache) {
    KernelCache pool = cache(cache);
    return Math.toIntExact(pool.blockBytes() / pool.config().blockSize());
  }

  @Override
  public void copy(int source, int target) {
    long[] from = {source};
    long[] to = {target};
    for (LayerSpec owner : owners) {
      layers.cache(owner).ifPresent(cache -> cache.copyBlocks(from, to));
    }
  }

  @Override
  public ByteBuffer read(int cache, int place) {
    ByteBuffer image = bytes(cache);
    long half = image.capacity() / 2;
    cache(cache).readBlock(place, memory.slice(0, half), memory.slice(half, half));
    return image;
  }

  @Override
  public ByteBuffer image(int cache) {
    ByteBuffer image = bytes(cache);
    memory.setZero(0, image.capacity());
    return image;
  }

  private ByteBuffer bytes(int cache) {
    int bytes = Math.toIntExact(2 * cache(cache).blockBytes());
    if (memory == null || memory.capacity() < bytes) {
      close();
      memory = allocator.buffer(bytes);
    }
    return memory.nioBuffer(0, bytes);
  }

  @Override
  public void write(int cache, int place) {
    long half = cache(cache).blockBytes();
    cache(cache).writeBlock(place, memory.slice(0, half), memory.slice(half, half));
  }

  @Override
  public void close() {
    if (memory != null) {
      memory.close();
      memory = null;
    }
  }
}
