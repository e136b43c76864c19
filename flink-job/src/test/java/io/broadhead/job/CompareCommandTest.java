// SPDX-License-Identifier: Apache-2.0
package io.broadhead.job;

import static org.assertj.core.api.Assertions.assertThat;

import io.broadhead.arrow.Allocators;
import io.broadhead.arrow.ArrowBatch;
import io.broadhead.arrow.ArrowBatchFileWriter;
import io.broadhead.arrow.Compression;
import io.broadhead.arrow.DType;
import io.broadhead.arrow.TensorField;
import java.io.IOException;
import java.io.PrintWriter;
import java.io.StringWriter;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import org.apache.arrow.memory.BufferAllocator;
import org.apache.arrow.memory.util.Float16;
import org.apache.arrow.vector.BigIntVector;
import org.apache.arrow.vector.FieldVector;
import org.apache.arrow.vector.VarCharVector;
import org.apache.arrow.vector.VectorSchemaRoot;
import org.apache.arrow.vector.complex.FixedSizeListVector;
import org.apache.arrow.vector.complex.ListVector;
import org.apache.arrow.vector.types.pojo.ArrowType;
import org.apache.arrow.vector.types.pojo.Field;
import org.apache.arrow.vector.types.pojo.FieldType;
import org.apache.arrow.vector.types.pojo.Schema;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.EnumSource;

class CompareCommandTest {
  /** One row: tokens of two values each. */
  private record Row(long sequence, String layer, float... values) {}

  private static final int WIDTH = 2;

  @TempDir Path temp;
  private Path expected;
  private Path result;
  private String printed;

  @BeforeEach
  void paths() {
    expected = temp.resolve("expected.arrow");
    result = temp.resolve("result.arrow");
  }

  @ParameterizedTest
  @EnumSource(names = {"FLOAT32", "FLOAT16", "BFLOAT16"})
  void equalRowsInAnyOrderOfSequences(DType dtype) throws IOException {
    write(expected, "expected", dtype, new Row(1, "a", 1, 2), new Row(2, "a", 3, 4, 5, 6));
    write(result, "output", dtype, new Row(2, "a", 3, 4, 5, 6), new Row(1, "a", 1, 2));

    assertThat(compare()).isZero();
    assertThat(printed).contains("rows=2 tokens=3 worst_error=0.00").contains("problems=0");
  }

  @Test
  void rowsOfOneSequenceKeepTheirOrder() throws IOException {
    write(expected, "expected", DType.FLOAT32, new Row(1, "a", 1, 2), new Row(1, "a", 3, 4));
    write(result, "output", DType.FLOAT32, new Row(1, "a", 3, 4), new Row(1, "a", 1, 2));

    assertThat(compare()).isEqualTo(Main.FAILED);
    assertThat(printed).contains("sequence 1, layer a, its row 0: expected an error of at most");
  }

  @Test
  void errorIsRelativeToTheLargestExpectedValue() throws IOException {
    write(expected, "expected", DType.FLOAT32, new Row(1, "a", 100, 0));
    write(result, "output", DType.FLOAT32, new Row(1, "a", 100, 0.125f));

    assertThat(compare()).isEqualTo(Main.FAILED);
    assertThat(printed).contains("worst_error=0.00125").contains("got 0.0013");
    assertThat(compare("--tolerance", "0.002")).isZero();
  }

  @Test
  void notANumberIsNeverRight() throws IOException {
    write(expected, "expected", DType.FLOAT32, new Row(1, "a", 1, 2));
    write(result, "output", DType.FLOAT32, new Row(1, "a", 1, Float.NaN));

    assertThat(compare("--tolerance", "1e9")).isEqualTo(Main.FAILED);
  }

  @Test
  void missingAndSurplusAndMisshapenRowsAreNamed() throws IOException {
    write(expected, "expected", DType.FLOAT32, new Row(1, "a", 1, 2), new Row(2, "a", 1, 2));
    write(result, "output", DType.FLOAT32, new Row(1, "a", 1, 2, 3, 4), new Row(1, "b", 1, 2));

    assertThat(compare()).isEqualTo(Main.FAILED);
    assertThat(printed)
        .contains("problems=3")
        .contains("layer a, its row 0: expected 1 tokens of 2 values in all, got 2 of 4")
        .contains("sequence 1, layer b, its row 0: not expected")
        .contains("sequence 2, layer a, its row 0: missing");
  }

  @Test
  void readsFoldersWithSubFolders() throws IOException {
    Path folder = Files.createDirectories(temp.resolve("results/a"));
    write(expected, "expected", DType.FLOAT32, new Row(1, "a", 1, 2), new Row(1, "a", 3, 4));
    write(folder.resolve("1.arrow"), "output", DType.FLOAT32, new Row(1, "a", 1, 2));
    write(folder.resolve("2.arrow"), "output", DType.FLOAT32, new Row(1, "a", 3, 4));
    Files.writeString(folder.resolve(".3.arrow.inprogress"), "not Arrow");
    result = temp.resolve("results");

    assertThat(compare()).isZero();
    assertThat(printed).contains("rows=2");
  }

