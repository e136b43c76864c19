// SPDX-License-Identifier: Apache-2.0
package io.broadhead.kernel;

import io.broadhead.arrow.Allocators;
import io.broadhead.arrow.ArrowBatch;
import io.broadhead.arrow.ArrowColumn;
import io.broadhead.arrow.BatchSchema;
import io.broadhead.arrow.DType;
import io.broadhead.arrow.StepColumns;
import io.broadhead.arrow.TensorField;
import io.broadhead.arrow.TypeName;
import io.broadhead.nativelib.bh_partial;
import io.broadhead.nativelib.global.broadhead;
import java.lang.ref.Reference;
import java.util.ArrayList;
import java.util.List;
import org.apache.arrow.memory.ArrowBuf;
import org.apache.arrow.memory.BufferAllocator;
import org.apache.arrow.memory.util.ByteFunctionHelpers;
import org.apache.arrow.vector.types.pojo.ArrowType;
import org.apache.arrow.vector.types.pojo.Field;
import org.bytedeco.javacpp.FloatPointer;

/**
 * Joins result batches that attended to disjoint parts of the keys into the result over all of
 * them, by the {@code lse} column that a layer with {@code return_lse} adds.
 *
 * <p>The kernels read the parts where they are and write into one fresh allocation; every other
 * column of the result shares the buffers of the first part. Holds nothing that needs closing; the
 * engine stays its owner's. Used by one thread at a time.
 */
public final class ResultMerger {
  private static final List<DType> MERGEABLE =
      List.of(DType.FLOAT32, DType.FLOAT16, DType.BFLOAT16);

  private final KernelEngine engine;
  private final BufferAllocator allocator;

  /** Results are allocated from {@code allocator}, which must outlive them. */
  public ResultMerger(KernelEngine engine, BufferAllocator allocator) {
    this.engine = engine;
    this.allocator = allocator;
  }

  /** One part with the columns that are joined. */
  private static final class Part {
    final int number;
    final ArrowBatch batch;
    final TensorField output;
    final int numHeads;
    final ArrowColumn outputs;
    final ArrowColumn lses;

    Part(int number, ArrowBatch batch) {
      this.number = number;
      this.batch = batch;
      Field outputField = field(StepColumns.OUTPUT);
      Field lseField = field(StepColumns.LSE);
      this.output =
          TensorField.of(outputField)
              .orElseThrow(
                  () ->
                      mismatch(
                          StepColumns.OUTPUT,
                          "list<tensor[num_heads, head_size]>",
                          TypeName.of(outputField)));
      TensorField lse =
          TensorField.of(lseField)
              .filter(tensor -> tensor.dtype() == DType.FLOAT32)
              .orElseThrow(
                  () ->
                      mismatch(
                          StepColumns.LSE,
                          "list<fixed_size_list<float32>[num_heads]>",
                          TypeName.of(lseField)));
      if (!MERGEABLE.contains(output.dtype())) {
        throw mismatch(
            StepColumns.OUTPUT,
            "float32, float16 or bfloat16 (a quantised output has lost what the sum needs: leave"
                + " output_scale out of the layers of partial results)",
            output.dtype().label());
      }
      this.numHeads = lse.elements();
      if (numHeads < 1
          || output.elements() % numHeads != 0
          || output.shape().size() > 1 && output.shape().get(0) != numHeads) {
        throw mismatch(
            StepColumns.OUTPUT, "tensors of " + numHeads + " heads, as lse has", output.toString());
      }
      this.outputs = batch.column(StepColumns.OUTPUT);
      this.lses = batch.column(StepColumns.LSE);
      requireNoNulls(StepColumns.OUTPUT, outputs);
      requireNoNulls(StepColumns.LSE, lses);
    }

    private Field field(String name) {
      int column = batch.schema().index(name);
      if (column < 0) {
        throw mismatch(
            name,
            name.equals(StepColumns.LSE) ? "it (the layer's return_lse adds it)" : "it",
            "no such column");
      }
      return batch.schema().field(column);
    }

    private void requireNoNulls(String name, ArrowColumn column) {
      long nulls =
          column.nullCount() + column.child().nullCount() + column.child().child().nullCount();
      if (nulls > 0) {
        throw mismatch(name, "no nulls", nulls);
      }
    }

    KernelException mismatch(String column, Object expected, Object got) {
      return failure(ErrorCode.SCHEMA_MISMATCH, -1, column, expected, got);
    }

    KernelException badRow(long row, String column, Object expected, Object got) {
      return failure(ErrorCode.INVALID_ROW, row, column, expected, got);
    }

    private KernelException failure(
        ErrorCode code, long row, String column, Object expected, Object got) {
      return new KernelException(
          code,
          row,
          "part "
              + number
              + (row < 0 ? "" : ", row " + row)
              + ", column "
              + column
              + ": expected "
              + expected
              + ", got "
              + got);
    }

