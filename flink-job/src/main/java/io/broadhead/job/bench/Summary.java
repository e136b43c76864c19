// SPDX-License-Identifier: Apache-2.0
package io.broadhead.job.bench;

import java.util.ArrayList;
import java.util.Comparator;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Locale;
import java.util.Optional;
import java.util.Set;
import java.util.function.ToDoubleFunction;

/** What a table comes to: geometric means over its cells, and the cell that is worst. */
final class Summary {
  private Summary() {}

  /** One line for each limit and each peer, and one for the strongest peer of every cell. */
  static List<String> lines(List<CellResult> cells) {
    Set<String> limits = new LinkedHashSet<>();
    Set<String> peers = new LinkedHashSet<>();
    for (CellResult cell : cells) {
      limits.addAll(cell.contenders(Contender.Kind.LIMIT));
      peers.addAll(cell.contenders(Contender.Kind.PEER));
    }
    List<String> lines = new ArrayList<>();
    for (String limit : limits) {
      line("of " + limit, cells, cell -> cell.timesOurs(limit)).ifPresent(lines::add);
    }
    for (String peer : peers) {
      line("times as fast as " + peer, cells, cell -> cell.timesOurs(peer)).ifPresent(lines::add);
    }
    if (peers.size() > 1) {
      line(
              "times as fast as the strongest peer",
              cells,
              cell -> cell.strongestPeer().map(cell::timesOurs).orElse(Double.NaN))
          .ifPresent(lines::add);
    }
    return lines;
  }

  private static Optional<String> line(
      String what, List<CellResult> cells, ToDoubleFunction<CellResult> value) {
    List<CellResult> measured =
        cells.stream().filter(cell -> !Double.isNaN(value.applyAsDouble(cell))).toList();
    return measured.stream()
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
                    worst.cell()));
  }
}
