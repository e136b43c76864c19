// SPDX-License-Identifier: Apache-2.0
package io.broadhead.job.bench;

import java.util.ArrayList;
import java.util.Comparator;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.Optional;
import java.util.function.Function;
import java.util.function.ToDoubleFunction;

/** What may grow while all else of a decode step stays, and how its time follows. */
enum GrowthAxis {
  BATCH(
      "sequences",
      3,
      cell -> cell.shape().sequences(),
      cell -> cell.shape().heads().name() + ", context " + cell.shape().longestContext()),
  CONTEXT(
      "tokens of context",
      3,
      cell -> cell.shape().longestContext(),
      cell -> cell.shape().heads().name() + ", " + cell.shape().sequences() + " sequences"),
  HEADS(
      "heads",
      3,
      cell -> cell.shape().heads().numHeads(),
      cell -> cell.shape().heads().groupSize() + " to a KV head, of " + headSizeAndRows(cell)),
  KV_HEADS(
      "KV heads",
      3,
      cell -> cell.shape().heads().numKvHeads(),
      cell -> cell.shape().heads().numHeads() + " heads of " + headSizeAndRows(cell)),
  THREADS(
      "threads",
      2,
      Cell::threads,
      cell -> cell.shape().heads().name() + ", " + Rows.text(cell.shape().rows()));

  private static final int MOST_LINES = 8;

  private final String title;
  private final int leastPoints;
  private final ToDoubleFunction<Cell> place;
  private final Function<Cell, String> rest;

  /**
   * @param rest all that must be equal along a line but dtypes, and threads unless they grow
   */
  GrowthAxis(
      String title, int leastPoints, ToDoubleFunction<Cell> place, Function<Cell, String> rest) {
    this.title = title;
    this.leastPoints = leastPoints;
    this.place = place;
    this.rest = rest;
  }

  private static String headSizeAndRows(Cell cell) {
    return cell.shape().heads().headSize() + ", " + Rows.text(cell.shape().rows());
  }

  private String line(Cell cell) {
    return rest.apply(cell)
        + ", "
        + cell.dtypes()
        + (this == THREADS ? "" : cell.threads() == 1 ? ", 1 thread" : "");
  }

  /** A line for each of the longest runs of cells along this axis, or empty if there is none. */
  Optional<String> chart(List<CellResult> cells) {
    Map<String, List<LineChart.Point>> lines = new LinkedHashMap<>();
    for (CellResult result : cells) {
      Cell cell = result.cell();
      if (cell.mode() == Mode.DECODE && result.ours().isPresent()) {
        lines
            .computeIfAbsent(line(cell), name -> new ArrayList<>())
            .add(
                new LineChart.Point(
                    place.applyAsDouble(cell), result.ours().get().microseconds() / 1000));
      }
    }
    LineChart chart = new LineChart("Time of a decode step by " + title, title, "ms");
    List<Map.Entry<String, List<LineChart.Point>>> longest =
        lines.entrySet().stream()
            .filter(line -> line.getValue().size() >= leastPoints)
            .sorted(Comparator.comparing(line -> -line.getValue().size()))
            .limit(MOST_LINES)
            .toList();
    for (Map.Entry<String, List<LineChart.Point>> line : longest) {
      line.getValue().sort(Comparator.comparingDouble(LineChart.Point::x));
      chart.add(line.getKey(), line.getValue());
    }
    return longest.isEmpty() ? Optional.empty() : Optional.of(chart.svg());
  }

  @Override
  public String toString() {
    return name().toLowerCase(Locale.ROOT).replace('_', '-');
  }
}
