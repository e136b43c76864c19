// SPDX-License-Identifier: Apache-2.0
package io.broadhead.arrow;

import java.util.Locale;
import java.util.Optional;
import org.apache.arrow.vector.types.pojo.ArrowType;
import org.apache.arrow.vector.types.pojo.Field;

/** Types of columns as users write them. */
public final class TypeName {
  private TypeName() {}

  /**
   * The type of {@code field}, without its nullability: {@code list<int32>}, for example; with
   * metadata that names an element type which it does not have.
   */
  public static String of(Field field) {
    return TensorField.of(field)
        .map(TensorField::toString)
        .orElseGet(() -> plain(field) + metadata(field));
  }

  private static String metadata(Field field) {
    return TensorField.dtypeLabel(field)
        .map(label -> " with field metadata " + TensorField.DTYPE_KEY + "=" + label)
        .orElse("");
  }

  private static String plain(Field field) {
    ArrowType type = field.getType();
    if (type instanceof ArrowType.Int integer) {
      return (integer.getIsSigned() ? "int" : "uint") + integer.getBitWidth();
    }
    if (type instanceof ArrowType.List) {
      return "list<" + element(field) + ">";
    }
    if (type instanceof ArrowType.LargeList) {
      return "large_list<" + element(field) + ">";
    }
    Optional<TensorField> tensor = TensorField.ofTensor(field).filter(TensorField::canonical);
    if (tensor.isPresent()) {
      return tensor.get().tensor();
    }
    if (type instanceof ArrowType.FixedSizeList list) {
      return "fixed_size_list<" + element(field) + ">[" + list.getListSize() + "]";
    }
    if (type instanceof ArrowType.FloatingPoint number) {
      return switch (number.getPrecision()) {
        case HALF -> "float16";
        case SINGLE -> "float32";
        case DOUBLE -> "float64";
      };
    }
    return type.toString().replaceAll("(?<=[a-z0-9])(?=[A-Z])", "_").toLowerCase(Locale.ROOT);
  }

  private static String element(Field list) {
    return plain(list.getChildren().get(0));
  }
}