  /** A sink numbers schemas as they come, and anew when the job was restarted. */
  @Test
  void filesAreReadInTheOrderOfTheirNamesInWhicheverFoldersTheyAre() throws IOException {
    result = temp.resolve("results");
    Path other = Files.createDirectories(result.resolve("schema-02"));
    Row[] rows = {new Row(1, "a", 1, 2), new Row(1, "a", 3, 4), new Row(1, "a", 5, 6)};
    write(expected, "expected", DType.FLOAT32, rows);
    write(result.resolve("results-1.arrow"), "output", DType.FLOAT16, rows[0]);
    write(other.resolve("results-2.arrow"), "output", DType.FLOAT32, rows[1]);
    write(result.resolve("results-3.arrow"), "output", DType.FLOAT32, rows[2]);

    assertThat(compare()).isZero();
    assertThat(printed).contains("rows=3");
  }

  @Test
  void aWrongFileIsExplained() throws IOException {
    write(expected, "expected", DType.FLOAT32, new Row(1, "a", 1, 2));
    write(result, "something", DType.FLOAT32, new Row(1, "a", 1, 2));

    assertThat(compare()).isEqualTo(Main.FAILED);
    assertThat(printed)
        .contains("result.arrow, batch 0, column output: expected it, got no such column");
  }

  @Test
  void aResultWithoutRowsIsExplained() throws IOException {
    write(expected, "expected", DType.FLOAT32, new Row(1, "a", 1, 2));
    result = Files.createDirectory(temp.resolve("none"));

    assertThat(compare()).isEqualTo(Main.FAILED);
    assertThat(printed.strip()).endsWith("none: expected result rows, got none");
  }

  private int compare(String... options) {
    StringWriter text = new StringWriter();
    PrintWriter writer = new PrintWriter(text, true);
    String[] args = new String[3 + options.length];
    args[0] = "compare";
    args[1] = expected.toString();
    args[2] = result.toString();
    System.arraycopy(options, 0, args, 3, options.length);
    int code = Main.execute(writer, writer, args);
    printed = text.toString();
    return code;
  }

  private static void write(Path file, String column, DType dtype, Row... rows) throws IOException {
    Field id = new Field("sequence_id", FieldType.notNullable(new ArrowType.Int(64, true)), null);
    Field layer = new Field("layer", FieldType.notNullable(new ArrowType.Utf8()), null);
    Schema schema = new Schema(List.of(id, layer, TensorField.list(column, dtype, 1, WIDTH)));
    try (BufferAllocator allocator = Allocators.root();
        VectorSchemaRoot root = VectorSchemaRoot.create(schema, allocator)) {
      root.allocateNew();
      ListVector lists = (ListVector) root.getVector(column);
      FixedSizeListVector tensors = (FixedSizeListVector) lists.getDataVector();
      FieldVector elements = tensors.getDataVector();
      int tensor = 0;
      for (int row = 0; row < rows.length; row++) {
        ((BigIntVector) root.getVector("sequence_id")).setSafe(row, rows[row].sequence);
        ((VarCharVector) root.getVector("layer"))
            .setSafe(row, rows[row].layer.getBytes(StandardCharsets.UTF_8));
        int tokens = rows[row].values.length / WIDTH;
        lists.startNewValue(row);
        for (int i = 0; i < rows[row].values.length; i++) {
          int at = tensor * WIDTH + i;
          while (elements.getValueCapacity() <= at) {
            elements.reAlloc();
          }
          put(elements, dtype, at, rows[row].values[i]);
        }
        for (int i = 0; i < tokens; i++) {
          tensors.setNotNull(tensor++);
        }
        lists.endValue(row, tokens);
      }
      root.setRowCount(rows.length);
      try (ArrowBatch batch = ArrowBatch.of(root);
          ArrowBatchFileWriter writer =
              ArrowBatchFileWriter.create(file, Compression.NONE, allocator)) {
        writer.write(batch);
        writer.finish();
      }
    }
  }

  private static void put(FieldVector elements, DType dtype, int at, float value) {
    switch (dtype) {
      case FLOAT32 -> elements.getDataBuffer().setFloat(at * 4L, value);
      case FLOAT16 -> elements.getDataBuffer().setShort(at * 2L, Float16.toFloat16(value));
      default -> elements.getDataBuffer().setShort(at * 2L, Float.floatToIntBits(value) >> 16);
    }
    org.apache.arrow.vector.BitVectorHelper.setBit(elements.getValidityBuffer(), at);
  }
}