    int rows() {
      return batch.numRows();
    }

    long tokens() {
      return rows() == 0 ? 0 : outputs.offset(rows()) - outputs.offset(0);
    }

    /** Address of the first tensor that a row has. */
    static long address(ArrowColumn lists, int rows, long tensorBytes) {
      long first = rows == 0 ? 0 : lists.offset(0);
      return lists.child().child().values().memoryAddress() + first * tensorBytes;
    }
  }

  /**
   * The result over the keys of all {@code parts}: {@code output} is the sum of the parts' outputs
   * weighted by e^lse, {@code lse} the logarithm of the sum of e^lse. Where no part saw a key the
   * output is zero and the lse is -inf; a part's +inf means that too. The parts stay the caller's,
   * who closes the result.
   *
   * @param parts result batches with the same sequences, layers and tokens, row by row
   * @throws KernelException naming part, row and column that do not fit
   */
  public ArrowBatch merge(List<ArrowBatch> parts) {
    if (parts.isEmpty()) {
      throw new IllegalArgumentException("merge: expected at least one part, got none");
    }
    List<Part> checked = new ArrayList<>(parts.size());
    for (ArrowBatch batch : parts) {
      checked.add(new Part(checked.size() + 1, batch));
    }
    Part first = checked.get(0);
    for (Part part : checked) {
      requireSameShape(first, part);
      requireSameRows(first, part);
    }
    engine.enter();
    try {
      return join(checked);
    } finally {
      engine.exit();
      Reference.reachabilityFence(parts);
    }
  }

  private static void requireSameShape(Part first, Part part) {
    if (part.rows() != first.rows()) {
      throw new KernelException(
          ErrorCode.SCHEMA_MISMATCH,
          -1,
          "part "
              + part.number
              + ": expected "
              + first.rows()
              + " rows, as part 1 has, got "
              + part.rows());
    }
    if (part.output.dtype() != first.output.dtype()
        || part.output.elements() != first.output.elements()
        || part.numHeads != first.numHeads) {
      throw part.mismatch(StepColumns.OUTPUT, describe(first) + ", as part 1 has", describe(part));
    }
  }

  private static String describe(Part part) {
    return "list<tensor["
        + part.numHeads
        + ", "
        + part.output.elements() / part.numHeads
        + "]<"
        + part.output.dtype()
        + ">>";
  }

  private static void requireSameRows(Part first, Part part) {
    for (int row = 0; row < first.rows(); row++) {
      long expected = first.outputs.listSize(row);
      if (part.outputs.listSize(row) != expected) {
        throw part.badRow(
            row,
            StepColumns.OUTPUT,
            expected + " tokens, as part 1 has",
            part.outputs.listSize(row));
      }
      if (part.lses.listSize(row) != expected) {
        throw part.badRow(
            row, StepColumns.LSE, expected + " tokens, as output has", part.lses.listSize(row));
      }
    }
    if (part != first) {
      requireSameValues(first, part, StepColumns.SEQUENCE_ID, true);
      requireSameValues(first, part, StepColumns.LAYER, false);
    }
  }

  private static void requireSameValues(Part first, Part part, String name, boolean required) {
    int expectedColumn = first.batch.schema().index(name);
    int gotColumn = part.batch.schema().index(name);
    if (!required && expectedColumn < 0 && gotColumn < 0) {
      return;
    }
    Field expectedField = expectedColumn < 0 ? null : first.batch.schema().field(expectedColumn);
    Field gotField = gotColumn < 0 ? null : part.batch.schema().field(gotColumn);
    if (expectedField == null
        || gotField == null
        || !expectedField.getType().equals(gotField.getType())
        || !comparable(gotField.getType())) {
      throw part.mismatch(
          name,
          (expectedField == null ? "no such column" : expectedType(expectedField))
              + ", as part 1 has",
          gotField == null ? "no such column" : TypeName.of(gotField));
    }
    ArrowColumn expected = first.batch.column(name);
    ArrowColumn got = part.batch.column(name);
    boolean text = gotField.getType() instanceof ArrowType.Utf8;
    ArrowBuf expectedText = text ? textOf(first.batch, expectedColumn) : null;
    ArrowBuf gotText = text ? textOf(part.batch, gotColumn) : null;
    for (int row = 0; row < first.rows(); row++) {
      boolean same =
          expected.isNull(row) == got.isNull(row)
              && (text
                  ? ByteFunctionHelpers.equal(
                          expectedText,
                          expected.offset(row),
                          expected.offset(row + 1),
                          gotText,
                          got.offset(row),
                          got.offset(row + 1))
                      != 0
                  : expected.getLong(row) == got.getLong(row));
      if (!same) {
        throw part.badRow(
            row, name, value(expected, row, text) + ", as part 1 has", value(got, row, text));
      }
    }
  }

