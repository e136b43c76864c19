// SPDX-License-Identifier: Apache-2.0
package io.broadhead.attention;

import io.broadhead.arrow.ArrowBatch;
import io.broadhead.arrow.ArrowColumn;
import io.broadhead.arrow.BatchSchema;
import io.broadhead.arrow.DType;
import io.broadhead.arrow.StepColumns;
import io.broadhead.arrow.TensorField;
import io.broadhead.arrow.TypeName;
import io.broadhead.attention.job.AttnType;
import io.broadhead.attention.job.LayerSpec;
import io.broadhead.kernel.ErrorCode;
import java.util.List;
import java.util.function.Predicate;
import org.apache.arrow.memory.ArrowBuf;
import org.apache.arrow.memory.util.ByteFunctionHelpers;
import org.apache.arrow.vector.types.pojo.ArrowType;
import org.apache.arrow.vector.types.pojo.Field;

/**
 * What choosing the layer of a batch and planning its rows need to know of its schema, worked out
 * once: where the columns are that Java reads, and the element type. The native side checks
 * everything else when the schema is bound.
 */
final class StepBatchSchema {
  /** Stands for rows whose layer is null. */
  private static final String NO_LAYER = "";

  private static final String ID_TYPES = "int64 or utf8";

  private static final String TENSORS =
      "list<tensor[heads, head_size]> of float16, float32 or bfloat16 (uint16 with field metadata"
          + " dtype=bfloat16)";

  static final String NULL_SEQUENCE = "column sequence_id: expected an id in every row, got null";

  private final BatchSchema schema;
  private final int layerColumn;
  private final boolean idsAreText;
  private final DType dtype;

  StepBatchSchema(BatchSchema schema) {
    this.schema = schema;
    this.layerColumn = schema.index(StepColumns.LAYER);
    if (layerColumn >= 0 && !(schema.field(layerColumn).getType() instanceof ArrowType.Utf8)) {
      throw mismatch(StepColumns.LAYER, "utf8", schema.field(layerColumn));
    }
    int ids = schema.index(StepColumns.SEQUENCE_ID);
    if (ids < 0) {
      throw mismatch(StepColumns.SEQUENCE_ID, ID_TYPES, null);
    }
    requireIds(ids);
    if (schema.contains(StepColumns.SEQUENCE_GROUP)) {
      requireIds(schema.index(StepColumns.SEQUENCE_GROUP));
    }
    this.idsAreText = schema.field(ids).getType() instanceof ArrowType.Utf8;
    this.dtype = elementType();
  }

  private void requireIds(int column) {
    Field field = schema.field(column);
    boolean isText = field.getType() instanceof ArrowType.Utf8;
    if (!isText && !field.getType().equals(new ArrowType.Int(64, true))) {
      throw mismatch(field.getName(), ID_TYPES, field);
    }
  }

  private DType elementType() {
    for (String name : new String[] {StepColumns.QUERY, StepColumns.KEY}) {
      int column = schema.index(name);
      if (column >= 0) {
        return TensorField.of(schema.field(column))
            .map(TensorField::dtype)
            .orElseThrow(() -> mismatch(name, TENSORS, schema.field(column)));
      }
    }
    throw new InvalidBatchException(
        ErrorCode.SCHEMA_MISMATCH,
        -1,
        "column query: expected it, or key and value, got neither",
        null);
  }

  private static InvalidBatchException mismatch(String column, String expected, Field got) {
    return new InvalidBatchException(
        ErrorCode.SCHEMA_MISMATCH,
        -1,
        "column "
            + column
            + ": expected "
            + expected
            + ", got "
            + (got == null ? "no such column" : TypeName.of(got)),
        null);
  }

  BatchSchema schema() {
    return schema;
  }

  /** Whether the operator keeps the block tables: the batch brings neither tables nor slots. */
  boolean isManaged() {
    return !schema.contains(StepColumns.BLOCK_TABLE) && !schema.contains(StepColumns.SLOT_MAPPING);
  }

