// SPDX-License-Identifier: Apache-2.0
package io.broadhead.job.bench;

import java.time.Duration;
import java.util.ArrayList;
import java.util.List;

/**
 * Times contenders in turns. A machine's speed changes while it is measured, so what counts is the
 * ratio of two samples that were taken one after the other: each round takes a sample of ours
 * before each one of the others.
 *
 * <p>A sample is the median of a short burst of runs, without its first: threads that slept wake up
 * in that one. Rounds in which other processes worked are left out if there are enough others. Used
 * by one thread.
 */
final class Interleaving {
  private static final double BURST_NANOS = 2e6;
  private static final int LEAST_RUNS = 2;
  private static final int MOST_RUNS = 32;

  /** A run that is so long is a sample by itself: waking up does not show in it. */
  private static final double LONG_NANOS = 5e7;

  private static final double WARM_UP_NANOS = 2e8;
  private static final int LEAST_ROUNDS = 3;
  private static final int MOST_ROUNDS = 50;

  /** Rounds go on for up to so many times the budget while fewer than the least were quiet. */
  private static final int PATIENCE = 3;

  /** Threads of other libraries spin on for some 20 ms after a run, and would slow the next. */
  private static final Duration PEERS_REST = Duration.ofMillis(50);

  private static final Duration WATCH = Duration.ofMillis(250);

  private final Duration budget;

  /** One sample of ours and one of another contender right after it. */
  private record Pair(double ours, double other) {}

  /** A pair for each of the others. */
  private record Round(List<Pair> pairs, boolean disturbed) {}

  /**
   * @param budget time for all samples of all contenders together
   */
  Interleaving(Duration budget) {
    this.budget = budget;
  }

  /**
   * Times {@code ours} beside each of {@code others}.
   *
   * @return ours, then the others in their order
   */
  List<Timing> run(Contender ours, List<Contender> others) {
    warmUp(ours);
    others.forEach(Interleaving::warmUp);
    List<Contender> partners = others.isEmpty() ? List.of(ours) : others;
    List<Round> rounds = new ArrayList<>();
    long start = System.nanoTime();
    while (rounds.size() < MOST_ROUNDS) {
      long elapsed = System.nanoTime() - start;
      long quiet = rounds.stream().filter(round -> !round.disturbed).count();
      long patience = quiet < LEAST_ROUNDS ? PATIENCE : 1;
      if (rounds.size() >= LEAST_ROUNDS && elapsed > patience * budget.toNanos()) {
        break;
      }
      rounds.addAll(watchedRounds(ours, partners, MOST_ROUNDS - rounds.size()));
    }
    return timings(ours, others, rounds);
  }

  private static void warmUp(Contender contender) {
    double spent = 0;
    for (int i = 0; i < 2 || spent < WARM_UP_NANOS && i < MOST_RUNS * MOST_ROUNDS; i++) {
      spent += contender.run().getAsLong();
    }
    rest(contender);
  }

  /** Rounds over so long that the work of others shows in the system's counters. */
  private List<Round> watchedRounds(Contender ours, List<Contender> partners, int most) {
    List<List<Pair>> rounds = new ArrayList<>();
    OtherWork others = OtherWork.watch();
    while (rounds.size() < most && others.watchedFor().compareTo(WATCH) < 0) {
      rounds.add(round(ours, partners));
    }
    boolean disturbed = others.disturbed();
    return rounds.stream().map(pairs -> new Round(pairs, disturbed)).toList();
  }

  private static List<Pair> round(Contender ours, List<Contender> partners) {
    List<Pair> pairs = new ArrayList<>();
    for (Contender partner : partners) {
      pairs.add(new Pair(sample(ours), sample(partner)));
      rest(partner);
    }
    return pairs;
  }

  /** Nanoseconds of a run. */
  private static double sample(Contender contender) {
    double first = contender.run().getAsLong();
    if (first >= LONG_NANOS) {
      return first;
    }
    int runs = (int) Math.max(LEAST_RUNS, Math.min(MOST_RUNS, BURST_NANOS / first));
    double[] nanos = new double[runs];
    for (int i = 0; i < runs; i++) {
      nanos[i] = contender.run().getAsLong();
    }
    return Statistics.median(nanos);
  }

  private static void rest(Contender contender) {
    if (contender.kind() == Contender.Kind.PEER) {
      try {
        Thread.sleep(PEERS_REST.toMillis());
      } catch (InterruptedException e) {
        Thread.currentThread().interrupt();
      }
    }
  }

  private static List<Timing> timings(Contender ours, List<Contender> others, List<Round> rounds) {
    List<Round> quiet = rounds.stream().filter(round -> !round.disturbed).toList();
    boolean disturbed = quiet.size() < LEAST_ROUNDS;
    List<Round> used = disturbed ? rounds : quiet;
    List<Double> own =
        used.stream().flatMap(round -> round.pairs.stream()).map(Pair::ours).toList();
    List<Timing> timings = new ArrayList<>();
    timings.add(new Timing(ours, Statistics.median(own), 1, own.size(), disturbed));
    for (int i = 0; i < others.size(); i++) {
      int column = i;
      List<Pair> pairs = used.stream().map(round -> round.pairs.get(column)).toList();
      timings.add(
          new Timing(
              others.get(i),
              Statistics.median(pairs.stream().map(Pair::other).toList()),
              Statistics.median(pairs.stream().map(pair -> pair.other / pair.ours).toList()),
              pairs.size(),
              disturbed));
    }
    return timings;
  }
}
