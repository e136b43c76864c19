// SPDX-License-Identifier: Apache-2.0
package io.broadhead.arrow;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import org.apache.arrow.vector.types.pojo.ArrowType;
import org.apache.arrow.vector.types.pojo.Field;
import org.apache.arrow.vector.types.pojo.FieldType;

/**
 * What a {@code list<tensor[...]>} column holds: element type and tensor shape.
 *
 * <p>The tensor is a {@code fixed_size_list}, by itself or as the canonical extension type {@code
 * arrow.fixed_shape_tensor}. Arrow Java has no class for that extension; its two metadata keys are
 * all there is to it, and they survive IPC and the C Data Interface.
 *
 * @param dtype element type
 * @param shape the extension's shape, or the list size alone where the column has no extension
 * @param canonical whether the column carries the extension type
 */
public record TensorField(DType dtype, List<Integer> shape, boolean canonical) {
  /** Field metadata key that names an element type which Arrow does not have. */
  public static final String DTYPE_KEY = "dtype";

  static final String EXTENSION_NAME_KEY = "ARROW:extension:name";
  static final String EXTENSION_METADATA_KEY = "ARROW:extension:metadata";
  static final String EXTENSION_NAME = "arrow.fixed_shape_tensor";

  private static final Pattern SHAPE = Pattern.compile("\"shape\"\\s*:\\s*\\[([^\\]]*)\\]");

  public TensorField {
    shape = List.copyOf(shape);
  }

  /** Elements of one tensor. */
  public int elements() {
    return shape.stream().mapToInt(Integer::intValue).reduce(1, Math::multiplyExact);
  }

  /** Bytes of one tensor. */
  public long tensorBytes() {
    return (long) elements() * dtype.byteWidth();
  }

  /** A column {@code list<tensor[shape]>} with the canonical extension type, without nulls. */
  public static Field list(String name, DType dtype, int... shape) {
    return list(name, dtype, false, true, shape);
  }

  /** A column {@code list<fixed_size_list>} without extension type, without nulls. */
  public static Field plainList(String name, DType dtype, int size) {
    return list(name, dtype, false, false, size);
  }

  /** As {@link #list(String, DType, int...)}, but a row may be null. */
  public static Field nullableList(String name, DType dtype, int... shape) {
    return list(name, dtype, true, true, shape);
  }

  /**
   * A column of {@code tensor[shape]} with the canonical extension type, one tensor a row, without
   * nulls.
   */
  public static Field tensor(String name, DType dtype, int... shape) {
    return tensor(name, dtype, true, dtypeMetadata(dtype), shape);
  }

  private static Field list(
      String name, DType dtype, boolean nullable, boolean canonical, int... shape) {
    Field tensor = tensor("item", dtype, canonical, Map.of(), shape);
    return new Field(
        name,
        new FieldType(nullable, new ArrowType.List(), null, dtypeMetadata(dtype)),
        List.of(tensor));
  }

  private static Field tensor(
      String name, DType dtype, boolean canonical, Map<String, String> metadata, int... shape) {
    int size = Arrays.stream(shape).reduce(1, Math::multiplyExact);
    Map<String, String> tensorMetadata = new LinkedHashMap<>(metadata);
    if (canonical) {
      tensorMetadata.put(EXTENSION_NAME_KEY, EXTENSION_NAME);
      tensorMetadata.put(
          EXTENSION_METADATA_KEY, "{\"shape\":" + Arrays.toString(shape).replace(" ", "") + "}");
    }
    Field element = new Field("item", FieldType.notNullable(dtype.storage()), null);
    return new Field(
        name,
        new FieldType(false, new ArrowType.FixedSizeList(size), null, tensorMetadata),
        List.of(element));
  }

  private static Map<String, String> dtypeMetadata(DType dtype) {
    return dtype.isArrowNative() ? Map.of() : Map.of(DTYPE_KEY, dtype.label());
  }

  /**
   * Reads a column's field; empty if it is no list of tensors with an element type of {@link
   * DType}. The {@code dtype} key is looked for on the column, then on the tensor, then on the
   * element.
   */
  public static Optional<TensorField> of(Field column) {
    if (!(column.getType() instanceof ArrowType.List) || column.getChildren().size() != 1) {
      return Optional.empty();
    }
    return ofTensor(column, column.getChildren().get(0));
  }

  /**
   * Reads the field of a column that holds one tensor a row; empty if it is no tensor with an
   * element type of {@link DType}.
   */
  public static Optional<TensorField> ofTensor(Field column) {
    return ofTensor(column, column);
  }

  private static Optional<TensorField> ofTensor(Field column, Field tensor) {
    if (!(tensor.getType() instanceof ArrowType.FixedSizeList list)
        || tensor.getChildren().size() != 1) {
      return Optional.empty();
    }
    Optional<DType> dtype = elementType(column, tensor.getChildren().get(0));
    if (dtype.isEmpty()) {
      return Optional.empty();
    }
    boolean canonical = EXTENSION_NAME.equals(tensor.getMetadata().get(EXTENSION_NAME_KEY));
    List<Integer> shape = List.of(list.getListSize());
    if (canonical) {
      Optional<List<Integer>> declared = shapeOf(tensor.getMetadata().get(EXTENSION_METADATA_KEY));
      if (declared.isEmpty() || !isOf(declared.get(), list.getListSize())) {
        return Optional.empty();
      }
      shape = declared.get();
    }
    return Optional.of(new TensorField(dtype.get(), shape, canonical));
  }

  private static Optional<DType> elementType(Field column, Field element) {
    Optional<String> label = dtypeLabel(column);
    if (label.isPresent()) {
      return DType.find(label.get()).filter(type -> type.storage().equals(element.getType()));
    }
    return Arrays.stream(DType.values())
        .filter(type -> type.isArrowNative() && type.storage().equals(element.getType()))
        .findFirst();
  }

  /** What the {@code dtype} key of a field, or else of its only child and so on, says. */
  static Optional<String> dtypeLabel(Field field) {
    return Optional.ofNullable(field.getMetadata().get(DTYPE_KEY))
        .or(
            () ->
                field.getChildren().size() == 1
                    ? dtypeLabel(field.getChildren().get(0))
                    : Optional.empty());
  }

  /** Whether a tensor of {@code shape} has {@code elements} elements, and at least one. */
  private static boolean isOf(List<Integer> shape, int elements) {
    long product = 1;
    for (int size : shape) {
      product *= size;
      if (size < 1 || product > elements) {
        return false;
      }
    }
    return product == elements;
  }

  private static Optional<List<Integer>> shapeOf(String json) {
    Matcher matcher = json == null ? null : SHAPE.matcher(json);
    if (matcher == null || !matcher.find()) {
      return Optional.empty();
    }
    List<Integer> shape = new ArrayList<>();
    try {
      for (String part : matcher.group(1).split(",")) {
        shape.add(Integer.parseInt(part.trim()));
      }
    } catch (NumberFormatException e) {
      return Optional.empty();
    }
    return Optional.of(shape);
  }

  @Override
  public String toString() {
    return "list<" + tensor() + ">";
  }

  /** The type of one tensor. */
  String tensor() {
    return "tensor" + shape + "<" + dtype + ">";
  }
}
