// SPDX-License-Identifier: Apache-2.0
package io.broadhead.job.bench;

import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.Set;
import java.util.stream.Collectors;

/** Results as people read them: tables with what they come to, and charts. */
public final class Report {
  private final List<Result> results;

  public Report(List<Result> results) {
    this.results = List.copyOf(results);
  }

  /** Tables for a terminal. */
  public List<String> text() {
    List<String> lines = new ArrayList<>();
    tables()
        .forEach(
            (title, cells) -> {
              lines.addAll(new ResultTable(cells).table().text());
              lines.addAll(Summary.lines(cells));
              disturbance(cells).ifPresent(lines::add);
              lines.add("");
            });
    return lines;
  }

  /** A page. */
  public List<String> markdown() {
    List<String> lines = new ArrayList<>();
    tables()
        .forEach(
            (title, cells) -> {
              lines.add("### " + title);
              lines.add("");
              lines.addAll(new ResultTable(cells).table().markdown());
              lines.add("");
              Summary.lines(cells).forEach(line -> lines.add("- " + line));
              disturbance(cells).ifPresent(line -> lines.add("- " + line));
              lines.add("");
            });
    return lines;
  }

  private static Optional<String> disturbance(List<CellResult> cells) {
    boolean disturbed =
        cells.stream().flatMap(cell -> cell.ours().stream()).anyMatch(Result::disturbed);
    return disturbed
        ? Optional.of("! other processes worked during all samples of the cell")
        : Optional.empty();
  }

  /** Charts by file name. */
  public Map<String, String> charts() {
    Map<String, String> charts = new LinkedHashMap<>();
    tables()
        .forEach(
            (title, cells) -> {
              String name = title.replace(", ", "-").replace(' ', '-').replace('/', '-');
              limits(title, cells).ifPresent(chart -> charts.put(name + "-limits.svg", chart));
              peers(title, cells).ifPresent(chart -> charts.put(name + "-peers.svg", chart));
            });
    for (GrowthAxis axis : GrowthAxis.values()) {
      axis.chart(CellResult.group(results))
          .ifPresent(chart -> charts.put("growth-" + axis + ".svg", chart));
    }
    return charts;
  }

  private static Optional<String> limits(String title, List<CellResult> cells) {
    BarChart chart = BarChart.ofParts(title + ": part of what the machine allows", labels(cells));
    return bars(chart, cells, Contender.Kind.LIMIT, "of ");
  }

  private static Optional<String> peers(String title, List<CellResult> cells) {
    BarChart chart = BarChart.ofRatios(title + ": times our own time", labels(cells));
    return bars(chart, cells, Contender.Kind.PEER, "");
  }

  private static List<String> labels(List<CellResult> cells) {
    return cells.stream()
        .map(
            cell ->
                cell.cell().shape().heads().name() + " " + Rows.text(cell.cell().shape().rows()))
        .toList();
  }

  private static Optional<String> bars(
      BarChart chart, List<CellResult> cells, Contender.Kind kind, String prefix) {
    Set<String> names = new LinkedHashSet<>();
    cells.forEach(cell -> names.addAll(cell.contenders(kind)));
    for (String name : names) {
      chart.add(prefix + name, cells.stream().mapToDouble(cell -> cell.timesOurs(name)).toArray());
    }
    return names.isEmpty() ? Optional.empty() : Optional.of(chart.svg());
  }

  /** The cells of a mode, element type and number of threads are one table. */
  private Map<String, List<CellResult>> tables() {
    return CellResult.group(results).stream()
        .collect(
            Collectors.groupingBy(
                result -> {
                  Cell cell = result.cell();
                  return cell.mode()
                      + ", "
                      + cell.dtypes()
                      + (cell.threads() == 1 ? ", 1 thread" : ", " + cell.threads() + " threads");
                },
                LinkedHashMap::new,
                Collectors.toList()));
  }
}
