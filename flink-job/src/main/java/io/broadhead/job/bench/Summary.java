// SPDX-License-Identifier: Apache-2.0
package io.broadhead.job.bench;

import java.util.ArrayList;
import java.util.Comparator;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Locale;
import java.util.Set;
import java.util.function.ToDoubleFunction;
import java.util.stream.Collectors;

/** What a table comes to: geometric means over its cells, and the cell that is worst. */
final class Summary {
  private static final String FASTER = "times as fast as ";

  private Summary() {}

  /** One line for each limit, variant and peer, and one for the strongest peer of every cell. */
  static List<String> lines(List<CellResult> cells) {
    List<String> lines = new ArrayList<>();
    contenders(cells, Contender.Kind.LIMIT)
        .forEach(name -> line("of " + name, cells, cell -> cell.timesOurs(name), lines));
    contenders(cells, Contender.Kind.VARIANT)
        .forEach(name -> line(FASTER + name, cells, cell -> cell.timesOurs(name), lines));
    Set<String> peers = contenders(cells, Contender.Kind.PEER);
    peers.forEach(name -> line(FASTER + name, cells, cell -> cell.timesOurs(name), lines));
    if (peers.size() > 1) {
      line(FASTER + "the strongest peer", cells, Summary::timesStrongest, lines);
    }
    return lines;
  }

  private static Set<String> contenders(List<CellResult> cells, Contender.Kind kind) {
    return cells.stream()
        .flatMap(cell -> cell.contenders(kind).stream())
        .collect(Collectors.toCollection(LinkedHashSet::new));
  }

  private static double timesStrongest(CellResult cell) {
    return cell.strongestPeer().map(cell::timesOurs).orElse(Double.NaN);
  }

  private static void line(
      String what, List<CellResult> cells, ToDoubleFunction<CellResult> value, List<String> lines) {
    List<CellResult> measured =
        cells.stream().filter(cell -> !Double.isNaN(value.applyAsDouble(cell))).toList();
    measured.stream()
        .min(Comparator.comparingDouble(value))
        .map(
            worst ->
                String.format(
                    Locale.ROOT,
                    "%s: %.2f in the geometric mean of %d cells, %.2f at least (%s)",
                    what,
                    Statistics.geometricMean(measured.stream().map(value::applyAsDouble).toList()),
                    measured.size(),
                    value.applyAsDouble(worst),
                    worst.cell()))
        .ifPresent(lines::add);
  }
}