  private static boolean comparable(ArrowType type) {
    return type instanceof ArrowType.Utf8 || type.equals(new ArrowType.Int(64, true));
  }

  private static String expectedType(Field field) {
    return comparable(field.getType()) ? TypeName.of(field) : "int64 or utf8";
  }

  private static ArrowBuf textOf(ArrowBatch batch, int column) {
    return batch.buffer(batch.schema().firstBuffer(column) + 2);
  }

  private static String value(ArrowColumn column, int row, boolean text) {
    if (column.isNull(row)) {
      return "null";
    }
    return text ? "'" + column.getString(row) + "'" : Long.toString(column.getLong(row));
  }

  private ArrowBatch join(List<Part> parts) {
    Part first = parts.get(0);
    int rows = first.rows();
    long tokens = first.tokens();
    long offsetBytes = (rows + 1L) * Integer.BYTES;
    long valueBytes = Math.multiplyExact(tokens, first.output.tensorBytes());
    long lseTensorBytes = (long) first.numHeads * Float.BYTES;
    long valuesAt = Allocators.roundUp(offsetBytes);
    long lsesAt = valuesAt + Allocators.roundUp(valueBytes);
    ArrowBuf memory = allocator.buffer(lsesAt + tokens * lseTensorBytes);
    boolean done = false;
    try (bh_partial partials = new bh_partial(parts.size())) {
      for (Part part : parts) {
        partials
            .position(part.number - 1L)
            .output(new Address(Part.address(part.outputs, rows, part.output.tensorBytes())))
            .lse(new FloatPointer(new Address(Part.address(part.lses, rows, lseTensorBytes))));
      }
      partials.position(0);
      long base = memory.memoryAddress();
      NativeErrors.check(
          error ->
              broadhead.bh_merge(
                  engine.handle(),
                  partials,
                  parts.size(),
                  first.output.dtype().code(),
                  tokens,
                  first.numHeads,
                  first.output.elements() / first.numHeads,
                  new Address(base + valuesAt),
                  new FloatPointer(new Address(base + lsesAt)),
                  error));
      for (int row = 0; row < rows; row++) {
        long offset = first.outputs.offset(row) - first.outputs.offset(0);
        memory.setInt((long) row * Integer.BYTES, (int) offset);
      }
      memory.setInt((long) rows * Integer.BYTES, (int) tokens);
      ArrowBatch result =
          assemble(
              first,
              memory.slice(0, offsetBytes),
              memory.slice(valuesAt, valueBytes),
              memory.slice(lsesAt, tokens * lseTensorBytes));
      done = true;
      return result;
    } finally {
      if (!done) {
        memory.close();
      }
    }
  }

  /** The first part with other {@code output} and {@code lse}, which share their offsets. */
  private ArrowBatch assemble(Part first, ArrowBuf offsets, ArrowBuf values, ArrowBuf lses) {
    BatchSchema schema = first.batch.schema();
    long[] lengths = new long[schema.nodeCount()];
    long[] nullCounts = new long[lengths.length];
    ArrowBuf[] buffers = new ArrowBuf[schema.bufferCount()];
    int output = schema.index(StepColumns.OUTPUT);
    int lse = schema.index(StepColumns.LSE);
    for (int column = 0; column < schema.columnCount(); column++) {
      int node = schema.firstNode(column);
      int buffer = schema.firstBuffer(column);
      if (column == output || column == lse) {
        int elements = column == output ? first.output.elements() : first.numHeads;
        lengths[node] = first.rows();
        lengths[node + 1] = first.tokens();
        lengths[node + 2] = first.tokens() * elements;
        buffers[buffer] = allocator.getEmpty();
        buffers[buffer + 1] = offsets;
        buffers[buffer + 2] = allocator.getEmpty();
        buffers[buffer + 3] = allocator.getEmpty();
        buffers[buffer + 4] = column == output ? values : lses;
        continue;
      }
      for (; node < schema.firstNode(column + 1); node++) {
        lengths[node] = first.batch.nodeLength(node);
        nullCounts[node] = first.batch.nullCount(node);
      }
      for (; buffer < schema.firstBuffer(column + 1); buffer++) {
        buffers[buffer] = first.batch.buffer(buffer);
        buffers[buffer].getReferenceManager().retain();
      }
    }
    // The allocation's own reference and three more: four buffers of the batch are slices of it.
    offsets.getReferenceManager().retain(3);
    return ArrowBatch.adopt(schema, first.rows(), lengths, nullCounts, buffers, 0);
  }
}
