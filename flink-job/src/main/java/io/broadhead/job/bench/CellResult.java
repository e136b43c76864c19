// SPDX-License-Identifier: Apache-2.0
package io.broadhead.job.bench;

import java.util.ArrayList;
import java.util.Comparator;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.function.ToDoubleFunction;

/** Everything that was measured in one cell, perhaps in several runs. */
final class CellResult {
  private final Cell cell;
  private final Map<String, List<Result>> results = new LinkedHashMap<>();

  private CellResult(Cell cell) {
    this.cell = cell;
  }

  /** The cells of {@code results}, in the order in which they come first. */
  static List<CellResult> group(List<Result> results) {
    Map<Cell, CellResult> cells = new LinkedHashMap<>();
    for (Result result : results) {
      cells
          .computeIfAbsent(result.cell(), CellResult::new)
          .results
          .computeIfAbsent(result.contender(), name -> new ArrayList<>())
          .add(result);
    }
    return List.copyOf(cells.values());
  }

  Cell cell() {
    return cell;
  }

  /** Contenders of a kind in the order in which they come. */
  List<String> contenders(Contender.Kind kind) {
    return results.entrySet().stream()
        .filter(entry -> entry.getValue().get(0).kind() == kind)
        .map(Map.Entry::getKey)
        .toList();
  }

  /** Our own result: of several runs, the one in the middle. */
  Optional<Result> ours() {
    return contenders(Contender.Kind.OURS).stream().findFirst().map(this::middle);
  }

  private Result middle(String contender) {
    List<Result> runs =
        results.get(contender).stream()
            .sorted(Comparator.comparingDouble(Result::microseconds))
            .toList();
    return runs.get(runs.size() / 2);
  }

  /** Microseconds of {@code contender}; NaN if it was not measured. */
  double microseconds(String contender) {
    return median(contender, Result::microseconds);
  }

  /** How many times our own time {@code contender} took; NaN if it was not measured. */
  double timesOurs(String contender) {
    return median(contender, Result::timesOurs);
  }

  private double median(String contender, ToDoubleFunction<Result> value) {
    return Statistics.median(
        results.getOrDefault(contender, List.of()).stream().mapToDouble(value).toArray());
  }

  /** The peer that took least. */
  Optional<String> strongestPeer() {
    return contenders(Contender.Kind.PEER).stream()
        .min(Comparator.comparingDouble(this::timesOurs));
  }
}
