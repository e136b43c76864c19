// SPDX-License-Identifier: Apache-2.0
package io.broadhead.kernel;

import io.broadhead.arrow.Allocators;
import io.broadhead.arrow.ArrowBatch;
import io.broadhead.arrow.ArrowColumn;
import io.broadhead.arrow.BatchSchema;
import io.broadhead.arrow.StepColumns;
import io.broadhead.arrow.TensorField;
import io.broadhead.arrow.TypeName;
import io.broadhead.nativelib.bh_cache;
import io.broadhead.nativelib.bh_cache_options;
import io.broadhead.nativelib.bh_error;
import io.broadhead.nativelib.global.broadhead;
import java.lang.ref.Reference;
import org.apache.arrow.memory.ArrowBuf;
import org.apache.arrow.memory.BufferAllocator;
import org.apache.arrow.vector.types.pojo.Field;

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
    moveBlock(broadhead::bh_cache_read_block, block, key, value);
  }

  /** Writes what {@link #readBlock} read. */
  public void writeBlock(long block, ArrowBuf key, ArrowBuf value) {
    moveBlock(broadhead::bh_cache_write_block, block, key, value);
  }

  /** Schema of block contents: one tensor [block_size, num_kv_heads, head_size] a row. */
  public BatchSchema blockSchema() {
    int[] shape = {config.blockSize(), config.numKvHeads(), config.headSize()};
    return BatchSchema.of(
        TensorField.tensor(StepColumns.KEY, config.dtype(), shape),
        TensorField.tensor(StepColumns.VALUE, config.dtype(), shape));
  }

  /**
   * Copies blocks out, one a row, with the schema {@link #blockSchema()}. The caller closes the
   * batch.
   *
   * @throws KernelException naming the first block that there is not
   */
  public ArrowBatch readBlocks(long[] blocks, BufferAllocator allocator) {
    enter();
    try {
      requireBlocks(blocks);
      long columnBytes = Math.multiplyExact(broadhead.bh_cache_block_bytes(handle), blocks.length);
      ArrowBuf memory = allocator.buffer(2 * Allocators.roundUp(columnBytes));
      boolean done = false;
      try {
        long key = memory.memoryAddress();
        long value = key + Allocators.roundUp(columnBytes);
        moveBlocks(broadhead::bh_cache_read_block, blocks, key, value);
        ArrowBuf none = allocator.getEmpty();
        ArrowBuf[] buffers = {
          none,
          none,
          memory.slice(0, columnBytes),
          none,
          none,
          memory.slice(Allocators.roundUp(columnBytes), columnBytes)
        };
        long elements = columnBytes / config.dtype().byteWidth();
        long[] lengths = {blocks.length, elements, blocks.length, elements};
        memory.getReferenceManager().retain();
        ArrowBatch batch =
            ArrowBatch.adopt(
                blockSchema(),
                blocks.length,
                lengths,
                new long[lengths.length],
                buffers,
                2 * columnBytes);
        done = true;
        return batch;
      } finally {
        if (!done) {
          memory.close();
        }
      }
    } finally {
      exit();
    }
  }

  /**
   * Writes row i of {@code contents}, which {@link #readBlocks} made or something else with its
   * columns, to block {@code blocks[i]}. Nothing is written if anything is wrong.
   *
   * @throws KernelException naming the column or the block
   */
  public void writeBlocks(long[] blocks, ArrowBatch contents) {
    enter();
    try {
      requireBlocks(blocks);
      if (contents.numRows() != blocks.length) {
        throw new KernelException(
            ErrorCode.INVALID_ARGUMENT,
            -1,
            "contents: expected "
                + blocks.length
                + " rows, one for each block, got "
                + contents.numRows());
      }
      long key = blockValues(contents, StepColumns.KEY);
      long value = blockValues(contents, StepColumns.VALUE);
      moveBlocks(broadhead::bh_cache_write_block, blocks, key, value);
    } finally {
      exit();
      Reference.reachabilityFence(contents);
    }
  }

  private void requireBlocks(long[] blocks) {
    for (long block : blocks) {
      if (block < 0 || block >= config.numBlocks()) {
        throw new KernelException(
            ErrorCode.INVALID_ARGUMENT,
            -1,
            "block: expected 0 to " + (config.numBlocks() - 1) + ", got " + block);
      }
    }
  }

  private long blockValues(ArrowBatch contents, String name) {
    Field expected = blockSchema().field(name.equals(StepColumns.KEY) ? 0 : 1);
    TensorField tensor = TensorField.ofTensor(expected).orElseThrow();
    int index = contents.schema().index(name);
    boolean fits =
        index >= 0
            && TensorField.ofTensor(contents.schema().field(index))
                .filter(
                    got ->
                        got.dtype() == tensor.dtype()
                            && (got.canonical()
                                ? got.shape().equals(tensor.shape())
                                : got.elements() == tensor.elements()))
                .isPresent();
    if (!fits) {
      throw new KernelException(
          ErrorCode.SCHEMA_MISMATCH,
          -1,
          "column "
              + name
              + ": expected "
              + TypeName.of(expected)
              + ", got "
              + (index < 0 ? "no such column" : TypeName.of(contents.schema().field(index))));
    }
    ArrowColumn column = contents.column(name);
    long nulls = column.nullCount() + column.child().nullCount();
    if (nulls > 0) {
      throw new KernelException(
          ErrorCode.SCHEMA_MISMATCH, -1, "column " + name + ": expected no nulls, got " + nulls);
    }
    return column.child().values().memoryAddress();
  }

  /** A native call that moves one block's contents in or out. */
  private interface BlockMove {
    int call(bh_cache cache, long block, Address key, Address value, bh_error error);
  }

  private void moveBlock(BlockMove move, long block, ArrowBuf key, ArrowBuf value) {
    enter();
    try {
      moveBlocks(move, new long[] {block}, blockAddress("key", key), blockAddress("value", value));
    } finally {
      exit();
    }
  }

  /** Block after block; their contents follow one another from both addresses on. */
  private void moveBlocks(BlockMove move, long[] blocks, long key, long value) {
    long blockBytes = broadhead.bh_cache_block_bytes(handle);
    for (int i = 0; i < blocks.length; i++) {
      long block = blocks[i];
      Address keyAddress = new Address(key + i * blockBytes);
      Address valueAddress = new Address(value + i * blockBytes);
      NativeErrors.check(error -> move.call(handle, block, keyAddress, valueAddress, error));
    }
  }

  private long blockAddress(String what, ArrowBuf buffer) {
    long required = broadhead.bh_cache_block_bytes(handle);
    if (buffer.capacity() < required) {
      throw new IllegalArgumentException(
          what + ": expected a buffer of " + required + " bytes, got " + buffer.capacity());
    }
    return buffer.memoryAddress();
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
