// SPDX-License-Identifier: Apache-2.0
package io.broadhead.arrow;

import static org.assertj.core.api.Assertions.assertThat;

import java.util.List;
import java.util.Map;
import java.util.stream.Stream;
import org.apache.arrow.vector.types.pojo.ArrowType;
import org.apache.arrow.vector.types.pojo.Field;
import org.apache.arrow.vector.types.pojo.FieldType;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.Arguments;
import org.junit.jupiter.params.provider.MethodSource;

class TypeNameTest {
  private static final Field INT32 = Field.nullable("item", new ArrowType.Int(32, true));

  private static Field of(ArrowType type, Field child) {
    return new Field("x", FieldType.nullable(type), List.of(child));
  }

  static Stream<Arguments> types() {
    return Stream.of(
        Arguments.of(INT32, "int32"),
        Arguments.of(Field.nullable("x", new ArrowType.Int(8, false)), "uint8"),
        Arguments.of(Field.nullable("x", new ArrowType.Utf8()), "utf8"),
        Arguments.of(Field.nullable("x", new ArrowType.LargeUtf8()), "large_utf8"),
        Arguments.of(of(new ArrowType.List(), INT32), "list<int32>"),
        Arguments.of(of(new ArrowType.LargeList(), INT32), "large_list<int32>"),
        Arguments.of(of(new ArrowType.FixedSizeList(3), INT32), "fixed_size_list<int32>[3]"),
        Arguments.of(
            new Field(
                "x",
                new FieldType(true, new ArrowType.List(), null, Map.of("dtype", "bf16")),
                List.of(INT32)),
            "list<int32> with field metadata dtype=bf16"),
        Arguments.of(TensorField.list("x", DType.FLOAT16, 2, 64), "list<tensor[2, 64]<float16>>"),
        Arguments.of(TensorField.list("x", DType.BFLOAT16, 2, 64), "list<tensor[2, 64]<bfloat16>>"),
        Arguments.of(TensorField.tensor("x", DType.FLOAT32, 16, 2), "tensor[16, 2]<float32>"));
  }

  @ParameterizedTest
  @MethodSource("types")
  void readsAsUsersWriteIt(Field field, String name) {
    assertThat(TypeName.of(field)).isEqualTo(name);
  }
}
