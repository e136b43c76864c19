// SPDX-License-Identifier: Apache-2.0
package io.broadhead.attention;

import io.broadhead.arrow.Allocators;
import io.broadhead.arrow.ArrowBatch;
import io.broadhead.arrow.DType;
import io.broadhead.attention.job.Job;
import io.broadhead.attention.job.KvCacheDtype;
import io.broadhead.attention.job.KvCacheSpec;
import io.broadhead.attention.job.LayerSpec;
import io.broadhead.attention.testing.Closing;
import io.broadhead.attention.testing.Scenario;
import io.broadhead.attention.testing.StepBatches;
import io.broadhead.attention.testing.StepRow;
import java.util.List;
import java.util.concurrent.TimeUnit;
import java.util.stream.LongStream;
import org.apache.arrow.memory.BufferAllocator;
import org.openjdk.jmh.annotations.Benchmark;
import org.openjdk.jmh.annotations.BenchmarkMode;
import org.openjdk.jmh.annotations.Fork;
import org.openjdk.jmh.annotations.Level;
import org.openjdk.jmh.annotations.Measurement;
import org.openjdk.jmh.annotations.Mode;
import org.openjdk.jmh.annotations.OutputTimeUnit;
import org.openjdk.jmh.annotations.Param;
import org.openjdk.jmh.annotations.Scope;
import org.openjdk.jmh.annotations.Setup;
import org.openjdk.jmh.annotations.State;
import org.openjdk.jmh.annotations.TearDown;
import org.openjdk.jmh.annotations.Warmup;

/**
 * What a whole step costs where there is little to compute: many sequences with short contexts.
 * Each iteration prints how much of it the kernels took; the rest is the Java call, the import of
 * the batch, its checks and the plan. With {@code -prof gc}, {@code gc.alloc.rate.norm} is the
 * garbage of a step.
 */
@State(Scope.Thread)
@BenchmarkMode(Mode.AverageTime)
@OutputTimeUnit(TimeUnit.MICROSECONDS)
@Warmup(iterations = 3, time = 1)
@Measurement(iterations = 5, time = 1)
@Fork(
    value = 1,
    jvmArgsAppend = {
      "--add-opens=java.base/java.nio=ALL-UNNAMED",
      "-Dorg.bytedeco.javacpp.maxPhysicalBytes=0"
    })
public class StepBenchmark {
  @Param({"1", "2"})
  int threads;

  @Param({"1", "64"})
  int sequences;

  @Param("16")
  int context;

  private BufferAllocator allocator;
  private PagedAttention attention;
  private StepQueue queue;
  private ArrowBatch batch;
  private long steps;
  private long kernelNanoseconds;
  private long started;

  @Setup
  public void open() {
    LayerSpec layer = LayerSpec.builder("layer.0", 12, 64).build();
    Job job =
        new Job(
            new KvCacheSpec(16, (long) sequences * (context / 16 + 1), KvCacheDtype.AUTO),
            List.of(layer));
    allocator = Allocators.root();
    attention = PagedAttention.open(job, new AttentionConfig("auto", threads, 0), allocator);
    queue = attention.queue(0, step -> kernelNanoseconds += step.stats().kernelNanoseconds());
    Scenario scenario = new Scenario(job, DType.FLOAT16, 1);
    List<Long> ids = LongStream.range(0, sequences).boxed().toList();
    List<StepRow> prompts = ids.stream().map(id -> scenario.next(id, layer, context - 1)).toList();
    try (ArrowBatch prompt = StepBatches.of(allocator, layer, DType.FLOAT16, prompts)) {
      attention.step(prompt).close();
    }
    batch =
        StepBatches.of(
            allocator,
            layer,
            DType.FLOAT16,
            ids.stream().map(id -> scenario.next(id, layer, 1)).toList());
  }

  private final StepHandler closing = new Closing();

  @Setup(Level.Iteration)
  public void begin() {
    steps = 0;
    kernelNanoseconds = 0;
    started = System.nanoTime();
  }

  @Benchmark
  public int step() {
    try (ArrowBatch result = attention.step(batch)) {
      steps++;
      kernelNanoseconds += attention.lastStep().kernelNanoseconds();
      return result.numRows();
    }
  }

  /** As a stream of batches goes through a queue: on a GPU the next step is begun meanwhile. */
  @Benchmark
  public int queued() {
    queue.add(batch, closing);
    queue.step();
    steps++;
    return queue.batches();
  }

  @TearDown(Level.Iteration)
  public void end() {
    queue.drain();
    double step = (System.nanoTime() - started) * 1e-3 / steps;
    double kernels = kernelNanoseconds * 1e-3 / steps;
    System.out.printf("(kernels %.2f us, over them %.2f us) ", kernels, step - kernels);
  }

  @TearDown
  public void close() {
    batch.close();
    queue.close();
    attention.close();
    allocator.close();
  }
}
