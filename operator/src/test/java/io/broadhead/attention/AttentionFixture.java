// SPDX-License-Identifier: Apache-2.0
package io.broadhead.attention;

import static org.assertj.core.api.Assertions.assertThat;

import io.broadhead.arrow.ArrowBatch;
import io.broadhead.arrow.ArrowColumn;
import io.broadhead.arrow.DType;
import io.broadhead.attention.cache.KvCacheManager;
import io.broadhead.attention.job.Job;
import io.broadhead.attention.job.KvCacheSpec;
import io.broadhead.attention.job.LayerSpec;
import io.broadhead.attention.testing.ManagedRow;
import io.broadhead.attention.testing.NoLeaks;
import io.broadhead.attention.testing.StepBatches;
import io.broadhead.attention.testing.StepRow;
import java.util.List;
import org.junit.jupiter.api.extension.RegisterExtension;

/** Two small layers, attention over layers like them, and batches for it. */
abstract class AttentionFixture {
  static final DType DTYPE = DType.FLOAT16;

  @RegisterExtension final NoLeaks noLeaks = new NoLeaks();

  final LayerSpec a = layer("a").build();
  final LayerSpec b = layer("b").build();

  static LayerSpec.Builder layer(String name) {
    return LayerSpec.builder(name, 4, 64).numKvHeads(2);
  }

  static Job job(int numBlocks, LayerSpec... layers) {
    return new Job(new KvCacheSpec(16, numBlocks, null), List.of(layers));
  }

  /** With more blocks than tests need that are not about their want. */
  static Job job(LayerSpec... layers) {
    return job(64, layers);
  }

  PagedAttention open(Job job, int threads, OutOfBlocks outOfBlocks) {
    return PagedAttention.open(
        job, new AttentionConfig("cpu", threads, 0, outOfBlocks), noLeaks.allocator());
  }

  PagedAttention open(Job job) {
    return open(job, 1, OutOfBlocks.SWAP);
  }

  ArrowBatch managed(LayerSpec layer, ManagedRow... rows) {
    return StepBatches.managed(noLeaks.allocator(), layer, DTYPE, true, List.of(rows));
  }

  ArrowBatch managed(LayerSpec layer, List<StepRow> rows, boolean seqLens) {
    return StepBatches.managed(
        noLeaks.allocator(), layer, DTYPE, seqLens, rows.stream().map(ManagedRow::of).toList());
  }

  ArrowBatch external(LayerSpec layer, List<StepRow> rows) {
    return StepBatches.of(noLeaks.allocator(), layer, DTYPE, rows);
  }

  void run(PagedAttention attention, LayerSpec layer, ManagedRow... rows) {
    try (ArrowBatch batch = managed(layer, rows)) {
      attention.step(batch).close();
    }
  }

  static void assertSameBits(ArrowBatch got, ArrowBatch expected) {
    assertThat(got.numRows()).isEqualTo(expected.numRows());
    ArrowColumn left = got.column("output");
    ArrowColumn right = expected.column("output");
    for (int row = 0; row <= got.numRows(); row++) {
      assertThat(left.offset(row)).isEqualTo(right.offset(row));
    }
    for (long i = 0; i < left.child().child().length(); i++) {
      assertThat(left.child().child().getLong(i)).isEqualTo(right.child().child().getLong(i));
    }
  }

  static void assertClose(double[][] got, double[][] expected) {
    assertThat(StepBatches.error(new double[][][] {expected}, new double[][][] {got}))
        .isLessThan(StepBatches.tolerance(DTYPE));
  }

  static KvCacheManager tables(PagedAttention attention) {
    return attention.blockTables().orElseThrow();
  }

  static int inUse(PagedAttention attention) {
    return tables(attention).capacity() - tables(attention).free();
  }
}
