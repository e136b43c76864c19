// SPDX-License-Identifier: Apache-2.0
package io.broadhead.job;

import java.io.IOException;
import java.io.PrintWriter;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Locale;

/** One line on the terminal that is written over again. Used by one thread. */
final class StatusLine implements AutoCloseable {
  private static final String ERASE = "\r\u001b[K";

  private final PrintWriter out;
  private boolean visible;

  StatusLine(PrintWriter out) {
    this.out = out;
  }

  /** Whether standard error is a terminal. */
  static boolean onTerminal() {
    Path stderr = Path.of("/proc/self/fd/2");
    if (!Files.isSymbolicLink(stderr)) {
      return System.console() != null;
    }
    try {
      String target = Files.readSymbolicLink(stderr).toString();
      return target.startsWith("/dev/pts/") || target.startsWith("/dev/tty");
    } catch (IOException e) {
      return false;
    }
  }

  /** Shows {@code text} instead of what was there. */
  void show(String text) {
    visible = true;
    out.print(ERASE + text);
    out.flush();
  }

  /** {@code 3/8}, or {@code 3} where nobody knows how many there will be. */
  static String count(long done, long total) {
    return total >= 0 ? done + "/" + total : String.valueOf(done);
  }

  /** {@code 40 s left} as far as one can tell, {@code 12 s} so far where one cannot. */
  static String time(long done, long total, double seconds) {
    if (done > 0 && total >= done) {
      return String.format(Locale.ROOT, "%.0f s left", seconds / done * (total - done));
    }
    return String.format(Locale.ROOT, "%.0f s", seconds);
  }

  /** Erases the line. */
  @Override
  public void close() {
    if (visible) {
      out.print(ERASE);
      out.flush();
      visible = false;
    }
  }
}