  /**
   * Checks the columns that only managed block tables have.
   *
   * @throws InvalidBatchException naming the layer and the column
   */
  void requireManagedColumns(LayerSpec layer) {
    ArrowType int32 = new ArrowType.Int(32, true);
    ArrowType int64 = new ArrowType.Int(64, true);
    ArrowType idType = idsAreText ? new ArrowType.Utf8() : int64;
    require(layer, StepColumns.SEQ_LEN, "int32", type -> type.getType().equals(int32));
    require(
        layer,
        StepColumns.END_OF_SEQUENCE,
        "bool",
        type -> type.getType() instanceof ArrowType.Bool);
    require(
        layer,
        StepColumns.PARENT_SEQUENCE_ID,
        (idsAreText ? "utf8" : "int64") + ", as sequence_id",
        type -> type.getType().equals(idType));
    if (layer.attnType() == AttnType.ENCODER_DECODER) {
      require(
          layer,
          StepColumns.TOKEN_IDS,
          "no such column for a layer of type encoder_decoder, whose keys depend on the tokens"
              + " behind them too",
          type -> false);
    }
    require(
        layer,
        StepColumns.TOKEN_IDS,
        "list<int32> or list<int64>",
        type ->
            type.getType() instanceof ArrowType.List
                && List.of(int32, int64).contains(type.getChildren().get(0).getType()));
  }

  private void require(LayerSpec layer, String column, String expected, Predicate<Field> holds) {
    int index = schema.index(column);
    if (index >= 0 && !holds.test(schema.field(index))) {
      InvalidBatchException e = mismatch(column, expected, schema.field(index));
      throw new InvalidBatchException(
          e.code(), e.row(), "layer '" + layer.name() + "': " + e.getMessage(), null);
    }
  }

  /** Element type of query, key and value. */
  DType dtype() {
    return dtype;
  }

  boolean idsAreText() {
    return idsAreText;
  }

  boolean hasLayer() {
    return layerColumn >= 0;
  }

  /**
   * What the layer column says in all rows.
   *
   * @throws InvalidBatchException if it is no text, or not the same in all rows
   */
  static String layerOf(ArrowBatch batch) {
    ArrowColumn column = batch.column(StepColumns.LAYER);
    Field field = batch.schema().field(batch.schema().index(StepColumns.LAYER));
    if (!(field.getType() instanceof ArrowType.Utf8)) {
      throw mismatch(StepColumns.LAYER, "utf8", field);
    }
    String first = text(column, 0);
    for (long row = 1; row < column.length(); row++) {
      String other = text(column, row);
      if (!other.equals(first)) {
        throw new InvalidBatchException(
            ErrorCode.INVALID_ROW,
            row,
            "row "
                + row
                + ": column layer: expected the same layer in every row, '"
                + first
                + "', got '"
                + other
                + "'",
            null);
      }
    }
    return first;
  }

  private static String text(ArrowColumn column, long row) {
    return column.isNull(row) ? NO_LAYER : column.getString(row);
  }

  /** What the layer column says in {@code row}; empty text for null. */
  String layer(ArrowBatch batch, long row) {
    return text(batch.column(StepColumns.LAYER), row);
  }

  /** The first row whose layer differs from that of row 0, or -1. Compares bytes, makes no text. */
  long firstOtherLayer(ArrowBatch batch) {
    ArrowColumn column = batch.column(StepColumns.LAYER);
    if (column.nullCount() > 0) {
      for (long row = 0; row < column.length(); row++) {
        if (column.isNull(row)) {
          return row;
        }
      }
    }
    ArrowBuf bytes = batch.buffer(schema.firstBuffer(layerColumn) + 2);
    long start = column.offset(0);
    long end = column.offset(1);
    for (long row = 1, from = end; row < column.length(); row++) {
      long to = column.offset(row + 1);
      if (to - from != end - start
          || ByteFunctionHelpers.equal(bytes, start, end, bytes, from, to) == 0) {
        return row;
      }
      from = to;
    }
    return -1;
  }

  /** The first row at or after {@code from} whose sequence id is null, or -1. */
  long firstNullSequence(ArrowBatch batch, long from) {
    ArrowColumn ids = batch.column(StepColumns.SEQUENCE_ID);
    for (long row = from; ids.nullCount() > 0 && row < ids.length(); row++) {
      if (ids.isNull(row)) {
        return row;
      }
    }
    return -1;
  }

  /** The sequence id of {@code row} as text; empty for null. */
  String sequenceId(ArrowBatch batch, long row) {
    ArrowColumn ids = batch.column(StepColumns.SEQUENCE_ID);
    if (row < 0 || row >= ids.length() || ids.isNull(row)) {
      return "";
    }
    return idsAreText ? ids.getString(row) : Long.toString(ids.getLong(row));
  }
}
