// SPDX-License-Identifier: Apache-2.0
package io.broadhead.attention.testing;

import io.broadhead.arrow.ArrowBatch;
import io.broadhead.arrow.ArrowColumn;
import io.broadhead.arrow.BatchSchema;
import io.broadhead.arrow.DType;
import io.broadhead.arrow.StepColumns;
import io.broadhead.arrow.TensorField;
import io.broadhead.attention.job.LayerSpec;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.function.Function;
import java.util.function.ToIntFunction;
import java.util.stream.IntStream;
import java.util.stream.LongStream;
import org.apache.arrow.memory.ArrowBuf;
import org.apache.arrow.memory.BufferAllocator;
import org.apache.arrow.vector.types.pojo.ArrowType;
import org.apache.arrow.vector.types.pojo.Field;
import org.apache.arrow.vector.types.pojo.FieldType;
import org.apache.arrow.vector.types.pojo.Schema;

/** Builds step batches from {@link StepRow}s and reads result batches; used by one thread. */
public final class StepBatches {
  /** Stands for null among token ids and slots. */
  public static final long NULL = Long.MIN_VALUE;

  public static final String PASSED = "request";

  private final BufferAllocator allocator;
  private final DType dtype;
  private final List<Field> fields = new ArrayList<>();
  private final List<Long> lengths = new ArrayList<>();
  private final Map<Integer, Long> nullCounts = new HashMap<>();
  private final List<ArrowBuf> buffers = new ArrayList<>();

  private StepBatches(BufferAllocator allocator, DType dtype) {
    this.allocator = allocator;
    this.dtype = dtype;
  }

  /**
   * A batch with the columns that the layer's type needs, and one more, {@code request}, that
   * passes through. The layer column is left out if the rows have none.
   */
  public static ArrowBatch of(
      BufferAllocator allocator, LayerSpec layer, DType dtype, List<StepRow> rows) {
    StepBatches batch = new StepBatches(allocator, dtype);
    batch.common(layer, rows);
    if (layer.attnType().cached()) {
      batch.seqLens(rows);
      batch.longs(StepColumns.SLOT_MAPPING, rows, StepRow::slots);
      batch.ints(StepColumns.BLOCK_TABLE, rows, StepRow::blocks);
    }
    return batch.build(rows.size());
  }

  /**
   * The same without block tables.
   *
   * @param seqLens whether there is a column {@code seq_len}
   */
  public static ArrowBatch managed(
      BufferAllocator allocator,
      LayerSpec layer,
      DType dtype,
      boolean seqLens,
      List<ManagedRow> managedRows) {
    List<StepRow> rows = managedRows.stream().map(ManagedRow::row).toList();
    StepBatches batch = new StepBatches(allocator, dtype);
    batch.common(layer, rows);
    if (seqLens) {
      batch.seqLens(rows);
    }
    if (managedRows.stream().anyMatch(row -> row.parent() != null)) {
      batch.ids(
          StepColumns.PARENT_SEQUENCE_ID, managedRows.stream().map(ManagedRow::parent).toList());
    }
    if (managedRows.stream().anyMatch(row -> row.tokenIds() != null)) {
      batch.longs(
          StepColumns.TOKEN_IDS,
          managedRows,
          row -> row.tokenIds() == null ? new long[0] : row.tokenIds());
    }
    if (managedRows.stream().anyMatch(ManagedRow::ends)) {
      batch.bools(StepColumns.END_OF_SEQUENCE, managedRows.stream().map(ManagedRow::ends).toList());
    }
    if (managedRows.stream().anyMatch(row -> row.group() != null)) {
      batch.ids(StepColumns.SEQUENCE_GROUP, managedRows.stream().map(ManagedRow::group).toList());
    }
    return batch.build(rows.size());
  }

  private void common(LayerSpec layer, List<StepRow> rows) {
    ids(StepColumns.SEQUENCE_ID, rows.stream().map(StepRow::sequenceId).toList());
    if (rows.isEmpty() || rows.get(0).layer() != null) {
      text(StepColumns.LAYER, rows, StepRow::layer);
    }
    text(PASSED, rows, r -> "for " + r.sequenceId() + " at " + r.seqLen());
    tensors(StepColumns.QUERY, layer.numHeads(), layer.headSize(), rows, StepRow::query);
    tensors(StepColumns.KEY, layer.numKvHeads(), layer.headSize(), rows, StepRow::key);
    tensors(StepColumns.VALUE, layer.numKvHeads(), layer.headSize(), rows, StepRow::value);
    if (layer.rope() != null) {
      ints(StepColumns.POSITION, rows, StepRow::positions);
    }
  }

