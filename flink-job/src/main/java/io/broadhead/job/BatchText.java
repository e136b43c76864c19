// SPDX-License-Identifier: Apache-2.0
package io.broadhead.job;

import io.broadhead.arrow.ArrowBatch;
import io.broadhead.arrow.ArrowColumn;
import io.broadhead.arrow.BatchSchema;
import io.broadhead.arrow.DType;
import io.broadhead.arrow.TensorField;
import io.broadhead.arrow.TypeName;
import java.util.ArrayList;
import java.util.List;
import java.util.Locale;
import java.util.Optional;
import java.util.stream.Collectors;
import java.util.stream.LongStream;
import org.apache.arrow.memory.BufferAllocator;
import org.apache.arrow.memory.util.Float16;
import org.apache.arrow.vector.VectorSchemaRoot;
import org.apache.arrow.vector.types.pojo.ArrowType;
import org.apache.arrow.vector.types.pojo.Field;

/** Schemas and rows as text. */
final class BatchText {
  private static final int MAX_ELEMENTS = 6;
  private static final int MAX_TEXT = 60;

  private BatchText() {}

  /** One line for each column: name and type. */
  static List<String> schema(BatchSchema schema) {
    List<String> lines = new ArrayList<>();
    for (Field field : schema.arrow().getFields()) {
      lines.add(String.format("%-16s %s", field.getName(), type(field)));
    }
    return lines;
  }

  private static String type(Field field) {
    return field.isNullable() ? TypeName.of(field) : TypeName.of(field) + " not null";
  }

  /** One line for each column of the first row; nothing for a batch without rows. */
  static List<String> firstRow(ArrowBatch batch, BufferAllocator allocator) {
    List<String> lines = new ArrayList<>();
    if (batch.numRows() == 0) {
      return lines;
    }
    try (VectorSchemaRoot root = batch.toRoot(allocator)) {
      for (Field field : batch.schema().arrow().getFields()) {
        ArrowColumn column = batch.column(field.getName());
        String value;
        if (column.isNull(0)) {
          value = "null";
        } else if (field.getType() instanceof ArrowType.List) {
          value = list(field, column);
        } else {
          value = shortened(String.valueOf(root.getVector(field.getName()).getObject(0)));
        }
        lines.add(String.format("%-16s %s", field.getName(), value));
      }
    }
    return lines;
  }

  private static String list(Field field, ArrowColumn column) {
    Optional<TensorField> tensor = TensorField.of(field);
    long start = column.offset(0);
    long size = column.listSize(0);
    ArrowColumn items = column.child();
    if (tensor.isPresent()) {
      ArrowColumn elements = items.child();
      long first = start * tensor.get().elements();
      return size
          + (size == 1 ? " tensor " : " tensors ")
          + elements(
              size * tensor.get().elements(),
              i -> number(tensor.get().dtype(), elements, first + i));
    }
    if (field.getChildren().get(0).getType() instanceof ArrowType.Int) {
      return size
          + (size == 1 ? " element " : " elements ")
          + elements(size, i -> items.isNull(start + i) ? "null" : "" + items.getLong(start + i));
    }
    return size + (size == 1 ? " element" : " elements");
  }

  private interface Element {
    String at(long index);
  }

  private static String elements(long size, Element element) {
    return LongStream.range(0, Math.min(size, MAX_ELEMENTS))
        .mapToObj(element::at)
        .collect(Collectors.joining(", ", "[", size > MAX_ELEMENTS ? ", ...]" : "]"));
  }

  private static String number(DType dtype, ArrowColumn elements, long index) {
    long bits = elements.getLong(index);
    return switch (dtype) {
      case FLOAT32 -> shortNumber(Float.intBitsToFloat((int) bits));
      case FLOAT16 -> shortNumber(Float16.toFloat((short) bits));
      case BFLOAT16 -> shortNumber(Float.intBitsToFloat((int) bits << 16));
      case FLOAT8_E4M3FN, FLOAT8_E5M2 -> String.format("0x%02x", bits & 0xff);
    };
  }

  private static String shortNumber(float value) {
    return String.format(Locale.ROOT, "%.4g", value);
  }

  private static String shortened(String text) {
    return text.length() <= MAX_TEXT ? text : text.substring(0, MAX_TEXT) + "...";
  }
}
