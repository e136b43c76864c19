// SPDX-License-Identifier: Apache-2.0
package io.broadhead.job.bench;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Duration;
import java.util.Arrays;

/**
 * How much of the processor others take, from the counters of Linux: other processes, and the
 * machines that share the host. Never any where there are no such counters. Used by one thread.
 */
final class OtherWork {
  private static final Path ALL = Path.of("/proc/stat");
  private static final Path OWN = Path.of("/proc/self/stat");

  private static final double TICKS_PER_SECOND = 100;

  /** Both counters are rounded to ticks. */
  private static final int LEAST_TICKS = 2;

  /** Part of one core that may go to others. */
  private static final double TOLERATED = 0.08;

  private final long startedNanos = System.nanoTime();
  private final long startedTicks = othersTicks();

  private OtherWork() {}

  /** Starts to watch. */
  static OtherWork watch() {
    return new OtherWork();
  }

  /** Time since the start. */
  Duration watchedFor() {
    return Duration.ofNanos(System.nanoTime() - startedNanos);
  }

  /** Whether others took more than a little since the start. */
  boolean disturbed() {
    double ticks = watchedFor().toNanos() / 1e9 * TICKS_PER_SECOND;
    return othersTicks() - startedTicks > LEAST_TICKS + TOLERATED * ticks;
  }

  /** Ticks of all processors since the system started that this process did not take. */
  static long othersTicks() {
    try {
      // user, nice, system, idle, iowait, irq, softirq, steal
      String[] all = fields(Files.readAllLines(ALL).get(0), "cpu");
      // Behind the command and its parenthesis: state, 10 more, utime, stime.
      String[] own = fields(Files.readString(OWN), ")");
      return sum(all, 0, 1, 2, 5, 6, 7) - sum(own, 11, 12);
    } catch (IOException e) {
      return 0;
    }
  }

  private static String[] fields(String line, String behind) {
    return line.substring(line.lastIndexOf(behind) + behind.length()).trim().split("\\s+");
  }

  private static long sum(String[] fields, int... indexes) {
    return Arrays.stream(indexes).mapToLong(i -> Long.parseLong(fields[i])).sum();
  }
}