  private void seqLens(List<StepRow> rows) {
    column(StepColumns.SEQ_LEN, new ArrowType.Int(32, true), rows.size());
    ArrowBuf lens = add(4L * rows.size());
    for (int i = 0; i < rows.size(); i++) {
      lens.setInt(4L * i, rows.get(i).seqLen());
    }
  }

  /** A column of Longs, or of Strings. */
  private void ids(String name, List<Object> values) {
    if (values.stream().noneMatch(Long.class::isInstance)) {
      text(name, values, value -> (String) value);
      return;
    }
    column(name, new ArrowType.Int(64, true), values.size());
    for (int i = 0; i < values.size(); i++) {
      if (values.get(i) == null) {
        setNull(values.size(), i);
      }
    }
    ArrowBuf ids = add(8L * values.size());
    for (int i = 0; i < values.size(); i++) {
      ids.setLong(8L * i, values.get(i) == null ? 0 : (Long) values.get(i));
    }
  }

  private void bools(String name, List<Boolean> values) {
    column(name, new ArrowType.Bool(), values.size());
    ArrowBuf bits = add((values.size() + 7) / 8);
    bits.setZero(0, bits.capacity());
    for (int i = 0; i < values.size(); i++) {
      if (values.get(i)) {
        bits.setByte(i / 8, bits.getByte(i / 8) | 1 << i % 8);
      }
    }
  }

  private ArrowBatch build(int rows) {
    return ArrowBatch.adopt(
        BatchSchema.of(new Schema(fields)),
        rows,
        lengths.stream().mapToLong(Long::longValue).toArray(),
        IntStream.range(0, lengths.size())
            .mapToLong(node -> nullCounts.getOrDefault(node, 0L))
            .toArray(),
        buffers.toArray(new ArrowBuf[0]),
        0);
  }

  private ArrowBuf add(long bytes) {
    ArrowBuf buffer = bytes == 0 ? allocator.getEmpty() : allocator.buffer(bytes);
    buffer.writerIndex(bytes);
    buffers.add(buffer);
    return buffer;
  }

  private void column(String name, ArrowType type, long length, Field... children) {
    fields.add(new Field(name, FieldType.notNullable(type), List.of(children)));
    lengths.add(length);
    add(0);
  }

  private <R> void text(String name, List<R> rows, Function<R, String> text) {
    column(name, new ArrowType.Utf8(), rows.size());
    List<byte[]> values = new ArrayList<>();
    for (R row : rows) {
      String value = text.apply(row);
      if (value == null) {
        setNull(rows.size(), values.size());
      }
      values.add(value == null ? new byte[0] : value.getBytes(StandardCharsets.UTF_8));
    }
    offsets(rows.size(), i -> values.get(i).length);
    ArrowBuf data = add(values.stream().mapToInt(v -> v.length).sum());
    long at = 0;
    for (byte[] value : values) {
      data.setBytes(at, value);
      at += value.length;
    }
  }

  /** Makes a row of the column that was just begun null. */
  private void setNull(int rows, int row) {
    int node = lengths.size() - 1;
    if (!nullCounts.containsKey(node)) {
      int last = fields.size() - 1;
      Field field = fields.get(last);
      fields.set(last, new Field(field.getName(), FieldType.nullable(field.getType()), null));
      buffers.remove(buffers.size() - 1);
      ArrowBuf validity = add((rows + 7) / 8);
      for (int i = 0; i < rows; i++) {
        validity.setByte(i / 8, 0xff);
      }
    }
    ArrowBuf validity = buffers.get(buffers.size() - 1);
    validity.setByte(row / 8, validity.getByte(row / 8) & ~(1 << row % 8));
    nullCounts.merge(node, 1L, Long::sum);
  }

  private int offsets(int rows, ToIntFunction<Integer> size) {
    ArrowBuf offsets = add(4L * (rows + 1));
    int at = 0;
    for (int i = 0; i < rows; i++) {
      offsets.setInt(4L * i, at);
      at += size.applyAsInt(i);
    }
    offsets.setInt(4L * rows, at);
    return at;
  }

  private void tensors(
      String name, int heads, int size, List<StepRow> rows, Function<StepRow, double[][]> values) {
    fields.add(TensorField.list(name, dtype, heads, size));
    lengths.add((long) rows.size());
    add(0);
    int tokens = offsets(rows.size(), i -> values.apply(rows.get(i)).length);
    lengths.add((long) tokens);
    add(0);
    long elements = (long) tokens * heads * size;
    lengths.add(elements);
    add(0);
    ArrowBuf data = add(elements * dtype.byteWidth());
    long at = 0;
    for (StepRow row : rows) {
      for (double[] token : values.apply(row)) {
        for (double x : token) {
          Numbers.write(data, at++, x, dtype);
        }
      }
    }
  }

