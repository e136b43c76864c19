// SPDX-License-Identifier: Apache-2.0
package io.broadhead.job.bench;

import java.util.Locale;
import java.util.function.LongSupplier;

/**
 * Something whose time is taken. Each run does the next of several equal steps.
 *
 * @param run does one step; answers nanoseconds
 */
public record Contender(String name, Kind kind, LongSupplier run) {
  /** What a contender is to ours. */
  public enum Kind {
    /** What is measured. */
    OURS,
    /** As fast as the machine could be at best. */
    LIMIT,
    /** A part of our own time. */
    PART,
    /** Our own steps of another cell. */
    VARIANT,
    /** Another library. */
    PEER;

    @Override
    public String toString() {
      return name().toLowerCase(Locale.ROOT);
    }

    static Kind parse(String text) {
      return valueOf(text.toUpperCase(Locale.ROOT));
    }
  }

  /** A contender whose time is that of {@code step}. */
  public static Contender timed(String name, Kind kind, Runnable step) {
    return new Contender(
        name,
        kind,
        () -> {
          long start = System.nanoTime();
          step.run();
          return System.nanoTime() - start;
        });
  }
}
