// SPDX-License-Identifier: Apache-2.0
package io.broadhead.job.bench;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.within;

import java.time.Duration;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.atomic.AtomicLong;
import org.junit.jupiter.api.Test;

class InterleavingTest {
  private static final Interleaving BRIEF = new Interleaving(Duration.ofMillis(1));

  /** The machine gets slower with every sample. */
  private final AtomicLong slowness = new AtomicLong(100_000_000);

  private final List<String> order = new ArrayList<>();

  private Contender contender(String name, Contender.Kind kind, double cost) {
    return new Contender(
        name,
        kind,
        () -> {
          order.add(name);
          return (long) (cost * slowness.addAndGet(100_000));
        });
  }

  @Test
  void ratiosAreThoseOfNeighbours() {
    List<Timing> timings =
        BRIEF.run(
            contender("ours", Contender.Kind.OURS, 2),
            List.of(
                contender("limit", Contender.Kind.LIMIT, 1),
                contender("peer", Contender.Kind.PEER, 7)));

    assertThat(timings.stream().map(t -> t.contender().name()))
        .containsExactly("ours", "limit", "peer");
    assertThat(timings.get(0).timesOurs()).isEqualTo(1);
    assertThat(timings.get(1).timesOurs()).isEqualTo(0.5, within(0.01));
    assertThat(timings.get(2).timesOurs()).isEqualTo(3.5, within(0.05));
    assertThat(timings.get(1).samples()).isGreaterThanOrEqualTo(3);
    assertThat(timings.get(0).samples()).isEqualTo(2 * timings.get(1).samples());
    assertThat(String.join(" ", order)).contains("ours limit ours peer ours limit");
  }

  @Test
  void theFirstRunOfABurstIsLeftOut() {
    AtomicLong runs = new AtomicLong();
    Contender wakesUp =
        new Contender(
            "ours", Contender.Kind.OURS, () -> runs.getAndIncrement() % 5 == 0 ? 500_000 : 100_000);

    // After a slow first run four more make the sample.
    assertThat(BRIEF.run(wakesUp, List.of()).get(0).nanos()).isEqualTo(100_000);
  }
}
