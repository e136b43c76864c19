// SPDX-License-Identifier: Apache-2.0
package io.broadhead.arrow;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import java.util.List;
import java.util.Map;
import org.apache.arrow.vector.types.pojo.ArrowType;
import org.apache.arrow.vector.types.pojo.Field;
import org.apache.arrow.vector.types.pojo.FieldType;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.EnumSource;
import org.junit.jupiter.params.provider.ValueSource;

class TensorFieldTest {
  @ParameterizedTest
  @EnumSource(DType.class)
  void fieldsSayWhatTheyWereMadeFrom(DType dtype) {
    Field field = TensorField.list("query", dtype, 4, 64);
    TensorField tensor = TensorField.of(field).orElseThrow();
    assertThat(tensor).isEqualTo(new TensorField(dtype, List.of(4, 64), true));
    assertThat(tensor.elements()).isEqualTo(256);
    assertThat(tensor.tensorBytes()).isEqualTo(256L * dtype.byteWidth());
    assertThat(field.isNullable()).isFalse();
    assertThat(TensorField.nullableList("query", dtype, 4).isNullable()).isTrue();
    assertThat(field.getMetadata())
        .isEqualTo(dtype.isArrowNative() ? Map.of() : Map.of("dtype", dtype.label()));
    assertThat(field.getChildren().get(0).getMetadata())
        .containsEntry("ARROW:extension:name", "arrow.fixed_shape_tensor")
        .containsEntry("ARROW:extension:metadata", "{\"shape\":[4,64]}");
    assertThat(TensorField.of(TensorField.plainList("query", dtype, 256)))
        .contains(new TensorField(dtype, List.of(256), false));
  }

  @Test
  void otherWritersSpellTheShapeTheirWay() {
    Field field =
        column(
            Map.of(),
            Map.of(
                "ARROW:extension:name",
                "arrow.fixed_shape_tensor",
                "ARROW:extension:metadata",
                "{ \"dim_names\": [\"head\", \"dim\"], \"shape\" : [ 2, 4 ] }"),
            Map.of(),
            DType.FLOAT16.storage());
    assertThat(TensorField.of(field)).contains(new TensorField(DType.FLOAT16, List.of(2, 4), true));
  }

  @Test
  void dtypeMetadataMaySitOnAnyLevel() {
    Map<String, String> bfloat16 = Map.of("dtype", "bfloat16");
    ArrowType storage = DType.BFLOAT16.storage();
    for (Field field :
        List.of(
            column(bfloat16, Map.of(), Map.of(), storage),
            column(Map.of(), bfloat16, Map.of(), storage),
            column(Map.of(), Map.of(), bfloat16, storage))) {
      assertThat(TensorField.of(field))
          .contains(new TensorField(DType.BFLOAT16, List.of(8), false));
    }
  }

  @Test
  void whatIsNoTensorColumnIsNone() {
    assertThat(TensorField.of(column(Map.of(), Map.of(), Map.of(), new ArrowType.Int(16, false))))
        .as("uint16 without dtype")
        .isEmpty();
    assertThat(
            TensorField.of(
                column(Map.of("dtype", "bfloat16"), Map.of(), Map.of(), DType.FLOAT32.storage())))
        .as("dtype and storage disagree")
        .isEmpty();
    assertThat(TensorField.of(Field.notNullable("x", ArrowType.Utf8.INSTANCE))).isEmpty();
  }

  @ParameterizedTest
  @ValueSource(
      strings = {
        "3,4",
        "-2,-4",
        "",
        // Products that overflow.
        "65536,65536,0",
        "2147483647,2147483647,4",
        "4294967296,8"
      })
  void aShapeOfOtherElementsIsNone(String shape) {
    Map<String, String> extension =
        Map.of(
            "ARROW:extension:name",
            "arrow.fixed_shape_tensor",
            "ARROW:extension:metadata",
            "{\"shape\":[" + shape + "]}");
    assertThat(TensorField.of(column(Map.of(), extension, Map.of(), DType.FLOAT16.storage())))
        .isEmpty();
  }

  private static Field column(
      Map<String, String> onColumn,
      Map<String, String> onTensor,
      Map<String, String> onElement,
      ArrowType storage) {
    Field element = new Field("item", new FieldType(true, storage, null, onElement), null);
    Field tensor =
        new Field(
            "item",
            new FieldType(true, new ArrowType.FixedSizeList(8), null, onTensor),
            List.of(element));
    return new Field(
        "query", new FieldType(true, new ArrowType.List(), null, onColumn), List.of(tensor));
  }

  @Test
  void unknownDTypeNamesTheKnown() {
    assertThat(DType.parse("bfloat16")).isEqualTo(DType.BFLOAT16);
    assertThat(DType.ofCode(4)).isEqualTo(DType.FLOAT8_E4M3FN);
    assertThatThrownBy(() -> DType.parse("fp4"))
        .isInstanceOf(IllegalArgumentException.class)
        .hasMessage(
            "dtype: expected one of float32, float16, bfloat16, float8_e4m3fn, float8_e5m2,"
                + " got fp4");
  }
}
