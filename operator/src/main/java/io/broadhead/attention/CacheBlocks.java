// SPDX-License-Identifier: Apache-2.0
package io.broadhead.attention;

import io.broadhead.arrow.ArrowBatch;
import io.broadhead.arrow.DType;
import io.broadhead.arrow.StepColumns;
import io.broadhead.arrow.TensorField;
import io.broadhead.attention.job.LayerSpec;
import io.broadhead.kernel.ErrorCode;
import io.broadhead.kernel.KernelCache;
import io.broadhead.kernel.KernelException;
import java.util.function.Function;
import org.apache.arrow.memory.BufferAllocator;

/**
 * The blocks of one layer's cache, for whoever hands them out: to copy them, and to swap them out
 * and in. Owns nothing: valid while its {@link PagedAttention} is open, and used by its thread.
 *
 * <p>Every call throws {@link KernelException} with {@link ErrorCode#INVALID_ARGUMENT} or {@link
 * ErrorCode#SCHEMA_MISMATCH}, naming the layer and what is wrong, and has done nothing then.
 */
public final class CacheBlocks {
  private final LayerSet layers;
  private final LayerSpec layer;
  private final BufferAllocator allocator;

  CacheBlocks(LayerSet layers, String name, BufferAllocator allocator) {
    this.layers = layers;
    this.allocator = allocator;
    this.layer = layers.find(name).orElseThrow(() -> bad(name, "expected " + layers.names()));
    if (!layer.attnType().cached()) {
      throw bad(
          name, "expected a layer with a KV cache, got one of type " + layer.attnType().label());
    }
  }

  /** Copies block {@code source[i]} to block {@code target[i]}, for each i in order. */
  public void copy(long[] source, long[] target) {
    if (source.length != target.length) {
      throw bad(
          layer.name(), "copy: expected " + source.length + " target blocks, got " + target.length);
    }
    with(
        null,
        cache -> {
          cache.copyBlocks(source, target);
          return null;
        });
  }

  /**
   * Copies blocks out, one a row, in logical order: the columns {@code key} and {@code value} are
   * tensors [block_size, num_kv_heads, head_size] of the cache's element type. An fp8 cache gives
   * its codes, before {@code k_scale} and {@code v_scale}. The caller closes the batch.
   */
  public ArrowBatch read(long... blocks) {
    return with(null, cache -> cache.readBlocks(blocks, allocator));
  }

  /**
   * Copies what {@link #read} gave, or contents of that form, in: row i to block {@code blocks[i]},
   * which need not be the block that it came from, nor in the same process or backend. Reserves the
   * cache if it has had no batch yet.
   */
  public void write(long[] blocks, ArrowBatch contents) {
    int key = contents.schema().index(StepColumns.KEY);
    DType stored =
        key < 0
            ? null
            : TensorField.ofTensor(contents.schema().field(key))
                .map(TensorField::dtype)
                .filter(LayerSet.ELEMENT_TYPES::contains)
                .orElse(null);
    with(
        stored,
        cache -> {
          cache.writeBlocks(blocks, contents);
          return null;
        });
  }

  /**
   * Calls {@code use} with the cache.
   *
   * @param dtype what a cache with kv_cache_dtype auto becomes if there is none yet, or null
   */
  private <T> T with(DType dtype, Function<KernelCache, T> use) {
    try {
      return use.apply(layers.cache(layer).orElseGet(() -> reserve(dtype)));
    } catch (KernelException e) {
      if (e.code() != ErrorCode.INVALID_ARGUMENT && e.code() != ErrorCode.SCHEMA_MISMATCH
          || e.getMessage().startsWith("layer '")) {
        throw e;
      }
      throw new KernelException(
          e.code(), e.row(), "layer '" + layer.name() + "': " + e.getMessage());
    }
  }

  private KernelCache reserve(DType dtype) {
    DType stored = layers.job().cacheOwner(layer).kvCacheDtype().dtype().orElse(dtype);
    if (stored == null) {
      throw bad(
          layer.name(),
          "its cache does not exist before the layer's first batch, which settles kv_cache_dtype"
              + " auto; set kv_cache_dtype to reserve it at once");
    }
    return layers.cache(layer, stored);
  }

  private static KernelException bad(String layer, String message) {
    return new KernelException(ErrorCode.INVALID_ARGUMENT, -1, "layer '" + layer + "': " + message);
  }
}
