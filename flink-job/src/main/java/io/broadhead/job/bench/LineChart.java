// SPDX-License-Identifier: Apache-2.0
package io.broadhead.job.bench;

import java.util.ArrayList;
import java.util.List;
import java.util.function.DoubleUnaryOperator;
import java.util.function.ToDoubleFunction;
import java.util.stream.DoubleStream;

/** Lines over logarithmic axes: how something grows. */
public final class LineChart {
  private static final double LEFT = 70;
  private static final double TOP = 40;
  private static final double WIDTH = 480;
  private static final double HEIGHT = 320;
  private static final double BOTTOM = TOP + HEIGHT;
  private static final double LEGEND = 260;

  private final String title;
  private final String xName;
  private final String yName;
  private final List<Line> lines = new ArrayList<>();

  /** A point of a line; both above 0. */
  public record Point(double x, double y) {}

  private record Line(String name, List<Point> points) {}

  public LineChart(String title, String xName, String yName) {
    this.title = title;
    this.xName = xName;
    this.yName = yName;
  }

  /** Adds a line through {@code points}, from left to right. */
  public LineChart add(String name, List<Point> points) {
    lines.add(new Line(name, List.copyOf(points)));
    return this;
  }

  public String svg() {
    LogAxis across = LogAxis.over(2, all(Point::x));
    LogAxis up = LogAxis.over(10, all(Point::y));
    DoubleUnaryOperator x = value -> LEFT + WIDTH * across.place(value);
    DoubleUnaryOperator y = value -> BOTTOM - HEIGHT * up.place(value);
    Svg svg = new Svg();
    svg.text(10, 20, Svg.Anchor.START, title);
    for (double tick : across.ticks()) {
      svg.line(x.applyAsDouble(tick), TOP, x.applyAsDouble(tick), BOTTOM, Svg.GRID);
      svg.text(
          x.applyAsDouble(tick), BOTTOM + 16, Svg.Anchor.MIDDLE, ResultTable.threeDigits(tick));
    }
    for (double tick : up.ticks()) {
      svg.line(LEFT, y.applyAsDouble(tick), LEFT + WIDTH, y.applyAsDouble(tick), Svg.GRID);
      svg.text(LEFT - 6, y.applyAsDouble(tick) + 4, Svg.Anchor.END, ResultTable.threeDigits(tick));
    }
    svg.text(LEFT + WIDTH / 2, BOTTOM + 34, Svg.Anchor.MIDDLE, xName);
    svg.text(LEFT, TOP - 6, Svg.Anchor.MIDDLE, yName);
    for (int i = 0; i < lines.size(); i++) {
      List<Point> drawn =
          lines.get(i).points.stream()
              .map(p -> new Point(x.applyAsDouble(p.x), y.applyAsDouble(p.y)))
              .toList();
      draw(svg, drawn, Svg.color(i));
      double legendY = TOP + 14 + 18 * i;
      svg.bar(LEFT + WIDTH + 20, legendY - 9, 10, 10, Svg.color(i));
      svg.text(LEFT + WIDTH + 34, legendY, Svg.Anchor.START, lines.get(i).name);
    }
    return svg.file(LEFT + WIDTH + LEGEND, Math.max(BOTTOM + 46, TOP + 20 + 18 * lines.size()));
  }

  private static void draw(Svg svg, List<Point> points, String color) {
    for (int i = 0; i < points.size(); i++) {
      Point point = points.get(i);
      if (i > 0) {
        svg.line(points.get(i - 1).x, points.get(i - 1).y, point.x, point.y, color);
      }
      svg.dot(point.x, point.y, color);
    }
  }

  private DoubleStream all(ToDoubleFunction<Point> axis) {
    return lines.stream().flatMap(line -> line.points.stream()).mapToDouble(axis);
  }
}
