// SPDX-License-Identifier: Apache-2.0
package io.broadhead.attention;

import static org.assertj.core.api.Assertions.assertThat;

import io.broadhead.arrow.Allocators;
import io.broadhead.arrow.ArrowBatch;
import io.broadhead.arrow.DType;
import io.broadhead.attention.cache.CacheStores;
import io.broadhead.attention.cache.HostPartStore;
import io.broadhead.attention.cache.PartStore;
import io.broadhead.attention.cache.RecordStore;
import io.broadhead.attention.job.Job;
import io.broadhead.attention.job.KvCacheSpec;
import io.broadhead.attention.job.LayerSpec;
import io.broadhead.attention.testing.Collected;
import io.broadhead.attention.testing.ManagedRow;
import io.broadhead.attention.testing.NoLeaks;
import io.broadhead.attention.testing.Scenario;
import io.broadhead.attention.testing.StepBatches;
import io.broadhead.attention.testing.StepRow;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.function.BiConsumer;
import java.util.stream.LongStream;
import org.apache.arrow.memory.AllocationListener;
import org.apache.arrow.memory.BufferAllocator;
import org.apache.arrow.memory.OutOfMemoryException;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.extension.RegisterExtension;

/**
 * Whichever allocation fails, or access to what is swapped out: nothing leaks, and the step has the
 * right result when it is tried again.
 */
class FailedStepsTest {
  private static final DType DTYPE = DType.FLOAT16;

  @RegisterExtension private final NoLeaks noLeaks = new NoLeaks();
  private final List<ArrowBatch> batches = new ArrayList<>();

  @AfterEach
  void close() {
    batches.forEach(ArrowBatch::close);
  }

  /** Fails once, after so many allocations and accesses. */
  private static final class Failing implements AllocationListener, PartStore {
    private final PartStore parts = new HostPartStore();
    private int left;

    Failing(int after) {
      left = after;
    }

    private void fail() {
      if (left-- == 0) {
        throw new OutOfMemoryException("this one fails");
      }
    }

    boolean hasFailed() {
      return left < 0;
    }

    @Override
    public void onPreAllocation(long size) {
      if (!isExport()) {
        fail();
      }
    }

    /** Arrow's own export of a schema leaks what it has when it fails. */
    private static boolean isExport() {
      return StackWalker.getInstance()
          .walk(frames -> frames.anyMatch(f -> f.getClassName().startsWith("org.apache.arrow.c.")));
    }

    @Override
    public void put(int shard, long block, int part, byte[] contents) {
      fail();
      parts.put(shard, block, part, contents);
    }

    @Override
    public byte[] get(int shard, long block, int part) {
      fail();
      return parts.get(shard, block, part);
    }

    @Override
    public void remove(int shard, long block, int part) {
      parts.remove(shard, block, part);
    }
  }

  private static LayerSpec layer(String name) {
    return LayerSpec.builder(name, 4, 64).numKvHeads(2).returnLse(true).build();
  }

  private static Job job(int numBlocks, LayerSpec... layers) {
    return new Job(new KvCacheSpec(16, numBlocks, null), List.of(layers));
  }

  private void addManaged(LayerSpec layer, ManagedRow... rows) {
    batches.add(StepBatches.managed(noLeaks.allocator(), layer, DTYPE, true, List.of(rows)));
  }

  private void addExternal(LayerSpec layer, StepRow... rows) {
    batches.add(StepBatches.of(noLeaks.allocator(), layer, DTYPE, List.of(rows)));
  }

  private static void open(
      Job job, Failing failing, BiConsumer<PagedAttention, BufferAllocator> use) {
    CacheStores stores = new CacheStores(failing, RecordStore.NONE, false);
    try (BufferAllocator allocator = Allocators.root(Long.MAX_VALUE, failing);
        PagedAttention attention =
            PagedAttention.open(job, new AttentionConfig("cpu", 1, 0), allocator, stores)) {
      use.accept(attention, allocator);
    }
  }

  /** Computes the batches, with the first access failing, then the second one, and so on. */
  private void assertNoneMatters(Job job) {
    List<double[][][]> expected = compute(job, new Failing(Integer.MAX_VALUE));
    int after = 0;
    Failing failing = new Failing(after);
    for (List<double[][][]> got = compute(job, failing);
        failing.hasFailed();
        got = compute(job, failing)) {
      for (int i = 0; i < got.size(); i++) {
        assertThat(Arrays.deepEquals(got.get(i), expected.get(i)))
            .as("batch %s is right, access %s failed", i, after)
            .isTrue();
      }
      failing = new Failing(++after);
    }
    assertThat(after).isGreaterThan(10);
  }

