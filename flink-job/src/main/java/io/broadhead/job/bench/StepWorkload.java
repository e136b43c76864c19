// SPDX-License-Identifier: Apache-2.0
package io.broadhead.job.bench;

import io.broadhead.arrow.Allocators;
import io.broadhead.arrow.ArrowBatch;
import io.broadhead.arrow.BatchRows;
import io.broadhead.attention.AttentionConfig;
import io.broadhead.attention.PagedAttention;
import io.broadhead.attention.RefusedRow;
import io.broadhead.attention.StepHandler;
import io.broadhead.attention.StepQueue;
import io.broadhead.attention.cache.CacheStores;
import io.broadhead.attention.job.Job;
import io.broadhead.attention.job.KvCacheDtype;
import io.broadhead.attention.job.KvCacheSpec;
import io.broadhead.attention.job.LayerSpec;
import io.broadhead.kernel.KernelEngine;
import java.util.ArrayList;
import java.util.List;
import java.util.stream.IntStream;
import org.apache.arrow.memory.BufferAllocator;

/**
 * Whole steps through {@link PagedAttention}, and what of them is spent in the kernels; the same
 * rows as batches of one row, which a queue joins to one step, and one by one. The same step again
 * and again: here the way to the kernels counts, not the memory behind them.
 *
 * <p>Its owner closes it; used by one thread.
 */
final class StepWorkload implements AutoCloseable {
  private static final long SEED = 3;

  /** Drops results. */
  static final StepHandler CLOSING =
      new StepHandler() {
        @Override
        public void refused(RefusedRow row) {
          throw new IllegalStateException(row.toString());
        }

        @Override
        public void done(ArrowBatch result) {
          result.close();
        }
      };

  private final PagedAttention attention;
  private final ArrowBatch batch;
  private final List<ArrowBatch> rows = new ArrayList<>();
  private final StepQueue joining;
  private final StepQueue apart;
  private final BufferAllocator allocator;

  StepWorkload(StepShape shape, AttentionConfig config) {
    Heads heads = shape.heads();
    LayerSpec layer =
        LayerSpec.builder(heads.name(), heads.numHeads(), heads.headSize())
            .numKvHeads(heads.numKvHeads())
            .build();
    Job job =
        new Job(
            new KvCacheSpec(shape.blockSize(), shape.blocks(), KvCacheDtype.AUTO), List.of(layer));
    NormalValues values = new NormalValues(shape.dtype(), SEED);
    int[] blocks = IntStream.range(0, Math.toIntExact(shape.blocks())).toArray();
    KernelEngine engine = config.openEngine();
    allocator = Allocators.root(engine.memory());
    attention =
        PagedAttention.open(job, engine, config.outOfBlocks(), allocator, CacheStores.onHeap());
    try (ArrowBatch contents = RandomStepBatch.build(contents(shape), blocks, values, allocator)) {
      attention.step(contents).close();
      batch = RandomStepBatch.build(shape, blocks, values, allocator);
      joining = attention.queue(Integer.MAX_VALUE);
      apart = attention.queue(0);
      for (int row = 0; batch.numRows() > 1 && row < batch.numRows(); row++) {
        rows.add(BatchRows.take(batch, new int[] {row}, allocator));
      }
    } catch (RuntimeException | Error e) {
      attention.close();
      allocator.close();
      throw e;
    }
  }

  /** A step that only writes all keys and values of {@code shape}. */
  private static StepShape contents(StepShape shape) {
    List<Rows> all =
        shape.rows().stream()
            .map(rows -> new Rows(rows.count(), rows.context(), rows.context()))
            .toList();
    return shape.withRows(all).withoutQueries();
  }

  Contender steps() {
    return Contender.timed(KernelWorkload.OURS, Contender.Kind.OURS, this::step);
  }

  private void step() {
    attention.step(batch).close();
  }

  /**
   * The time in the kernels, and the time of the rest of the step; if it has several rows, the
   * times of as many batches, joined to one step and in steps of their own.
   */
  List<Contender> parts() {
    Contender kernels = new Contender("kernels", Contender.Kind.PART, this::kernelNanos);
    Contender rest =
        new Contender(
            "overhead",
            Contender.Kind.PART,
            () -> {
              long start = System.nanoTime();
              long inKernels = kernelNanos();
              return System.nanoTime() - start - inKernels;
            });
    if (rows.isEmpty()) {
      return List.of(kernels, rest);
    }
    return List.of(
        kernels,
        rest,
        Contender.timed("joined", Contender.Kind.PART, this::stepJoined),
        Contender.timed("apart", Contender.Kind.PART, this::stepApart));
  }

  private void stepJoined() {
    rows.forEach(row -> joining.add(row, CLOSING));
    joining.drain();
  }

  private void stepApart() {
    for (ArrowBatch row : rows) {
      apart.add(row, CLOSING);
      apart.drain();
    }
  }

  private long kernelNanos() {
    step();
    return attention.lastStep().kernelNanoseconds();
  }

  @Override
  public void close() {
    apart.close();
    joining.close();
    rows.forEach(ArrowBatch::close);
    batch.close();
    attention.close();
    allocator.close();
  }
}
