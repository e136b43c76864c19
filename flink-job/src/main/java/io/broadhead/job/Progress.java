// SPDX-License-Identifier: Apache-2.0
package io.broadhead.job;

import java.io.PrintWriter;
import java.util.function.LongSupplier;

/**
 * Batches, tokens a second and time left on the terminal. Silent where stderr is no terminal. Used
 * by one thread.
 */
final class Progress implements AutoCloseable {
  private static final long INTERVAL_NANOS = 200_000_000;

  private final StatusLine line;
  private final boolean enabled;
  private final long totalBatches;
  private final LongSupplier clock;
  private final long started;
  private long lastPrinted;

  /**
   * @param totalBatches how many batches there will be, or -1 if nobody knows
   */
  Progress(PrintWriter out, boolean enabled, long totalBatches) {
    this(out, enabled, totalBatches, System::nanoTime);
  }

  Progress(PrintWriter out, boolean enabled, long totalBatches, LongSupplier clock) {
    this.line = new StatusLine(out);
    this.enabled = enabled;
    this.totalBatches = totalBatches;
    this.clock = clock;
    this.started = clock.getAsLong();
    this.lastPrinted = started;
  }

  /** Prints the line if it is time to. */
  void update(long batches, long tokens) {
    long now = clock.getAsLong();
    if (!enabled || now - lastPrinted < INTERVAL_NANOS) {
      return;
    }
    lastPrinted = now;
    double seconds = (now - started) / 1e9;
    line.show(
        StatusLine.count(batches, totalBatches)
            + " batches, "
            + Math.round(tokens / seconds)
            + " tokens/s, "
            + StatusLine.time(batches, totalBatches, seconds));
  }

  /** Erases the line. */
  @Override
  public void close() {
    line.close();
  }
}
