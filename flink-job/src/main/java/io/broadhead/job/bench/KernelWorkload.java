// SPDX-License-Identifier: Apache-2.0
package io.broadhead.job.bench;

import io.broadhead.arrow.Allocators;
import io.broadhead.arrow.ArrowBatch;
import io.broadhead.attention.job.RopeSpec;
import io.broadhead.kernel.CacheConfig;
import io.broadhead.kernel.EngineConfig;
import io.broadhead.kernel.ErrorCode;
import io.broadhead.kernel.KernelCache;
import io.broadhead.kernel.KernelEngine;
import io.broadhead.kernel.KernelException;
import io.broadhead.kernel.KernelLayer;
import io.broadhead.kernel.LayerConfig;
import io.broadhead.kernel.RopeConfig;
import io.broadhead.kernel.StepBinding;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collections;
import java.util.List;
import java.util.Random;
import java.util.function.LongSupplier;
import java.util.stream.IntStream;
import org.apache.arrow.memory.ArrowBuf;
import org.apache.arrow.memory.BufferAllocator;

/**
 * Steps of one shape over shuffled blocks of a cache full of random keys and values, and the limits
 * of the machine for them. The steps take turns over different blocks.
 *
 * <p>Its owner closes it, and does not use its contenders any more then; used by one thread.
 */
final class KernelWorkload implements AutoCloseable {
  /** What our own steps are called. */
  static final String OURS = "broadhead";

  private static final long SEED = 1;

  private final StepShape shape;
  private final BufferAllocator allocator;
  private final Opened opened = new Opened();
  private final KernelEngine engine;
  private final KernelCache cache;
  private final StepBinding binding;
  private final List<ArrowBatch> batches = new ArrayList<>();
  private final List<int[]> blocks = new ArrayList<>();
  private int next;

  /** Opens a backend, fills a cache and writes the batches, to memory of the backend. */
  KernelWorkload(StepShape shape, EngineConfig config) {
    this.shape = shape;
    try {
      engine = opened.keep(KernelEngine.open(config));
      allocator = opened.keep(Allocators.root(engine.memory()));
      int numBlocks = Math.toIntExact(shape.blocks() * shape.copies());
      Heads heads = shape.heads();
      cache =
          opened.keep(
              new KernelCache(
                  engine,
                  new CacheConfig(
                      numBlocks,
                      shape.blockSize(),
                      heads.numKvHeads(),
                      heads.headSize(),
                      shape.cacheDtype())));
      KernelLayer layer = opened.keep(new KernelLayer(engine, layerConfig(shape), cache));
      if (shape.attends()) {
        fillCache();
      }
      writeBatches(numBlocks);
      binding = opened.keep(new StepBinding(layer, batches.get(0).schema(), allocator));
    } catch (RuntimeException | Error e) {
      close();
      throw e;
    }
  }

  private static LayerConfig layerConfig(StepShape shape) {
    Heads heads = shape.heads();
    LayerConfig.Builder layer =
        LayerConfig.builder(heads.name(), heads.numHeads(), heads.numKvHeads(), heads.headSize())
            .dtype(shape.dtype());
    if (shape.rope()) {
      RopeSpec rope = new RopeSpec(heads.headSize(), shape.longestContext(), 10_000, true);
      layer.rope(new RopeConfig(rope.rotaryDim(), rope.maxPosition(), true, rope.cosSin()));
    }
    return layer.build();
  }

  private void fillCache() {
    NormalValues values = new NormalValues(shape.cacheDtype(), SEED);
    long blockBytes = cache.blockBytes();
    try (ArrowBuf key = allocator.buffer(blockBytes);
        ArrowBuf value = allocator.buffer(blockBytes)) {
      for (long block = 0; block < cache.config().numBlocks(); block++) {
        values.fill(key, 0, blockBytes);
        values.fill(value, 0, blockBytes);
        cache.writeBlock(block, key, value);
      }
    }
  }

  private void writeBatches(int numBlocks) {
    List<Integer> order = new ArrayList<>(IntStream.range(0, numBlocks).boxed().toList());
    Collections.shuffle(order, new Random(SEED));
    int[] shuffled = order.stream().mapToInt(Integer::intValue).toArray();
    NormalValues values = new NormalValues(shape.dtype(), SEED);
    int perStep = Math.toIntExact(shape.blocks());
    for (int copy = 0; copy < shape.copies(); copy++) {
      int[] own = Arrays.copyOfRange(shuffled, copy * perStep, (copy + 1) * perStep);
      blocks.add(own);
      batches.add(opened.keep(RandomStepBatch.build(shape, own, values, allocator)));
    }
  }

  private int turn() {
    return next++ % batches.size();
  }

  /** The steps. */
  Contender steps(String name, Contender.Kind kind) {
    return Contender.timed(name, kind, () -> binding.step(batches.get(turn())).close());
  }

  /**
   * What the backend can measure of the limits for these steps: reading the blocks if a sequence
   * decodes, as many multiply-adds, or copying as many bytes as an update.
   */
  List<Contender> limits() {
    List<Contender> limits = new ArrayList<>();
    if (shape.attends()) {
      if (shape.decodes()) {
        addLimit(limits, "read", () -> engine.probeRead(cache, blocks.get(turn())));
      }
      addLimit(limits, "fma", () -> engine.probeCompute((long) shape.flops()));
    } else {
      addCopyLimit(limits);
    }
    return limits;
  }

  private void addCopyLimit(List<Contender> limits) {
    // A copy reads as many bytes as it writes.
    long bytes = shape.updateBytes() / 2;
    List<ArrowBuf> pairs = new ArrayList<>();
    for (int i = 0; i < 2 * shape.copies(); i++) {
      ArrowBuf buffer = opened.keep(allocator.buffer(bytes));
      buffer.setOne(0, bytes);
      pairs.add(buffer);
    }
    addLimit(
        limits,
        "copy",
        () -> {
          int copy = turn();
          return engine.probeCopy(pairs.get(2 * copy), pairs.get(2 * copy + 1));
        });
  }

  private static void addLimit(List<Contender> limits, String name, LongSupplier probe) {
    try {
      probe.getAsLong();
      limits.add(new Contender(name, Contender.Kind.LIMIT, probe));
    } catch (KernelException e) {
      if (e.code() != ErrorCode.UNSUPPORTED) {
        throw e;
      }
    }
  }

  @Override
  public void close() {
    opened.close();
  }
}
