// SPDX-License-Identifier: Apache-2.0
package io.broadhead.job.bench;

import java.util.ArrayList;
import java.util.List;

/** Headings and lines of text; numbers stand right. */
final class Table {
  private final List<String> headings;
  private final List<List<String>> lines = new ArrayList<>();

  Table(List<String> headings) {
    this.headings = List.copyOf(headings);
  }

  void add(List<String> line) {
    if (line.size() != headings.size()) {
      throw new IllegalArgumentException(
          "expected " + headings.size() + " columns, got " + line.size());
    }
    lines.add(List.copyOf(line));
  }

  /** For a terminal. */
  List<String> text() {
    List<String> text = new ArrayList<>();
    String heading = line(headings, "  ").stripTrailing();
    text.add(heading);
    text.add("-".repeat(heading.length()));
    lines.forEach(line -> text.add(line(line, "  ").stripTrailing()));
    return text;
  }

  /** For a page. */
  List<String> markdown() {
    List<String> text = new ArrayList<>();
    text.add("| " + line(headings, " | ") + " |");
    List<String> rule = new ArrayList<>();
    for (int column = 0; column < headings.size(); column++) {
      String dashes = "-".repeat(Math.max(3, width(column)));
      rule.add(isNumeric(column) ? dashes.substring(1) + ":" : dashes);
    }
    text.add("| " + String.join(" | ", rule) + " |");
    lines.forEach(line -> text.add("| " + line(line, " | ") + " |"));
    return text;
  }

  private String line(List<String> line, String separator) {
    List<String> cells = new ArrayList<>();
    for (int column = 0; column < line.size(); column++) {
      String cell = line.get(column);
      String space = " ".repeat(Math.max(3, width(column)) - cell.length());
      cells.add(isNumeric(column) ? space + cell : cell + space);
    }
    return String.join(separator, cells);
  }

  private int width(int column) {
    int width = headings.get(column).length();
    for (List<String> line : lines) {
      width = Math.max(width, line.get(column).length());
    }
    return width;
  }

  private boolean isNumeric(int column) {
    return lines.stream().allMatch(line -> line.get(column).matches("[-+.,0-9 !]*"));
  }
}
