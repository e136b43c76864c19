// SPDX-License-Identifier: Apache-2.0
package io.broadhead.job.bench;

import java.util.ArrayList;
import java.util.List;
import java.util.Optional;

/**
 * The steps of one peer for a shape. No peer takes rows that differ in one call, so that there is a
 * call for each kind of row. Its owner closes it.
 */
final class PeerWorkload implements AutoCloseable {
  private static final long SEED = 2;

  private final Peer peer;
  private final Opened opened = new Opened();
  private final List<Peer.Steps> calls = new ArrayList<>();

  PeerWorkload(Peer peer, StepShape shape, int threads) {
    this.peer = peer;
    NormalValues values = new NormalValues(shape.dtype(), SEED);
    try {
      for (StepShape alike : alike(shape)) {
        calls.add(opened.keep(peer.open(alike, threads, values::fill)));
      }
    } catch (RuntimeException | Error e) {
      close();
      throw e;
    }
  }

  /** Why {@code peer} cannot do steps of {@code shape}, or empty if it can. */
  static Optional<String> refusal(Peer peer, StepShape shape) {
    if (!shape.attends()) {
      return Optional.of("it has no cache to update");
    }
    if (shape.dtype() != shape.cacheDtype()) {
      return Optional.of("its keys and values have the type of its queries");
    }
    return alike(shape).stream().flatMap(alike -> peer.refusal(alike).stream()).findFirst();
  }

  private static List<StepShape> alike(StepShape shape) {
    return shape.rows().stream().map(rows -> shape.withRows(List.of(rows))).toList();
  }

  Contender contender() {
    return Contender.timed(peer.name(), Contender.Kind.PEER, () -> calls.forEach(Peer.Steps::run));
  }

  @Override
  public void close() {
    opened.close();
  }
}
