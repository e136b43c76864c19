// SPDX-License-Identifier: Apache-2.0
package io.broadhead.job;

import io.broadhead.arrow.ArrowBatch;
import io.broadhead.arrow.ArrowColumn;
import io.broadhead.arrow.DType;
import io.broadhead.arrow.StepColumns;
import io.broadhead.arrow.TensorField;
import io.broadhead.arrow.TypeName;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import org.apache.arrow.memory.ArrowBuf;
import org.apache.arrow.memory.util.Float16;
import org.apache.arrow.vector.types.pojo.ArrowType;

/**
 * Holds results against expected rows. Keeps the expected values on the Java heap until their
 * results have come. Used by one thread: first {@link #expect} for all batches, then {@link
 * #compare}, then {@link #finish}.
 */
final class Comparison {
  private static final String EXPECTED = "expected";

  /** Largest error allowed for results of each type that can be compared. */
  private static final Map<DType, Double> TOLERANCE =
      Map.of(DType.FLOAT32, 1e-5, DType.FLOAT16, 2e-3, DType.BFLOAT16, 1.6e-2);

  private record RowKey(Object sequence, String layer, int nth) {
    @Override
    public String toString() {
      return "sequence "
          + sequence
          + (layer.isEmpty() ? "" : ", layer " + layer)
          + ", its row "
          + nth;
    }
  }

  private record Row(int tokens, float[] values) {}

  private interface RowVisitor {
    void visit(RowKey key, Row row);
  }

  private final Double fixedTolerance;
  private final Map<RowKey, Row> waiting = new HashMap<>();
  private final Map<RowKey, Integer> nextExpected = new HashMap<>();
  private final Map<RowKey, Integer> nextResult = new HashMap<>();
  private final List<String> problems = new ArrayList<>();
  private long rows;
  private long tokens;
  private double worst;
  private double tolerance;
  private DType dtype;

  /**
   * @param tolerance largest error allowed, or null for that of the results' type
   */
  Comparison(Double tolerance) {
    this.fixedTolerance = tolerance;
  }

  /** Adds expected rows. */
  void expect(ArrowBatch batch, String origin) throws WorkFailedException {
    tensor(batch, EXPECTED, origin);
    forEachRow(batch, EXPECTED, nextExpected, waiting::put);
  }

  /** Compares result rows with what is expected. */
  void compare(ArrowBatch batch, String origin) throws WorkFailedException {
    dtype = tensor(batch, StepColumns.OUTPUT, origin).dtype();
    tolerance = fixedTolerance == null ? TOLERANCE.get(dtype) : fixedTolerance;
    forEachRow(batch, StepColumns.OUTPUT, nextResult, this::compareRow);
  }

  private void compareRow(RowKey key, Row result) {
    Row expected = waiting.remove(key);
    rows++;
    tokens += result.tokens;
    if (expected == null) {
      problems.add(key + ": not expected");
      return;
    }
    if (expected.tokens != result.tokens || expected.values.length != result.values.length) {
      problems.add(
          key
              + ": expected "
              + expected.tokens
              + " tokens of "
              + expected.values.length
              + " values in all, got "
              + result.tokens
              + " of "
              + result.values.length);
      return;
    }
    double error = error(expected.values, result.values);
    worst = Math.max(worst, error);
    // Written so that NaN is beyond every tolerance.
    if (!(error <= tolerance)) {
      problems.add(
          String.format(
              Locale.ROOT,
              "%s: expected an error of at most %.2g, got %.2g",
              key,
              tolerance,
              error));
    }
  }

  /** The problems found, rows that never came included. */
  List<String> finish() {
    waiting.keySet().stream().map(key -> key + ": missing").sorted().forEach(problems::add);
    return problems;
  }

  /** Result rows so far. */
  long rows() {
    return rows;
  }