  private <R> void longs(String name, List<R> rows, Function<R, long[]> values) {
    long[] items = rows.stream().flatMapToLong(row -> LongStream.of(values.apply(row))).toArray();
    long nulls = LongStream.of(items).filter(item -> item == NULL).count();
    column(
        name,
        new ArrowType.List(),
        rows.size(),
        new Field("item", new FieldType(nulls > 0, new ArrowType.Int(64, true), null), null));
    int count = offsets(rows.size(), i -> values.apply(rows.get(i)).length);
    nullCounts.put(lengths.size(), nulls);
    lengths.add((long) count);
    ArrowBuf validity = add(nulls == 0 ? 0 : (count + 7) / 8);
    validity.setZero(0, validity.capacity());
    ArrowBuf data = add(8L * count);
    for (int i = 0; i < count; i++) {
      data.setLong(8L * i, items[i]);
      if (nulls > 0 && items[i] != NULL) {
        validity.setByte(i / 8, validity.getByte(i / 8) | 1 << i % 8);
      }
    }
  }

  private void ints(String name, List<StepRow> rows, Function<StepRow, int[]> values) {
    column(
        name,
        new ArrowType.List(),
        rows.size(),
        new Field("item", FieldType.notNullable(new ArrowType.Int(32, true)), null));
    long count = offsets(rows.size(), i -> values.apply(rows.get(i)).length);
    lengths.add(count);
    add(0);
    ArrowBuf data = add(4 * count);
    long at = 0;
    for (StepRow row : rows) {
      for (int value : values.apply(row)) {
        data.setInt(4 * at++, value);
      }
    }
  }

  /** The columns {@code names} of {@code batch}, sharing its buffers; the caller closes both. */
  public static ArrowBatch select(ArrowBatch batch, String... names) {
    return batch.select(Arrays.stream(names).mapToInt(batch.schema()::index).toArray());
  }

  /** A column of lists of tensors as [row][token][elements]. */
  public static double[][][] read(ArrowBatch batch, String column) {
    TensorField field =
        TensorField.of(batch.schema().field(batch.schema().index(column))).orElseThrow();
    ArrowColumn lists = batch.column(column);
    ArrowBuf data = lists.child().child().values();
    double[][][] rows = new double[batch.numRows()][][];
    for (int row = 0; row < rows.length; row++) {
      long first = lists.offset(row);
      rows[row] = new double[(int) (lists.offset(row + 1) - first)][field.elements()];
      for (int token = 0; token < rows[row].length; token++) {
        for (int i = 0; i < field.elements(); i++) {
          rows[row][token][i] =
              Numbers.read(data, (first + token) * field.elements() + i, field.dtype());
        }
      }
    }
    return rows;
  }

  /** Largest error of lse, which is float32 whatever the tensors are. */
  public static final double LSE_TOLERANCE = 1e-5;

  /**
   * Largest error of a result: one rounding to its type and, of 16-bit tensors on a GPU, one of the
   * weights.
   */
  public static double tolerance(DType dtype) {
    return switch (dtype) {
      case FLOAT32 -> 1e-5;
      case FLOAT16 -> 0x1p-10;
      case BFLOAT16 -> 0x1p-7;
      case FLOAT8_E4M3FN -> 0x1p-4 + 0x1p-7;
      default -> throw new IllegalArgumentException("no result has type " + dtype);
    };
  }

  /**
   * Largest error over the batch, relative to the largest expected magnitude if that is above 1.
   */
  public static double error(double[][][] expected, double[][][] got) {
    double error = expected.length == got.length ? 0 : Double.POSITIVE_INFINITY;
    double largest = 1;
    for (int row = 0; row < expected.length && Double.isFinite(error); row++) {
      if (expected[row].length != got[row].length) {
        return Double.POSITIVE_INFINITY;
      }
      for (int token = 0; token < expected[row].length; token++) {
        for (int i = 0; i < expected[row][token].length; i++) {
          double e = expected[row][token][i];
          double g = got[row][token][i];
          largest = Math.max(largest, Double.isInfinite(e) ? 1 : Math.abs(e));
          if (e != g) {
            error = Math.max(error, Double.isNaN(g) ? Double.POSITIVE_INFINITY : Math.abs(e - g));
          }
        }
      }
    }
    return error / largest;
  }
}
