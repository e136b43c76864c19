// SPDX-License-Identifier: Apache-2.0
package io.broadhead.job.sink;

import java.time.Instant;
import java.time.ZoneOffset;
import java.time.format.DateTimeFormatter;
import java.util.concurrent.atomic.AtomicReference;
import org.apache.flink.streaming.api.functions.sink.filesystem.OutputFileConfig;

/**
 * Part file names that sort in the order in which the parts were begun. Flink's own are random from
 * checkpoint to checkpoint, so a reader could not tell which steps of a sequence came first.
 */
final class PartNames extends OutputFileConfig {
  private static final long serialVersionUID = 1L;

  private static final DateTimeFormatter FORMAT =
      DateTimeFormatter.ofPattern("yyyyMMdd'T'HHmmss.nnnnnnnnn").withZone(ZoneOffset.UTC);
  private static final AtomicReference<Instant> LAST = new AtomicReference<>(Instant.EPOCH);

  private final String kind;

  PartNames(String kind, String suffix) {
    super(kind, suffix);
    this.kind = kind;
  }

  @Override
  public String getPartPrefix() {
    return next(kind);
  }

  /** A name behind those of all parts that were begun before, and ahead of all others. */
  static String next(String kind) {
    Instant begun =
        LAST.updateAndGet(
            last -> {
              Instant now = Instant.now();
              return now.isAfter(last) ? now : last.plusNanos(1);
            });
    return kind + "-" + FORMAT.format(begun);
  }
}
