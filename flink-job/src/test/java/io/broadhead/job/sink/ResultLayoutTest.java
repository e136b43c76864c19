// SPDX-License-Identifier: Apache-2.0
package io.broadhead.job.sink;

import static org.assertj.core.api.Assertions.assertThat;

import io.broadhead.arrow.ArrowBatch;
import io.broadhead.arrow.DType;
import io.broadhead.attention.job.Job;
import io.broadhead.attention.job.KvCacheSpec;
import io.broadhead.attention.job.LayerSpec;
import io.broadhead.attention.testing.NoLeaks;
import io.broadhead.attention.testing.StepBatches;
import io.broadhead.attention.testing.StepRow;
import java.util.List;
import java.util.stream.Stream;
import org.apache.flink.util.InstantiationUtil;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.extension.RegisterExtension;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

class ResultLayoutTest {
  @RegisterExtension private final NoLeaks noLeaks = new NoLeaks();

  private static LayerSpec layer(String name, int numHeads) {
    return LayerSpec.builder(name, numHeads, 64).build();
  }

  private static Job job(LayerSpec... layers) {
    return new Job(new KvCacheSpec(16, 4, null), List.of(layers));
  }

  private String groupOf(ResultLayout layout, LayerSpec layer, DType dtype) {
    double[][] none = new double[0][];
    StepRow row =
        new StepRow(1L, layer.name(), none, none, none, 0, new long[0], new int[0], new int[0]);
    return groupOf(layout, layer, dtype, List.of(row));
  }

  private String groupOf(ResultLayout layout, LayerSpec layer, DType dtype, List<StepRow> rows) {
    try (ArrowBatch batch = StepBatches.of(noLeaks.allocator(), layer, dtype, rows)) {
      return layout.groupOf(batch);
    }
  }

  @Test
  void furtherSchemasAreNumberedAndEachSinkBeginsAnew() throws Exception {
    LayerSpec layer = layer("a", 2);
    ResultLayout layout = ResultLayout.of(job(layer, layer("b", 2)));
    for (int i = 0; i < 2; i++) {
      assertThat(groupOf(layout, layer, DType.FLOAT32)).isEmpty();
      assertThat(groupOf(layout, layer, DType.FLOAT16)).isEqualTo("schema-02");
      assertThat(groupOf(layout, layer, DType.BFLOAT16)).isEqualTo("schema-03");
    }
    ResultLayout restarted = InstantiationUtil.clone(layout);
    assertThat(groupOf(restarted, layer, DType.FLOAT16)).isEmpty();
  }

  @Test
  void layersOfDifferentShapesAreApart() {
    LayerSpec wide = layer("wide", 4);
    LayerSpec narrow = layer("narrow", 2);
    ResultLayout layout = ResultLayout.of(job(wide, narrow));
    assertThat(groupOf(layout, wide, DType.FLOAT32)).isEqualTo("wide");
    assertThat(groupOf(layout, narrow, DType.FLOAT32)).isEqualTo("narrow");
    assertThat(groupOf(layout, wide, DType.FLOAT16)).isEqualTo("wide_schema-02");
    assertThat(groupOf(layout, wide, DType.FLOAT32, List.of())).as("of no layer").isEmpty();
  }

  @Test
  void noLayerIsCalledLikeTheFurtherSchemaOfAnother() {
    LayerSpec layer = layer("a", 4);
    LayerSpec other = layer("a_schema-02", 2);
    ResultLayout layout = ResultLayout.of(job(layer, other));
    assertThat(
            Stream.of(DType.FLOAT32, DType.FLOAT16, DType.BFLOAT16)
                .flatMap(dtype -> Stream.of(layer, other).map(l -> groupOf(layout, l, dtype))))
        .doesNotHaveDuplicates();
  }

  @ParameterizedTest
  @CsvSource({
    "a.b-1_C, a.b-1_C",
    "../a, %002e.%002fa",
    "%41, %002541",
    "ä, %00e4",
    "ä_schema-02, %00e4_schema-0%0032",
    "schema-100, schema-10%0030",
    "schema-2, schema-2",
    "results, result%0073",
    "a_results, a_results",
  })
  void namesOfLayersAreGoodForFiles(String name, String group) {
    LayerSpec layer = layer(name, 4);
    ResultLayout layout = ResultLayout.of(job(layer, layer("other", 2)));
    assertThat(groupOf(layout, layer, DType.FLOAT32)).isEqualTo(group);
  }
}
