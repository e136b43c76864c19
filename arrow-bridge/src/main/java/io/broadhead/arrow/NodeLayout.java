// SPDX-License-Identifier: Apache-2.0
package io.broadhead.arrow;

import org.apache.arrow.vector.TypeLayout;
import org.apache.arrow.vector.types.pojo.ArrowType;
import org.apache.arrow.vector.types.pojo.Field;

/**
 * How one field of a schema lies in a record batch.
 *
 * @param kind which buffers it has and what its children mean
 * @param width bytes of an element for {@link Kind#FIXED}, list size for {@link Kind#FIXED_LIST}
 * @param firstBuffer index of its first buffer in the batch
 * @param firstChild node index of its first child; the next sibling follows the child's subtree
 * @param endNode node index behind its subtree
 * @param endBuffer buffer index behind its subtree
 * @param path column name, or the path from it, for messages
 */
record NodeLayout(
    Kind kind,
    int width,
    int firstBuffer,
    int firstChild,
    int endNode,
    int endBuffer,
    String path) {
  enum Kind {
    NULL(0),
    BIT(2),
    FIXED(2),
    VAR32(3),
    VAR64(3),
    LIST32(2),
    LIST64(2),
    FIXED_LIST(1),
    STRUCT(1);

    final int buffers;

    Kind(int buffers) {
      this.buffers = buffers;
    }

    int offsetWidth() {
      return switch (this) {
        case VAR32, LIST32 -> 4;
        case VAR64, LIST64 -> 8;
        default -> 0;
      };
    }
  }

  /**
   * The kind of {@code field}.
   *
   * @throws IllegalArgumentException naming the column if a step batch cannot carry it
   */
  static Kind kindOf(Field field, String path) {
    if (field.getDictionary() != null) {
      throw new IllegalArgumentException(
          "column "
              + path
              + ": expected plain values, got dictionary-encoded "
              + TypeName.of(field)
              + "; decode it before writing the batch");
    }
    if (field.getType() instanceof ArrowType.FixedSizeList list && list.getListSize() < 0) {
      throw new IllegalArgumentException(
          "column " + path + ": expected a list size of 0 or more, got " + list.getListSize());
    }
    return switch (field.getType().getTypeID()) {
      case Null -> Kind.NULL;
      case Bool -> Kind.BIT;
      case Int,
          FloatingPoint,
          Decimal,
          Date,
          Time,
          Timestamp,
          Interval,
          Duration,
          FixedSizeBinary ->
          Kind.FIXED;
      case Utf8, Binary -> Kind.VAR32;
      case LargeUtf8, LargeBinary -> Kind.VAR64;
      case List, Map -> Kind.LIST32;
      case LargeList -> Kind.LIST64;
      case FixedSizeList -> Kind.FIXED_LIST;
      case Struct -> Kind.STRUCT;
      default ->
          throw new IllegalArgumentException(
              "column "
                  + path
                  + ": expected a primitive, utf8, binary, list or struct layout, got "
                  + TypeName.of(field)
                  + ", which a step batch cannot carry");
    };
  }

  /** What {@link #width} is for a field of {@code kind} and {@code type}. */
  static int widthOf(Kind kind, ArrowType type) {
    return switch (kind) {
      case FIXED -> TypeLayout.getTypeLayout(type).getBufferLayouts().get(1).getTypeBitWidth() / 8;
      case FIXED_LIST -> ((ArrowType.FixedSizeList) type).getListSize();
      default -> 0;
    };
  }

  /** Bytes that buffer {@code index} of this node needs for {@code length} elements. */
  long requiredBytes(int index, long length, long nullCount) {
    if (index == 0) {
      return nullCount == 0 ? 0 : (length + 7) / 8;
    }
    if (index == 2) {
      return 0;
    }
    return switch (kind) {
      case BIT -> (length + 7) / 8;
      case FIXED -> Math.multiplyExact(length, width);
      case VAR32, LIST32, VAR64, LIST64 ->
          length == 0 ? 0 : Math.multiplyExact(length + 1, kind.offsetWidth());
      default -> 0;
    };
  }
}
