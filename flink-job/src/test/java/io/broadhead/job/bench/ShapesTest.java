// SPDX-License-Identifier: Apache-2.0
package io.broadhead.job.bench;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import io.broadhead.arrow.DType;
import java.util.List;
import org.junit.jupiter.api.Test;

class ShapesTest {
  private static final Heads LLAMA = Heads.parse("llama-3-8b");

  @Test
  void headsHaveNamesOrSizes() {
    assertThat(LLAMA.sizes()).isEqualTo("32/8/128");
    assertThat(LLAMA.groupSize()).isEqualTo(4);
    assertThat(Heads.parse("16/2/64")).isEqualTo(new Heads("16/2/64", 16, 2, 64));
    assertThatThrownBy(() -> Heads.parse("llama-9"))
        .hasMessage(
            "expected llama-3-8b, llama-2-7b, qwen3-0.6b, gpt-2, gemma or"
                + " HEADS/KV_HEADS/HEAD_SIZE, got llama-9");
    assertThatThrownBy(() -> Heads.parse("16/3/64")).hasMessageContaining("multiple");
    assertThatThrownBy(() -> Heads.parse("16/a/64")).hasMessageContaining("16/a/64");
  }

  @Test
  void rowsAreWrittenAndRead() {
    List<Rows> rows = List.of(new Rows(8, 1, 4096), new Rows(1, 512, 512));
    assertThat(Rows.text(rows)).isEqualTo("8x1@4096+1x512@512");
    assertThat(Rows.parse("8x1@4096+1x512@512")).isEqualTo(rows);
    assertThatThrownBy(() -> Rows.parse("8x1")).hasMessageContaining("COUNTxTOKENS@CONTEXT");
    assertThatThrownBy(() -> new Rows(1, 5, 4)).hasMessageContaining("1x5@4");
    assertThat(Rows.decodes(List.of(1, 8), List.of(512, 4096)).stream().map(Rows::text))
        .containsExactly("1x1@512", "8x1@512", "1x1@4096", "8x1@4096");
  }

  @Test
  void decodeReadsKeysAndValuesOnce() {
    StepShape shape = BenchCells.shape(LLAMA, DType.FLOAT16, new Rows(8, 1, 4096));
    assertThat(shape.bytes()).isEqualTo(2L * 8 * 4096 * 8 * 128 * 2);
    assertThat(shape.flops()).isEqualTo(4.0 * 8 * 4096 * 32 * 128);
    assertThat(shape.newTokens()).isEqualTo(8);
    assertThat(shape.blocks()).isEqualTo(8 * 256);
    assertThat(shape.decodes()).isTrue();
    assertThat(shape.copies() * shape.contextBytes()).isGreaterThan(256L << 20);
  }

  @Test
  void promptsSeeKeysUpToTheirOwn() {
    StepShape shape = BenchCells.shape(LLAMA, DType.FLOAT32, new Rows(1, 3, 5));
    assertThat(shape.flops()).isEqualTo(4.0 * (3 + 4 + 5) * 32 * 128);
    assertThat(shape.decodes()).isFalse();
    assertThat(shape.copies()).isEqualTo(4);
  }

  @Test
  void updatesReadOneTypeAndWriteTheOther() {
    StepShape shape =
        new StepShape(
            LLAMA,
            DType.FLOAT16,
            DType.FLOAT8_E4M3FN,
            16,
            List.of(new Rows(2, 10, 10)),
            false,
            false);
    assertThat(shape.bytes()).isEqualTo(2L * 20 * 8 * 128 * 3);
    assertThat(shape.flops()).isZero();
    assertThat(new Cell(Mode.UPDATE, shape, 1))
        .hasToString("update llama-3-8b float16/float8_e4m3fn 2x10@10, 1 thread");
  }
}
