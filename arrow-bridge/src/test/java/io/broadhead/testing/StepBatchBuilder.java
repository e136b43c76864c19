// SPDX-License-Identifier: Apache-2.0
package io.broadhead.testing;

import io.broadhead.arrow.ArrowBatch;
import io.broadhead.arrow.DType;
import io.broadhead.arrow.StepColumns;
import io.broadhead.arrow.TensorField;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.List;
import java.util.function.IntFunction;
import org.apache.arrow.memory.ArrowBuf;
import org.apache.arrow.memory.BufferAllocator;
import org.apache.arrow.memory.util.Float16;
import org.apache.arrow.vector.BigIntVector;
import org.apache.arrow.vector.BitVector;
import org.apache.arrow.vector.FieldVector;
import org.apache.arrow.vector.IntVector;
import org.apache.arrow.vector.VarCharVector;
import org.apache.arrow.vector.VectorSchemaRoot;
import org.apache.arrow.vector.complex.FixedSizeListVector;
import org.apache.arrow.vector.complex.ListVector;
import org.apache.arrow.vector.types.pojo.ArrowType;
import org.apache.arrow.vector.types.pojo.Field;
import org.apache.arrow.vector.types.pojo.FieldType;

/**
 * Builds step batches from Java arrays, one column after the other. A tensor column takes one float
 * array a row, with as many elements as the row's tensors have together.
 */
public final class StepBatchBuilder {
  private final BufferAllocator allocator;
  private final int rows;
  private final List<FieldVector> vectors = new ArrayList<>();

  public StepBatchBuilder(BufferAllocator allocator, int rows) {
    this.allocator = allocator;
    this.rows = rows;
  }

  /** A utf8 column without nulls. */
  public StepBatchBuilder utf8(String name, IntFunction<String> values) {
    VarCharVector vector =
        (VarCharVector) add(new Field(name, FieldType.notNullable(ArrowType.Utf8.INSTANCE), null));
    for (int row = 0; row < rows; row++) {
      vector.setSafe(row, values.apply(row).getBytes(StandardCharsets.UTF_8));
    }
    vector.setValueCount(rows);
    return this;
  }

  /** An int64 column; a null value is a null. */
  public StepBatchBuilder int64(String name, IntFunction<Long> values) {
    BigIntVector vector =
        (BigIntVector) add(new Field(name, FieldType.nullable(new ArrowType.Int(64, true)), null));
    vector.allocateNew(rows);
    for (int row = 0; row < rows; row++) {
      if (values.apply(row) == null) {
        vector.setNull(row);
      } else {
        vector.set(row, values.apply(row));
      }
    }
    vector.setValueCount(rows);
    return this;
  }

  /** An int32 column without nulls. */
  public StepBatchBuilder int32(String name, int... values) {
    IntVector vector =
        (IntVector) add(new Field(name, FieldType.notNullable(new ArrowType.Int(32, true)), null));
    vector.allocateNew(rows);
    for (int row = 0; row < rows; row++) {
      vector.set(row, values[row]);
    }
    vector.setValueCount(rows);
    return this;
  }

  /** A bool column without nulls. */
  public StepBatchBuilder bool(String name, IntFunction<Boolean> values) {
    BitVector vector =
        (BitVector) add(new Field(name, FieldType.notNullable(ArrowType.Bool.INSTANCE), null));
    vector.allocateNew(rows);
    for (int row = 0; row < rows; row++) {
      vector.set(row, values.apply(row) ? 1 : 0);
    }
    vector.setValueCount(rows);
    return this;
  }

  /** A {@code list<int32>} column ({@code block_table}, {@code position}). */
  public StepBatchBuilder int32List(String name, int[]... values) {
    ListVector list = list(name, 32);
    IntVector elements = (IntVector) list.getDataVector();
    int at = 0;
    for (int row = 0; row < rows; row++) {
      list.startNewValue(row);
      for (int value : values[row]) {
        elements.setSafe(at++, value);
      }
      list.endValue(row, values[row].length);
    }
    elements.setValueCount(at);
    list.setValueCount(rows);
    return this;
  }

  /** A {@code list<int64>} column ({@code slot_mapping}). */
  public StepBatchBuilder int64List(String name, long[]... values) {
    ListVector list = list(name, 64);
    BigIntVector elements = (BigIntVector) list.getDataVector();
    int at = 0;
    for (int row = 0; row < rows; row++) {
      list.startNewValue(row);
      for (long value : values[row]) {
        elements.setSafe(at++, value);
      }
      list.endValue(row, values[row].length);
    }
    elements.setValueCount(at);
    list.setValueCount(rows);
    return this;
  }

  private ListVector list(String name, int bits) {
    Field element = new Field("item", FieldType.notNullable(new ArrowType.Int(bits, true)), null);
    ListVector list =
        (ListVector)
            add(new Field(name, FieldType.notNullable(new ArrowType.List()), List.of(element)));
    list.allocateNew();
    return list;
  }

  /** A {@code list<tensor[shape]>} column. */
  public StepBatchBuilder tensors(String name, DType dtype, int[] shape, float[]... values) {
    return tensors(TensorField.list(name, dtype, shape), values);
  }