  private List<double[][][]> compute(Job job, Failing failing) {
    List<double[][][]> outputs = new ArrayList<>();
    open(
        job,
        failing,
        (attention, allocator) -> {
          for (ArrowBatch batch : batches) {
            try (ArrowBatch result = step(attention, batch)) {
              outputs.add(StepBatches.read(result, "output"));
            }
          }
        });
    return outputs;
  }

  private static ArrowBatch step(PagedAttention attention, ArrowBatch batch) {
    try {
      return attention.step(batch, row -> {});
    } catch (OutOfMemoryException e) {
      return attention.step(batch, row -> {});
    }
  }

  @Test
  void withExternalTables() {
    LayerSpec a = layer("a");
    Job job = job(32, a);
    Scenario scenario = new Scenario(job, DTYPE, 3);
    addExternal(a, scenario.next("s", a, 40), scenario.next("t", a, 3));
    StepRow bad = scenario.next("u", a, 2).withSlots(0, 9999);
    addExternal(a, scenario.next("s", a, 1), bad, scenario.next("t", a, 1));
    addExternal(a, bad);
    addExternal(a, bad.withLayer("unknown"));
    assertNoneMatters(job);
  }

  @Test
  void whereSequencesAreSwapped() {
    LayerSpec a = layer("a");
    LayerSpec b = layer("b");
    Job job = job(6, a, b);
    Scenario scenario = new Scenario(job(99, a, b), DTYPE, 4);
    for (int tokens : new int[] {40, 1, 20}) {
      for (String sequence : List.of("s", "t", "u")) {
        for (LayerSpec layer : job.layers()) {
          addManaged(layer, ManagedRow.of(scenario.next(sequence, layer, tokens)));
        }
      }
    }
    assertNoneMatters(job);
  }

  @Test
  void whereSequencesShareBlocks() {
    LayerSpec a = layer("a");
    Job job = job(7, a);
    Scenario scenario = new Scenario(job(99, a), DTYPE, 5);
    long[] ids = LongStream.range(0, 40).toArray();
    StepRow prompt = scenario.next("s", a, 40);
    addManaged(a, ManagedRow.of(prompt).withTokenIds(ids));
    addManaged(
        a,
        ManagedRow.of(scenario.next("child", a, 1).withSeqLen(41)).forkedFrom("s"),
        ManagedRow.of(scenario.next("s", a, 1)));
    addManaged(a, ManagedRow.of(scenario.next("other", a, 60)));
    addManaged(a, ManagedRow.of(scenario.next("child", a, 1).withSeqLen(42)).last());
    addManaged(a, ManagedRow.of(scenario.next("alike", a, 40)).withTokenIds(ids));
    assertNoneMatters(job);
  }

  @Test
  void nothingOfAQueueLeaks() {
    LayerSpec a = layer("a");
    Job job = job(32, a);
    Scenario scenario = new Scenario(job, DTYPE, 6);
    addManaged(a, ManagedRow.of(scenario.next("long", a, 70)));
    addManaged(a, ManagedRow.of(scenario.next("s", a, 3)), ManagedRow.of(scenario.next("t", a, 1)));
    addManaged(a, ManagedRow.of(scenario.next("u", a, 3).withSeqLen(9)));
    assertNothingLeaks(
        job,
        (attention, allocator) -> {
          Collected collected = new Collected();
          try (StepQueue queue = attention.queue(32)) {
            batches.forEach(batch -> queue.add(batch, collected));
            queue.drain();
          } finally {
            collected.results.forEach(ArrowBatch::close);
          }
        });
  }

  @Test
  void nothingLeaksBesideSteps() {
    LayerSpec a = layer("a");
    Job job = job(32, a);
    addExternal(a, new Scenario(job, DTYPE, 7).next("s", a, 40));
    assertNothingLeaks(
        job,
        (attention, allocator) -> {
          ArrowBatch batch = batches.get(0);
          attention.check(batch);
          try (ArrowBatch zeros = attention.profile(batch);
              ArrowBatch result = attention.step(batch);
              ArrowBatch merged = attention.merge(List.of(zeros, result));
              ArrowBatch blocks = attention.blocks("a").read(0, 1)) {
            attention.blocks("a").write(new long[] {2, 3}, blocks);
          }
        });
  }

  private static void assertNothingLeaks(Job job, BiConsumer<PagedAttention, BufferAllocator> use) {
    for (int after = 0; ; after++) {
      Failing failing = new Failing(after);
      try {
        open(job, failing, use);
      } catch (OutOfMemoryException e) {
        continue;
      }
      assertThat(failing.hasFailed()).isFalse();
      return;
    }
  }
}
