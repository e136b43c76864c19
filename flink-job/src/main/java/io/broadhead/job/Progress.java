// SPDX-License-Identifier: Apache-2.0
package io.broadhead.job;

import java.io.IOException;
import java.io.PrintWriter;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Locale;
import java.util.function.LongSupplier;

/**
 * One line on the terminal that is written over again: batches, tokens a second, time left. Silent
 * where stderr is no terminal. Used by one thread.
 */
final class Progress implements AutoCloseable {
  private static final long INTERVAL_NANOS = 200_000_000;
  private static final String ERASE = "\r\u001b[K";

  private final PrintWriter out;
  private final boolean enabled;
  private final long totalBatches;
  private final LongSupplier clock;
  private final long started;
  private long lastPrinted;
  private boolean visible;

  /**
   * @param totalBatches how many batches there will be, or -1 if nobody knows
   */
  Progress(PrintWriter out, boolean enabled, long totalBatches) {
    this(out, enabled, totalBatches, System::nanoTime);
  }

  Progress(PrintWriter out, boolean enabled, long totalBatches, LongSupplier clock) {
    this.out = out;
    this.enabled = enabled;
    this.totalBatches = totalBatches;
    this.clock = clock;
    this.started = clock.getAsLong();
    this.lastPrinted = started;
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

  /** Prints the line if it is time to. */
  void update(long batches, long tokens) {
    long now = clock.getAsLong();
    if (!enabled || now - lastPrinted < INTERVAL_NANOS) {
      return;
    }
    lastPrinted = now;
    visible = true;
    out.print(ERASE + line(batches, tokens, (now - started) / 1e9));
    out.flush();
  }

  private String line(long batches, long tokens, double seconds) {
    StringBuilder line = new StringBuilder().append(batches);
    if (totalBatches >= 0) {
      line.append('/').append(totalBatches);
    }
    line.append(" batches, ").append(Math.round(tokens / seconds)).append(" tokens/s");
    if (batches > 0 && totalBatches >= batches) {
      double left = seconds / batches * (totalBatches - batches);
      line.append(String.format(Locale.ROOT, ", %.0f s left", left));
    } else {
      line.append(String.format(Locale.ROOT, ", %.0f s", seconds));
    }
    return line.toString();
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
