// SPDX-License-Identifier: Apache-2.0
package io.broadhead.job.bench;

import java.math.BigDecimal;
import java.math.MathContext;
import java.util.ArrayList;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Locale;
import java.util.Set;

/**
 * Cells of one mode as a table: our time and rates, the part of each limit that we reach, and how
 * many times our time the peers take.
 */
final class ResultTable {
  private final List<CellResult> cells;
  private final Set<String> limits = new LinkedHashSet<>();
  private final Set<String> parts = new LinkedHashSet<>();
  private final Set<String> variants = new LinkedHashSet<>();
  private final Set<String> peers = new LinkedHashSet<>();
  private final boolean attends;
  private final boolean countsGarbage;

  ResultTable(List<CellResult> cells) {
    this.cells = cells;
    for (CellResult cell : cells) {
      limits.addAll(cell.contenders(Contender.Kind.LIMIT));
      parts.addAll(cell.contenders(Contender.Kind.PART));
      variants.addAll(cell.contenders(Contender.Kind.VARIANT));
      peers.addAll(cell.contenders(Contender.Kind.PEER));
    }
    this.attends = cells.stream().anyMatch(cell -> cell.cell().shape().attends());
    this.countsGarbage =
        cells.stream()
            .flatMap(cell -> cell.ours().stream())
            .anyMatch(ours -> !Double.isNaN(ours.garbageBytes()));
  }

  Table table() {
    Table table = new Table(headings());
    cells.forEach(cell -> cell.ours().ifPresent(ours -> table.add(line(cell, ours))));
    return table;
  }

  private List<String> headings() {
    List<String> headings =
        new ArrayList<>(
            List.of("model", "dtype", "sequences", "threads", "ms", "tokens/s", "GB/s"));
    if (attends) {
      headings.add("GFLOP/s");
    }
    limits.forEach(limit -> headings.add("of " + limit));
    parts.forEach(part -> headings.add(part + " us"));
    if (countsGarbage) {
      headings.add("garbage B");
    }
    headings.addAll(variants);
    headings.addAll(peers);
    if (peers.size() > 1) {
      headings.add("strongest");
    }
    return headings;
  }

  private List<String> line(CellResult result, Result ours) {
    Cell cell = result.cell();
    List<String> line =
        new ArrayList<>(
            List.of(
                cell.shape().heads().name() + (cell.shape().rope() ? " rope" : ""),
                cell.dtypes()
                    + (cell.shape().blockSize() == 16
                        ? ""
                        : ", blocks of " + cell.shape().blockSize()),
                Rows.text(cell.shape().rows()),
                String.valueOf(cell.threads()),
                threeDigits(ours.microseconds() / 1000) + (ours.disturbed() ? " !" : ""),
                threeDigits(ours.tokensPerSecond()),
                threeDigits(ours.gigabytesPerSecond())));
    if (attends) {
      line.add(threeDigits(ours.gigaflopsPerSecond()));
    }
    limits.forEach(limit -> line.add(hundredths(result.timesOurs(limit))));
    parts.forEach(part -> line.add(threeDigits(result.microseconds(part))));
    if (countsGarbage) {
      line.add(threeDigits(ours.garbageBytes()));
    }
    variants.forEach(variant -> line.add(hundredths(result.timesOurs(variant))));
    peers.forEach(peer -> line.add(hundredths(result.timesOurs(peer))));
    if (peers.size() > 1) {
      line.add(hundredths(result.strongestPeer().map(result::timesOurs).orElse(Double.NaN)));
    }
    return line;
  }

  private static String hundredths(double value) {
    return Double.isNaN(value) ? "" : String.format(Locale.ROOT, "%.2f", value);
  }

  /** {@code value} with three digits that count: 0.0612, 14.2, 15300. */
  static String threeDigits(double value) {
    return Double.isNaN(value)
        ? ""
        : new BigDecimal(value).round(new MathContext(3)).toPlainString();
  }
}