  /** A column of the tensor field {@code field}. */
  public StepBatchBuilder tensors(Field field, float[]... values) {
    TensorField tensor = TensorField.of(field).orElseThrow();
    ListVector list = (ListVector) add(field);
    FixedSizeListVector tensors = (FixedSizeListVector) list.getDataVector();
    FieldVector elements = tensors.getDataVector();
    int total = 0;
    for (float[] row : values) {
      total += row.length;
    }
    int tensorCount = total / tensor.elements();
    elements.setInitialCapacity(Math.max(1, total));
    elements.allocateNew();
    tensors.setInitialCapacity(Math.max(1, tensorCount));
    list.setInitialCapacity(rows);
    // allocateNew on a parent would allocate its children again.
    elements.setValueCount(total);
    ArrowBuf data = elements.getDataBuffer();
    ArrowBuf offsets = allocator.buffer((rows + 1L) * Integer.BYTES);
    int at = 0;
    offsets.setInt(0, 0);
    for (int row = 0; row < rows; row++) {
      for (float value : values[row]) {
        put(data, at++, tensor.dtype(), value);
      }
      offsets.setInt(4L * (row + 1), at / tensor.elements());
    }
    if (elements.getValidityBuffer().capacity() > 0) {
      elements.getValidityBuffer().setOne(0, elements.getValidityBuffer().capacity());
    }
    load(list, tensors, elements, offsets, total, tensorCount);
    return this;
  }

  private void load(
      ListVector list,
      FixedSizeListVector tensors,
      FieldVector elements,
      ArrowBuf offsets,
      int total,
      int tensorCount) {
    elements.setValueCount(total);
    try (ArrowBuf validity = allocator.buffer(Math.max(8, (tensorCount + 7) / 8));
        ArrowBuf listValidity = allocator.buffer(Math.max(8, (rows + 7) / 8));
        offsets) {
      validity.setOne(0, validity.capacity());
      listValidity.setOne(0, listValidity.capacity());
      tensors.loadFieldBuffers(
          new org.apache.arrow.vector.ipc.message.ArrowFieldNode(tensorCount, 0),
          List.of(validity));
      list.loadFieldBuffers(
          new org.apache.arrow.vector.ipc.message.ArrowFieldNode(rows, 0),
          List.of(listValidity, offsets));
    }
  }

  private static void put(ArrowBuf data, long index, DType dtype, float value) {
    switch (dtype) {
      case FLOAT32 -> data.setFloat(index * 4, value);
      case FLOAT16 -> data.setShort(index * 2, Float16.toFloat16(value));
      case BFLOAT16 -> data.setShort(index * 2, bfloat16(value));
      default -> throw new IllegalArgumentException("tensors of " + dtype + " are not built here");
    }
  }

  /** {@code value} as bfloat16, rounded to nearest even. */
  public static short bfloat16(float value) {
    int bits = Float.floatToRawIntBits(value);
    return (short) (bits + 0x7fff + (bits >> 16 & 1) >>> 16);
  }

  /** Element {@code index} of a buffer of {@code dtype}. */
  public static float element(ArrowBuf data, long index, DType dtype) {
    return switch (dtype) {
      case FLOAT32 -> data.getFloat(index * 4);
      case FLOAT16 -> Float16.toFloat(data.getShort(index * 2));
      case BFLOAT16 -> Float.intBitsToFloat(data.getShort(index * 2) << 16);
      default -> throw new IllegalArgumentException("elements of " + dtype + " are not read here");
    };
  }

  private FieldVector add(Field field) {
    FieldVector vector = field.createVector(allocator);
    vectors.add(vector);
    return vector;
  }

  /** Adds a vector that the caller filled; it belongs to the builder from now on. */
  public StepBatchBuilder vector(FieldVector vector) {
    vectors.add(vector);
    return this;
  }

  /** The root, which the caller closes. */
  public VectorSchemaRoot root() {
    VectorSchemaRoot root = new VectorSchemaRoot(vectors);
    root.setRowCount(rows);
    return root;
  }

  /** The batch, which the caller closes. */
  public ArrowBatch build() {
    try (VectorSchemaRoot root = root()) {
      return ArrowBatch.of(root);
    }
  }

  /**
   * A decoder step of {@code rows} sequences that each bring {@code newTokens} tokens and have
   * {@code seqLen} behind the step, with blocks given out one sequence after the other.
   */
  public static StepBatchBuilder decoderStep(
      BufferAllocator allocator,
      int rows,
      int newTokens,
      int seqLen,
      int numHeads,
      int numKvHeads,
      int headSize,
      int blockSize,
      DType dtype) {
    int blocks = (seqLen + blockSize - 1) / blockSize;
    int[] lengths = new int[rows];
    int[][] tables = new int[rows][blocks];
    long[][] slots = new long[rows][newTokens];
    float[][] query = new float[rows][newTokens * numHeads * headSize];
    float[][] key = new float[rows][newTokens * numKvHeads * headSize];
    float[][] value = new float[rows][newTokens * numKvHeads * headSize];
    java.util.Random random = new java.util.Random(7);
    for (int row = 0; row < rows; row++) {
      lengths[row] = seqLen;
      for (int block = 0; block < blocks; block++) {
        tables[row][block] = row * blocks + block;
      }
      for (int token = 0; token < newTokens; token++) {
        int position = seqLen - newTokens + token;
        slots[row][token] =
            (long) tables[row][position / blockSize] * blockSize + position % blockSize;
      }
      for (float[] values : List.of(query[row], key[row], value[row])) {
        for (int i = 0; i < values.length; i++) {
          values[i] = random.nextFloat() * 2 - 1;
        }
      }
    }
    return new StepBatchBuilder(allocator, rows)
        .int64(StepColumns.SEQUENCE_ID, row -> (long) row)
        .utf8(StepColumns.LAYER, row -> "layer0")
        .tensors(StepColumns.QUERY, dtype, new int[] {numHeads, headSize}, query)
        .tensors(StepColumns.KEY, dtype, new int[] {numKvHeads, headSize}, key)
        .tensors(StepColumns.VALUE, dtype, new int[] {numKvHeads, headSize}, value)
        .int32(StepColumns.SEQ_LEN, lengths)
        .int64List(StepColumns.SLOT_MAPPING, slots)
        .int32List(StepColumns.BLOCK_TABLE, tables);
  }
}
