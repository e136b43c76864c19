// SPDX-License-Identifier: Apache-2.0
package io.broadhead.job;

import static org.assertj.core.api.Assertions.assertThat;

import io.broadhead.arrow.Allocators;
import io.broadhead.arrow.ArrowBatch;
import io.broadhead.arrow.ArrowColumn;
import io.broadhead.arrow.DType;
import io.broadhead.arrow.StepInput;
import io.broadhead.arrow.TensorField;
import java.io.IOException;
import java.io.UncheckedIOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.stream.Stream;
import org.apache.arrow.memory.BufferAllocator;

/** Result rows read back, and what they should be, computed plainly in double. */
public final class Results {
  /** The nth result of a sequence in a layer. */
  public record Key(String layer, String sequence, int nth) {}

  /** One result row. */
  public record Row(long request, float[] output) {}

  private Results() {}

  /** All result files below {@code path}, or the file itself, in the order of their names. */
  public static List<Path> files(Path path) {
    if (Files.notExists(path)) {
      return List.of();
    }
    try (Stream<Path> files = Files.walk(path)) {
      return files
          .filter(Files::isRegularFile)
          .filter(file -> !file.getFileName().toString().startsWith("."))
          .sorted()
          .toList();
    } catch (IOException e) {
      throw new UncheckedIOException(e);
    }
  }

  public static Map<Key, Row> read(Path path) {
    Map<Key, Row> rows = new LinkedHashMap<>();
    Map<Key, Integer> seen = new HashMap<>();
    try (BufferAllocator allocator = Allocators.root()) {
      for (Path file : files(path)) {
        try (StepInput input = StepInput.open(file, allocator)) {
          for (ArrowBatch batch = input.next(); batch != null; batch = input.next()) {
            try (ArrowBatch open = batch) {
              add(open, rows, seen);
            }
          }
        }
      }
    } catch (IOException e) {
      throw new UncheckedIOException(e);
    }
    return rows;
  }

  private static void add(ArrowBatch batch, Map<Key, Row> rows, Map<Key, Integer> seen) {
    TensorField tensor =
        TensorField.of(batch.schema().field(batch.schema().index("output"))).orElseThrow();
    DType dtype = tensor.dtype();
    ArrowColumn output = batch.column("output");
    ArrowColumn elements = output.child().child();
    for (int i = 0; i < batch.numRows(); i++) {
      String layer = batch.column("layer").getString(i);
      String sequence = batch.column("sequence_id").getString(i);
      int nth = seen.merge(new Key(layer, sequence, 0), 1, Integer::sum) - 1;
      long start = output.offset(i) * tensor.elements();
      float[] values = new float[(int) output.listSize(i) * tensor.elements()];
      for (int j = 0; j < values.length; j++) {
        values[j] = Steps.decode(dtype, elements.getLong(start + j));
      }
      rows.put(new Key(layer, sequence, nth), new Row(batch.column("request").getLong(i), values));
    }
  }

  /** What {@code steps} should give. */
  public static Map<Key, Row> expected(Steps steps) {
    Map<Key, Row> rows = new LinkedHashMap<>();
    Map<Key, List<Steps.Row>> history = new HashMap<>();
    for (Steps.Step step : steps.steps) {
      for (Steps.Row row : step.rows()) {
        List<Steps.Row> past =
            history.computeIfAbsent(
                new Key(step.layer().name(), row.id, 0), key -> new ArrayList<>());
        past.add(row);
        rows.put(
            new Key(step.layer().name(), row.id, past.size() - 1),
            new Row(row.seqLen * 10L, attend(steps.headSize, step.layer(), past)));
      }
    }
    return rows;
  }

  private static float[] attend(int headSize, Steps.Layer layer, List<Steps.Row> past) {
    Steps.Row row = past.get(past.size() - 1);
    int kvWidth = layer.kvHeads() * headSize;
    float[] keys = new float[row.seqLen * kvWidth];
    float[] values = new float[row.seqLen * kvWidth];
    int at = 0;
    for (Steps.Row chunk : past) {
      System.arraycopy(chunk.key, 0, keys, at, chunk.key.length);
      System.arraycopy(chunk.value, 0, values, at, chunk.value.length);
      at += chunk.key.length;
    }
    float[] output = new float[row.query.length];
    int group = layer.heads() / layer.kvHeads();
    for (int t = 0; t < row.tokens(); t++) {
      int visible = row.seqLen - row.tokens() + t + 1;
      for (int head = 0; head < layer.heads(); head++) {
        int query = (t * layer.heads() + head) * headSize;
        int kv = head / group * headSize;
        double[] weights = new double[visible];
        double max = Double.NEGATIVE_INFINITY;
        for (int j = 0; j < visible; j++) {
          double dot = 0;
          for (int d = 0; d < headSize; d++) {
            dot += (double) row.query[query + d] * keys[j * kvWidth + kv + d];
          }
          weights[j] = dot / Math.sqrt(headSize);
          max = Math.max(max, weights[j]);
        }
        double sum = 0;
        for (int j = 0; j < visible; j++) {
          weights[j] = Math.exp(weights[j] - max);
          sum += weights[j];
        }
        for (int d = 0; d < headSize; d++) {
          double value = 0;
          for (int j = 0; j < visible; j++) {
            value += weights[j] * values[j * kvWidth + kv + d];
          }
          output[query + d] = (float) (value / sum);
        }
      }
    }
    return output;
  }

  /** The same rows, and every element within {@code tolerance} of what it should be. */
  public static void assertClose(Map<Key, Row> got, Map<Key, Row> expected, double tolerance) {
    assertThat(got.keySet()).containsExactlyInAnyOrderElementsOf(expected.keySet());
    expected.forEach(
        (key, row) -> {
          float[] output = got.get(key).output();
          assertThat(got.get(key).request()).as("%s request", key).isEqualTo(row.request());
          assertThat(output).as("%s", key).hasSameSizeAs(row.output());
          double largest = 1;
          double error = 0;
          for (int i = 0; i < output.length; i++) {
            largest = Math.max(largest, Math.abs(row.output()[i]));
            error = Math.max(error, Math.abs(output[i] - row.output()[i]));
          }
          assertThat(error / largest).as("%s error", key).isLessThanOrEqualTo(tolerance);
        });
  }

  /** The same rows, bit for bit. */
  public static void assertSame(Map<Key, Row> got, Map<Key, Row> expected) {
    assertThat(got.keySet()).containsExactlyInAnyOrderElementsOf(expected.keySet());
    expected.forEach(
        (key, row) -> {
          assertThat(got.get(key).request()).as("%s request", key).isEqualTo(row.request());
          assertThat(got.get(key).output()).as("%s", key).containsExactly(row.output());
        });
  }
}
