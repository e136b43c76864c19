// SPDX-License-Identifier: Apache-2.0
package io.broadhead.kernel;

import io.broadhead.arrow.BatchSchema;
import io.broadhead.arrow.StepColumns;
import java.util.ArrayList;
import java.util.List;
import org.apache.arrow.vector.types.pojo.ArrowType;
import org.apache.arrow.vector.types.pojo.Field;
import org.apache.arrow.vector.types.pojo.FieldType;
import org.apache.arrow.vector.types.pojo.Schema;

/**
 * What kernels are given of batches of one schema: the columns that they look at, in one order, and
 * where each comes from. Batches of different schemas with the same {@link #columns()} can be
 * computed in one step. Immutable.
 */
public final class StepSchema {
  /** For a source: the column's contents are {@link PlannedRows}. */
  static final int PLANNED = -1;

  private static final List<String> ORDER =
      List.of(
          StepColumns.QUERY,
          StepColumns.KEY,
          StepColumns.VALUE,
          StepColumns.POSITION,
          StepColumns.SEQ_LEN,
          StepColumns.SLOT_MAPPING,
          StepColumns.BLOCK_TABLE);

  private static final List<Field> PLANNED_FIELDS =
      List.of(
          Field.notNullable(StepColumns.SEQ_LEN, new ArrowType.Int(32, true)),
          list(StepColumns.SLOT_MAPPING, 64),
          list(StepColumns.BLOCK_TABLE, 32));

  private final BatchSchema batches;
  private final boolean isPlanned;
  private final BatchSchema columns;
  private final int[] sources;

  private StepSchema(BatchSchema batches, boolean isPlanned) {
    this.batches = batches;
    this.isPlanned = isPlanned;
    List<Field> fields = new ArrayList<>();
    List<Integer> from = new ArrayList<>();
    for (String name : ORDER) {
      Field planned =
          PLANNED_FIELDS.stream().filter(f -> f.getName().equals(name)).findFirst().orElse(null);
      int index = batches.index(name);
      if (isPlanned && planned != null) {
        fields.add(planned);
        from.add(PLANNED);
      } else if (index >= 0) {
        fields.add(batches.field(index));
        from.add(index);
      }
    }
    this.columns = BatchSchema.of(new Schema(fields));
    this.sources = from.stream().mapToInt(Integer::intValue).toArray();
  }

  private static Field list(String name, int bits) {
    Field element = Field.notNullable("item", new ArrowType.Int(bits, true));
    return new Field(name, FieldType.notNullable(new ArrowType.List()), List.of(element));
  }

  /** All columns as the producer sends them: external block tables, and layers without a cache. */
  public static StepSchema asSent(BatchSchema batches) {
    return new StepSchema(batches, false);
  }

  /** {@code seq_len}, {@code slot_mapping} and {@code block_table} come from the operator. */
  public static StepSchema planned(BatchSchema batches) {
    return new StepSchema(batches, true);
  }

  /** Schema of the batches. */
  public BatchSchema batches() {
    return batches;
  }

  /** Schema of what kernels are given. */
  public BatchSchema columns() {
    return columns;
  }

  /** Whether the operator plans where tokens go. */
  public boolean isPlanned() {
    return isPlanned;
  }

  /** Column of the batches behind column {@code column}, or {@link #PLANNED}. */
  int source(int column) {
    return sources[column];
  }
}
