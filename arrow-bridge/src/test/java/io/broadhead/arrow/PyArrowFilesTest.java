// SPDX-License-Identifier: Apache-2.0
package io.broadhead.arrow;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import io.broadhead.testing.NoLeaks;
import io.broadhead.testing.StepBatchBuilder;
import java.io.IOException;
import java.net.URISyntaxException;
import java.nio.file.Path;
import java.util.List;
import org.apache.arrow.memory.ArrowBuf;
import org.apache.arrow.memory.BufferAllocator;
import org.apache.arrow.vector.VectorSchemaRoot;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.extension.ExtendWith;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.ValueSource;

/** Files that pyarrow wrote (resources, {@code pyarrow/generate.py}). */
@ExtendWith(NoLeaks.class)
class PyArrowFilesTest {
  private static Path resource(String name) {
    try {
      return Path.of(PyArrowFilesTest.class.getResource("/pyarrow/" + name).toURI());
    } catch (URISyntaxException e) {
      throw new AssertionError(e);
    }
  }

  @ParameterizedTest
  @CsvSource({
    "float16.arrow, FLOAT16, true, 0",
    "float32.arrow, FLOAT32, true, 0",
    "bfloat16.arrow, BFLOAT16, true, 0",
    "plain.arrow, FLOAT16, false, 0",
    "sliced.arrow, FLOAT16, true, 0",
    "lz4.arrow, FLOAT16, true, 1",
    "zstd.arrow, FLOAT16, true, 1",
    "stream.arrows, FLOAT16, true, 1",
    "stream-zstd.arrows, FLOAT16, true, 1"
  })
  void values(String name, DType dtype, boolean canonical, int copies, BufferAllocator allocator)
      throws IOException {
    try (StepInput input = StepInput.open(resource(name), allocator)) {
      for (int index = 0; index < 2; index++) {
        try (ArrowBatch batch = input.next()) {
          assertThat(input.origin().batch()).isEqualTo(index);
          TensorField tensor =
              TensorField.of(batch.schema().field(batch.schema().index("query"))).orElseThrow();
          assertThat(tensor.dtype()).isEqualTo(dtype);
          assertThat(tensor.canonical()).isEqualTo(canonical);
          assertThat(tensor.shape()).isEqualTo(canonical ? List.of(2, 4) : List.of(8));
          assertThat(tensor.elements()).isEqualTo(8);
          expectValues(batch, dtype);
          assertThat(batch.bytesCopied() > 0).isEqualTo(copies > 0);
          try (VectorSchemaRoot root = batch.toRoot(allocator)) {
            assertThat(root.getVector("sequence_id").getObject(2)).hasToString("s2");
          }
        }
      }
      assertThat(input.next()).isNull();
    }
  }

  private static void expectValues(ArrowBatch batch, DType dtype) {
    assertThat(batch.numRows()).isEqualTo(3);
    ArrowColumn id = batch.column("sequence_id");
    assertThat(List.of(id.getString(0), id.getString(1), id.getString(2)))
        .containsExactly("s0", "s1", "s2");
    ArrowColumn note = batch.column("note");
    assertThat(note.getLong(0)).isEqualTo(1);
    assertThat(note.isNull(1)).isTrue();
    assertThat(note.isNull(2)).isFalse();
    ArrowColumn query = batch.column("query");
    assertThat(List.of(query.listSize(0), query.listSize(1), query.listSize(2)))
        .containsExactly(1L, 0L, 2L);
    ArrowBuf elements = query.child().child().values();
    for (int i = 0; i < 24; i++) {
      long at = query.offset(0) * 8 + i;
      assertThat(StepBatchBuilder.element(elements, at, dtype)).isEqualTo(i);
    }
  }

  @Test
  void dictionaryIsRefusedByName(BufferAllocator allocator) {
    assertThatThrownBy(() -> ArrowFile.open(resource("dictionary.arrow"), allocator))
        .isInstanceOf(MalformedArrowException.class)
        .hasMessageContaining("dictionary.arrow")
        .hasMessageContaining("column sequence_id")
        .hasMessageContaining("dictionary-encoded");
  }

  @Test
  void viewsAreRefusedByName(BufferAllocator allocator) {
    assertThatThrownBy(() -> ArrowFile.open(resource("view.arrow"), allocator))
        .isInstanceOf(MalformedArrowException.class)
        .hasMessageContaining("column sequence_id")
        .hasMessageContaining("utf8_view");
  }

  @ParameterizedTest
  @ValueSource(strings = {"float16.arrow", "float32.arrow", "bfloat16.arrow"})
  void mappedBuffersAreTheFileItself(String name, BufferAllocator allocator) throws IOException {
    try (ArrowFile file = ArrowFile.open(resource(name), allocator);
        ArrowBatch batch = file.read(1)) {
      assertThat(batch.bytesCopied()).isZero();
      for (int b = 0; b < batch.schema().bufferCount(); b++) {
        if (batch.buffer(b).readableBytes() > 0) {
          assertThat(file.isMapped(batch.bufferAddress(b))).isTrue();
        }
      }
    }
  }
}
