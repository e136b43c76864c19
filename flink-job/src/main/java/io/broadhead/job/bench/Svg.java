// SPDX-License-Identifier: Apache-2.0
package io.broadhead.job.bench;

import java.util.Locale;

/** A drawing in Scalable Vector Graphics, which needs neither fonts nor a display to be made. */
final class Svg {
  /** Colours that people who see few colours tell apart too. */
  private static final String[] PALETTE = {
    "#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#6b6b6b", "#a58b00"
  };

  static final String TEXT = "#222222";
  static final String GRID = "#dddddd";

  /** Where text stands relative to its point. */
  enum Anchor {
    START,
    MIDDLE,
    END
  }

  private final StringBuilder body = new StringBuilder();

  static String color(int series) {
    return PALETTE[series % PALETTE.length];
  }

  void text(double x, double y, Anchor anchor, String text) {
    body.append(
        String.format(
            Locale.ROOT,
            "<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"%s\" fill=\"%s\">%s</text>%n",
            x,
            y,
            anchor.name().toLowerCase(Locale.ROOT),
            TEXT,
            escape(text)));
  }

  void line(double x1, double y1, double x2, double y2, String color) {
    body.append(
        String.format(
            Locale.ROOT,
            "<line x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\" stroke=\"%s\"/>%n",
            x1,
            y1,
            x2,
            y2,
            color));
  }

  void bar(double x, double y, double width, double height, String color) {
    body.append(
        String.format(
            Locale.ROOT,
            "<rect x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%.1f\" fill=\"%s\"/>%n",
            x,
            y,
            Math.max(width, 0),
            height,
            color));
  }

  void dot(double x, double y, String color) {
    body.append(
        String.format(
            Locale.ROOT, "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"3\" fill=\"%s\"/>%n", x, y, color));
  }

  private static String escape(String text) {
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;");
  }

  /** The whole file. */
  String file(double width, double height) {
    return String.format(
            Locale.ROOT,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %.0f %.0f\" width=\"%.0f\""
                + " height=\"%.0f\" font-family=\"sans-serif\" font-size=\"12\">%n"
                + "<rect width=\"100%%\" height=\"100%%\" fill=\"white\"/>%n",
            width,
            height,
            width,
            height)
        + body
        + "</svg>\n";
  }
}
