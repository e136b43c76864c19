// SPDX-License-Identifier: Apache-2.0
package io.broadhead.job.bench;

import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.stream.DoubleStream;

/**
 * Horizontal bars in groups: one group for each label, one bar for each series in it. Values that
 * are NaN have no bar.
 */
final class BarChart {
  private static final double LABELS = 270;
  private static final double BARS = 520;
  private static final double RIGHT = 60;
  private static final double TOP = 56;
  private static final double BAR = 12;
  private static final double GAP = 8;

  private final String title;
  private final List<String> labels;
  private final boolean logarithmic;
  private final Map<String, double[]> series = new LinkedHashMap<>();

  private BarChart(String title, List<String> labels, boolean logarithmic) {
    this.title = title;
    this.labels = List.copyOf(labels);
    this.logarithmic = logarithmic;
  }

  /** A chart of parts of a whole, with a line at 1. */
  static BarChart ofParts(String title, List<String> labels) {
    return new BarChart(title, labels, false);
  }

  /** A chart of ratios on a logarithmic scale; bars start at 1 and go left below it. */
  static BarChart ofRatios(String title, List<String> labels) {
    return new BarChart(title, labels, true);
  }

  /** Adds a bar to each group. */
  BarChart add(String name, double... values) {
    if (values.length != labels.size()) {
      throw new IllegalArgumentException(
          "expected " + labels.size() + " values, got " + values.length);
    }
    series.put(name, values.clone());
    return this;
  }

  String svg() {
    Svg svg = new Svg();
    double groupHeight = series.size() * BAR + GAP;
    double bottom = TOP + labels.size() * groupHeight;
    svg.text(10, 20, Svg.Anchor.START, title);
    legend(svg);
    for (double tick : ticks()) {
      svg.line(x(tick), TOP - 4, x(tick), bottom, tick == 1 ? Svg.TEXT : Svg.GRID);
      svg.text(x(tick), bottom + 16, Svg.Anchor.MIDDLE, ResultTable.threeDigits(tick));
    }
    for (int group = 0; group < labels.size(); group++) {
      double y = TOP + group * groupHeight;
      svg.text(LABELS - 8, y + series.size() * BAR / 2 + 4, Svg.Anchor.END, labels.get(group));
      int bar = 0;
      for (double[] values : series.values()) {
        bar(svg, values[group], y + bar * BAR, Svg.color(bar));
        bar++;
      }
    }
    return svg.file(LABELS + BARS + RIGHT, bottom + 28);
  }

  private void legend(Svg svg) {
    double x = LABELS;
    int index = 0;
    for (String name : series.keySet()) {
      svg.bar(x, 32, 10, 10, Svg.color(index++));
      svg.text(x + 14, 41, Svg.Anchor.START, name);
      x += 34 + 7 * name.length();
    }
  }

  private void bar(Svg svg, double value, double y, String color) {
    if (Double.isNaN(value)) {
      return;
    }
    double from = Math.min(origin(), x(value));
    double to = Math.max(origin(), x(value));
    svg.bar(from, y, to - from, BAR - 2, color);
    svg.text(to + 4, y + BAR - 2, Svg.Anchor.START, ResultTable.threeDigits(value));
  }

  private double origin() {
    return x(logarithmic ? 1 : 0);
  }

  private double x(double value) {
    return LABELS + BARS * (logarithmic ? axis().place(value) : value / greatest());
  }

  private LogAxis axis() {
    return LogAxis.over(2, DoubleStream.concat(DoubleStream.of(1), all()));
  }

  private double greatest() {
    return Math.max(1, all().max().orElse(1));
  }

  private DoubleStream all() {
    return series.values().stream()
        .flatMapToDouble(Arrays::stream)
        .filter(value -> !Double.isNaN(value));
  }

  private double[] ticks() {
    return logarithmic
        ? axis().ticks()
        : DoubleStream.iterate(0, tick -> tick <= greatest(), tick -> tick + 0.25).toArray();
  }
}