  /** What was compared, as {@code key=value} pairs. */
  String line() {
    return String.format(
        Locale.ROOT,
        "compared: rows=%d tokens=%d worst_error=%.3g tolerance=%.3g dtype=%s problems=%d",
        rows,
        tokens,
        worst,
        tolerance,
        dtype,
        problems.size());
  }

  private static double error(float[] expected, float[] result) {
    double difference = 0;
    double largest = 1;
    for (int i = 0; i < expected.length; i++) {
      double d = expected[i] == result[i] ? 0 : Math.abs((double) expected[i] - result[i]);
      difference = Math.max(difference, d);
      largest = Math.max(largest, Math.abs((double) expected[i]));
    }
    return difference / largest;
  }

  private static TensorField tensor(ArrowBatch batch, String column, String origin)
      throws WorkFailedException {
    for (String needed : List.of(StepColumns.SEQUENCE_ID, column)) {
      if (!batch.schema().contains(needed)) {
        throw new WorkFailedException(
            origin + ", column " + needed + ": expected it, got no such column");
      }
    }
    requireType(batch, StepColumns.SEQUENCE_ID, "int64 or utf8", origin);
    if (batch.schema().contains(StepColumns.LAYER)) {
      requireType(batch, StepColumns.LAYER, "utf8", origin);
    }
    var field = batch.schema().field(batch.schema().index(column));
    return TensorField.of(field)
        .filter(tensor -> TOLERANCE.containsKey(tensor.dtype()))
        .orElseThrow(
            () ->
                new WorkFailedException(
                    origin
                        + ", column "
                        + column
                        + ": expected a list of float32, float16 or bfloat16 tensors, got "
                        + TypeName.of(field)));
  }

  private static void requireType(ArrowBatch batch, String column, String types, String origin)
      throws WorkFailedException {
    String type = TypeName.of(batch.schema().field(batch.schema().index(column)));
    if (!List.of(types.split(" or ")).contains(type)) {
      throw new WorkFailedException(
          origin + ", column " + column + ": expected " + types + ", got " + type);
    }
  }

  private static void forEachRow(
      ArrowBatch batch, String column, Map<RowKey, Integer> next, RowVisitor visitor) {
    var schema = batch.schema();
    ArrowColumn ids = batch.column(StepColumns.SEQUENCE_ID);
    boolean text =
        schema.field(schema.index(StepColumns.SEQUENCE_ID)).getType() instanceof ArrowType.Utf8;
    ArrowColumn layers =
        schema.contains(StepColumns.LAYER) ? batch.column(StepColumns.LAYER) : null;
    TensorField tensor = TensorField.of(schema.field(schema.index(column))).orElseThrow();
    ArrowColumn lists = batch.column(column);
    ArrowBuf values = lists.child().child().values();
    for (int row = 0; row < batch.numRows(); row++) {
      Object id = text ? ids.getString(row) : (Object) ids.getLong(row);
      RowKey pair = new RowKey(id, layers == null ? "" : layers.getString(row), 0);
      int nth = next.merge(pair, 1, Integer::sum) - 1;
      int count = Math.toIntExact(lists.listSize(row));
      float[] decoded = new float[Math.multiplyExact(count, tensor.elements())];
      long first = count == 0 ? 0 : lists.offset(row) * tensor.elements();
      for (int i = 0; i < decoded.length; i++) {
        decoded[i] = element(values, tensor.dtype(), first + i);
      }
      visitor.visit(new RowKey(id, pair.layer, nth), new Row(count, decoded));
    }
  }

  private static float element(ArrowBuf values, DType dtype, long index) {
    return switch (dtype) {
      case FLOAT32 -> values.getFloat(index * 4);
      case FLOAT16 -> Float16.toFloat(values.getShort(index * 2));
      case BFLOAT16 -> Float.intBitsToFloat(values.getShort(index * 2) << 16);
      case FLOAT8_E4M3FN, FLOAT8_E5M2 -> throw new IllegalArgumentException(dtype.label());
    };
  }
}
