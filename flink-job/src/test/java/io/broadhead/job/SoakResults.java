// SPDX-License-Identifier: Apache-2.0
package io.broadhead.job;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.fail;

import io.broadhead.arrow.Allocators;
import io.broadhead.arrow.ArrowBatch;
import io.broadhead.arrow.StepInput;
import io.broadhead.attention.AttentionConfig;
import io.broadhead.attention.PagedAttention;
import io.broadhead.attention.RefusedRow;
import io.broadhead.attention.testing.StepBatches;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import java.util.stream.IntStream;
import org.apache.arrow.memory.BufferAllocator;

/** What became of the rows of each sequence in each layer: results in their order, and refusals. */
final class SoakResults {
  private static final Pattern REFUSED =
      Pattern.compile("\"layer\": \"(.*?)\", \"sequence_id\": \"(.*?)\", \"code\": \"(.*?)\"");

  private final Map<String, Rows> sequences = new LinkedHashMap<>();

  /** Those of one sequence in one layer. */
  private static final class Rows {
    final List<Row> results = new ArrayList<>();
    final List<String> refusals = new ArrayList<>();
  }

  /**
   * @param name says which row it is, but for rows of another sequence of the same id
   */
  private record Row(String name, double[][] output) {
    boolean isLike(Row other) {
      return name.equals(other.name)
          && StepBatches.error(new double[][][] {output}, new double[][][] {other.output})
              < StepBatches.tolerance(SoakSteps.DTYPE);
    }
  }

  private SoakResults() {}

  /** What the library makes of {@code steps}, batch after batch, with room for everything. */
  static SoakResults expected(SoakSteps steps) {
    SoakResults results = new SoakResults();
    try (BufferAllocator allocator = Allocators.root();
        PagedAttention attention =
            PagedAttention.open(steps.job(), AttentionConfig.auto(), allocator)) {
      for (int i = 0; i < steps.size(); i++) {
        try (ArrowBatch batch = steps.batch(i, allocator);
            ArrowBatch result = attention.step(batch, results::add)) {
          results.add(result);
        }
      }
    }
    return results;
  }

  /** What a job has committed. */
  static SoakResults committed(Path output, Path refused) throws IOException {
    SoakResults results = new SoakResults();
    try (BufferAllocator allocator = Allocators.root()) {
      for (Path file : Results.files(output)) {
        try (StepInput input = StepInput.open(file, allocator)) {
          for (ArrowBatch batch = input.next(); batch != null; batch = input.next()) {
            try (ArrowBatch open = batch) {
              results.add(open);
            }
          }
        }
      }
    }
    for (Path file : Results.files(refused)) {
      for (String line : Files.readAllLines(file)) {
        Matcher row = REFUSED.matcher(line);
        assertThat(row.find()).as(line).isTrue();
        results.of(row.group(1), row.group(2)).refusals.add(row.group(3));
      }
    }
    return results;
  }

  private Rows of(String layer, String sequence) {
    return sequences.computeIfAbsent(sequence + " in layer " + layer, key -> new Rows());
  }

  private void add(RefusedRow row) {
    of(row.layer(), row.sequenceId()).refusals.add(row.code().name());
  }

  private void add(ArrowBatch result) {
    double[][][] output = StepBatches.read(result, "output");
    for (int row = 0; row < output.length; row++) {
      of(result.column("layer").getString(row), result.column("sequence_id").getString(row))
          .results
          .add(new Row(result.column(StepBatches.PASSED).getString(row), output[row]));
    }
  }

  /**
   * Every row is there once, with the result that it should have.
   *
   * @param inOrder whether the results of a sequence come in the order of its steps
   * @param mayLose whether rows may be refused that are right
   */
  void assertAre(SoakResults expected, boolean inOrder, boolean mayLose) {
    assertThat(sequences.keySet()).hasSameElementsAs(expected.sequences.keySet());
    expected.sequences.forEach(
        (name, should) -> {
          Rows got = sequences.get(name);
          List<Row> missing = new ArrayList<>(should.results);
          int after = 0;
          for (Row row : got.results) {
            int at = indexOf(row, missing, after);
            if (at < 0) {
              fail("%s: result %s %s", name, row.name, whatIsWrong(row, should.results, missing));
            }
            missing.remove(at);
            after = inOrder ? at : 0;
          }
          if (mayLose) {
            assertThat(got.refusals)
                .as("refusals of %s", name)
                .hasSize(should.refusals.size() + missing.size());
          } else {
            assertThat(missing).as("results of %s that are lost", name).isEmpty();
            assertThat(got.refusals)
                .as("refusals of %s", name)
                .containsExactlyInAnyOrderElementsOf(should.refusals);
          }
        });
  }

  private static int indexOf(Row row, List<Row> rows, int from) {
    return IntStream.range(from, rows.size())
        .filter(i -> row.isLike(rows.get(i)))
        .findFirst()
        .orElse(-1);
  }

  private static String whatIsWrong(Row row, List<Row> all, List<Row> missing) {
    if (indexOf(row, missing, 0) >= 0) {
      return "is out of order";
    }
    return indexOf(row, all, 0) >= 0 ? "is there twice" : "has wrong values";
  }
}
