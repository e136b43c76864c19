// SPDX-License-Identifier: Apache-2.0
package io.broadhead.kernel;

import io.broadhead.nativelib.bh_cache;
import io.broadhead.nativelib.bh_cache_options;
import io.broadhead.nativelib.global.broadhead;
import org.apache.arrow.memory.ArrowBuf;

/**
 * A pool of KV cache blocks. Every slot reads as zero until it is written. Its owner closes it;
 * layers that are still open keep it alive. Used by one thread at a time, steps included.
 */
public final class KernelCache extends NativeHandle {
  private final bh_cache handle = new bh_cache();
  private final CacheConfig config;

  /**
   * Reserves the pool on {@code engine}.
   *
   * @throws KernelException if the shape is not supported or memory does not suffice
   */
  public KernelCache(KernelEngine engine, CacheConfig config) {
    super("cache", engine);
    this.config = config;
    try (bh_cache_options options = new bh_cache_options()) {
      options
          .struct_size((int) options.sizeof())
          .num_blocks(config.numBlocks())
          .block_size(config.blockSize())
          .num_kv_heads(config.numKvHeads())
          .head_size(config.headSize())
          .dtype(config.dtype().code());
      NativeErrors.check(
          error -> broadhead.bh_cache_create(engine.handle(), options, handle, error));
    } catch (RuntimeException e) {
      abandon();
      throw e;
    }
  }

  public CacheConfig config() {
    return config;
  }

  /** Bytes reserved for the pool. */
  public long bytes() {
    enter();
    try {
      return broadhead.bh_cache_bytes(handle);
    } finally {
      exit();
    }
  }

  /** Bytes of one block's keys; its values take as many. */
  public long blockBytes() {
    enter();
    try {
      return broadhead.bh_cache_block_bytes(handle);
    } finally {
      exit();
    }
  }

  /**
   * Copies block {@code block} out, in the order [block_size, num_kv_heads, head_size] whatever the
   * backend's own layout is. Both buffers hold {@link #blockBytes()} at least.
   */
  public void readBlock(long block, ArrowBuf key, ArrowBuf value) {
    enter();
    try {
      Address keyAddress = blockAddress("key", key);
      Address valueAddress = blockAddress("value", value);
      NativeErrors.check(
          error -> broadhead.bh_cache_read_block(handle, block, keyAddress, valueAddress, error));
    } finally {
      exit();
    }
  }

  /** Writes what {@link #readBlock} read. */
  public void writeBlock(long block, ArrowBuf key, ArrowBuf value) {
    enter();
    try {
      Address keyAddress = blockAddress("key", key);
      Address valueAddress = blockAddress("value", value);
      NativeErrors.check(
          error -> broadhead.bh_cache_write_block(handle, block, keyAddress, valueAddress, error));
    } finally {
      exit();
    }
  }

  private Address blockAddress(String what, ArrowBuf buffer) {
    long required = broadhead.bh_cache_block_bytes(handle);
    if (buffer.capacity() < required) {
      throw new IllegalArgumentException(
          what + ": expected a buffer of " + required + " bytes, got " + buffer.capacity());
    }
    return new Address(buffer.memoryAddress());
  }

  /** Copies block {@code source[i]} to block {@code target[i]}, for each i in order. */
  public void copyBlocks(long[] source, long[] target) {
    if (source.length != target.length) {
      throw new IllegalArgumentException(
          "copyBlocks: expected " + source.length + " target blocks, got " + target.length);
    }
    if (source.length == 0) {
      return;
    }
    enter();
    try {
      NativeErrors.check(
          error -> broadhead.bh_cache_copy_blocks(handle, source, target, source.length, error));
    } finally {
      exit();
    }
  }

  bh_cache handle() {
    return handle;
  }

  @Override
  void destroy() {
    broadhead.bh_cache_destroy(handle);
  }
}
