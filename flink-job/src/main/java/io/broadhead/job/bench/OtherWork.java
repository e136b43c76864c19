// SPDX-License-Identifier: Apache-2.0
package io.broadhead.job.bench;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Duration;

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

  private static long othersTicks() {
    try {
      // user, nice, system, idle, iowait, irq, softirq, steal
      long[] all = numbers(Files.readString(ALL).lines().findFirst().orElse(""), "cpu");
      // Behind the command's closing parenthesis; utime, stime, and the same of ended children.
      long[] own = numbers(Files.readString(OWN), ")");
      return all[0] + all[1] + all[2] + all[5] + all[6] + all[7] - own[10] - own[11];
    } catch (IOException | RuntimeException e) {
      return 0;
    }
  }

  /** The fields behind the last {@code mark}; 0 for those that are no numbers. */
  private static long[] numbers(String line, String mark) {
    String[] fields = line.substring(line.lastIndexOf(mark) + mark.length()).trim().split("\\s+");
    long[] numbers = new long[fields.length];
    for (int i = 0; i < fields.length; i++) {
      numbers[i] = fields[i].matches("-?\\d+") ? Long.parseLong(fields[i]) : 0;
    }
    return numbers;
  }
}
