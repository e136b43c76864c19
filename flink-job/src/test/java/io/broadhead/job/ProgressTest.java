// SPDX-License-Identifier: Apache-2.0
package io.broadhead.job;

import static org.assertj.core.api.Assertions.assertThat;

import java.io.PrintWriter;
import java.io.StringWriter;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicLong;
import org.junit.jupiter.api.Test;

class ProgressTest {
  private final StringWriter out = new StringWriter();
  private final AtomicLong nanos = new AtomicLong();

  private Progress progress(boolean enabled, long total) {
    return new Progress(new PrintWriter(out), enabled, total, nanos::get);
  }

  @Test
  void showsBatchesTokensAndTimeLeft() {
    try (Progress progress = progress(true, 40)) {
      progress.update(1, 10);
      assertThat(out.toString()).as("not at every step").isEmpty();
      nanos.set(TimeUnit.SECONDS.toNanos(2));
      progress.update(10, 500);
      assertThat(out.toString()).isEqualTo("\r\u001b[K10/40 batches, 250 tokens/s, 6 s left");
    }
    assertThat(out.toString()).endsWith("\r\u001b[K");
  }

  @Test
  void showsTheTimeWhereNobodyKnowsTheEnd() {
    try (Progress progress = progress(true, -1)) {
      nanos.set(TimeUnit.SECONDS.toNanos(4));
      progress.update(8, 100);
    }
    assertThat(out.toString()).contains("8 batches, 25 tokens/s, 4 s");
  }

  @Test
  void isSilentWhereThereIsNoTerminal() {
    try (Progress progress = progress(false, 40)) {
      nanos.set(TimeUnit.SECONDS.toNanos(9));
      progress.update(8, 100);
    }
    assertThat(out.toString()).isEmpty();
  }
}
