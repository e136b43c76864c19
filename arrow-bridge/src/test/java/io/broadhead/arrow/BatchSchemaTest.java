// SPDX-License-Identifier: Apache-2.0
package io.broadhead.arrow;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import java.util.List;
import java.util.Map;
import org.apache.arrow.vector.types.UnionMode;
import org.apache.arrow.vector.types.pojo.ArrowType;
import org.apache.arrow.vector.types.pojo.DictionaryEncoding;
import org.apache.arrow.vector.types.pojo.Field;
import org.apache.arrow.vector.types.pojo.FieldType;
import org.apache.arrow.vector.types.pojo.Schema;
import org.junit.jupiter.api.Test;

class BatchSchemaTest {
  private static final Field ID = Field.notNullable("sequence_id", ArrowType.Utf8.INSTANCE);
  private static final Field QUERY = TensorField.list("query", DType.BFLOAT16, 2, 4);
  private static final Field LENGTH = Field.nullable("seq_len", new ArrowType.Int(32, true));

  @Test
  void equalSchemasAreOneObject() throws MalformedArrowException {
    BatchSchema schema = BatchSchema.of(ID, QUERY, LENGTH);
    assertThat(BatchSchema.of(new Schema(List.of(ID, QUERY, LENGTH)))).isSameAs(schema);
    assertThat(BatchSchema.parse(schema.bytes())).isSameAs(schema);
    assertThat(schema.fingerprint()).hasSize(32);
    assertThat(BatchSchema.of(ID, LENGTH).fingerprint()).isNotEqualTo(schema.fingerprint());
  }

  @Test
  void anInterruptDoesNotMakeItFail() {
    Thread.currentThread().interrupt();
    try {
      assertThat(BatchSchema.of(ID, QUERY).columnCount()).isEqualTo(2);
    } finally {
      assertThat(Thread.interrupted()).isTrue();
    }
  }

  @Test
  void metadataSurvivesTheBytes() throws MalformedArrowException {
    BatchSchema schema = BatchSchema.of(new Schema(List.of(QUERY), Map.of("producer", "test")));
    Schema parsed = BatchSchema.parse(schema.bytes()).arrow();
    assertThat(parsed).isEqualTo(schema.arrow());
    assertThat(TensorField.of(parsed.getFields().get(0)))
        .contains(new TensorField(DType.BFLOAT16, List.of(2, 4), true));
  }

  @Test
  void nodesAndBuffersOfColumns() {
    BatchSchema schema = BatchSchema.of(ID, QUERY, LENGTH);
    assertThat(schema.columnCount()).isEqualTo(3);
    assertThat(schema.nodeCount()).isEqualTo(5);
    assertThat(schema.bufferCount()).isEqualTo(3 + 2 + 1 + 2 + 2);
    assertThat(schema.index("query")).isEqualTo(1);
    assertThat(schema.index("key")).isEqualTo(-1);
    assertThat(schema.contains("seq_len")).isTrue();
    assertThat(
            List.of(
                schema.firstNode(0), schema.firstNode(1), schema.firstNode(2), schema.firstNode(3)))
        .containsExactly(0, 1, 4, 5);
    assertThat(
            List.of(
                schema.firstBuffer(0),
                schema.firstBuffer(1),
                schema.firstBuffer(2),
                schema.firstBuffer(3)))
        .containsExactly(0, 3, 8, 10);
    assertThat(schema.select(2, 0)).isSameAs(BatchSchema.of(LENGTH, ID));
    assertThat(BatchSchema.of(ID).join(BatchSchema.of(QUERY))).isSameAs(BatchSchema.of(ID, QUERY));
  }

  @Test
  void layoutsThatABatchCannotCarryAreNamed() {
    Field dictionary =
        new Field(
            "layer",
            new FieldType(false, ArrowType.Utf8.INSTANCE, new DictionaryEncoding(1, false, null)),
            null);
    refused("layer", "dictionary-encoded", dictionary);
    refused("notes", "utf8_view", Field.nullable("notes", ArrowType.Utf8View.INSTANCE));
    refused(
        "either",
        "union",
        new Field(
            "either",
            FieldType.nullable(new ArrowType.Union(UnionMode.Sparse, new int[] {0})),
            List.of(LENGTH)));
    refused(
        "runs",
        "run_end_encoded",
        new Field(
            "runs",
            FieldType.nullable(ArrowType.RunEndEncoded.INSTANCE),
            List.of(Field.notNullable("run_ends", new ArrowType.Int(32, true)), LENGTH)));
    refused(
        "outer.inner",
        "binary_view",
        new Field(
            "outer",
            FieldType.nullable(ArrowType.Struct.INSTANCE),
            List.of(Field.nullable("inner", ArrowType.BinaryView.INSTANCE))));
    refused("sequence_id", "got two", ID, ID);
    refused(
        "pairs",
        "got -2",
        new Field("pairs", FieldType.nullable(new ArrowType.FixedSizeList(-2)), List.of(LENGTH)));
  }

  private static void refused(String column, String got, Field... fields) {
    assertThatThrownBy(() -> BatchSchema.of(fields))
        .isInstanceOf(IllegalArgumentException.class)
        .hasMessageContaining("column " + column)
        .hasMessageContaining(got);
  }

  @Test
  void otherBytesAreNoSchema() {
    assertThatThrownBy(() -> BatchSchema.parse(new byte[] {1, 2, 3, 4, 5, 6, 7, 8, 9, 10}))
        .isInstanceOf(MalformedArrowException.class);
  }
}
