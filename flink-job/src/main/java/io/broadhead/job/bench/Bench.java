// SPDX-License-Identifier: Apache-2.0
package io.broadhead.job.bench;

import io.broadhead.attention.AttentionConfig;
import io.broadhead.kernel.EngineConfig;
import java.time.Duration;
import java.util.ArrayList;
import java.util.List;
import java.util.Optional;

/**
 * Measures cells: ours beside limits and peers. Everything that a cell needs is freed behind it.
 * Used by one thread.
 */
public final class Bench {
  private final String backend;
  private final int device;
  private final Duration time;
  private final List<Peer> peers;
  private final List<Variant> variants;

  /**
   * @param backend {@code auto}, or a backend's name
   * @param time for the samples of a cell
   * @param variants of each cell, timed beside it
   */
  public Bench(
      String backend, int device, Duration time, List<Peer> peers, List<Variant> variants) {
    this.backend = backend;
    this.device = device;
    this.time = time;
    this.peers = List.copyOf(peers);
    this.variants = List.copyOf(variants);
  }

  /** Why a cell cannot be measured here, or empty if it can. */
  public Optional<String> refusal(Cell cell) {
    long holders = 1 + peersOf(cell).size();
    long needed = holders * bytes(cell.shape());
    for (Variant variant : variants) {
      needed += bytes(variant.change().apply(cell).shape());
    }
    long available = AvailableMemory.bytes();
    return needed <= available
        ? Optional.empty()
        : Optional.of(AvailableMemory.refusal(needed, available));
  }

  private static long bytes(StepShape shape) {
    return shape.copies() * shape.contextBytes();
  }

  /** Why {@code peer} does not take part in {@code cell}, or empty if it does. */
  public Optional<String> refusal(Peer peer, Cell cell) {
    if (cell.mode() == Mode.STEP) {
      return Optional.of("a step has parts of its own");
    }
    long needed = peers.size() * bytes(cell.shape());
    long available = AvailableMemory.directBytes();
    return needed > available
        ? Optional.of(AvailableMemory.directRefusal(needed, available))
        : PeerWorkload.refusal(peer, cell.shape());
  }

  private List<Peer> peersOf(Cell cell) {
    return peers.stream().filter(peer -> refusal(peer, cell).isEmpty()).toList();
  }

  /** Measures one cell. */
  public List<Result> measure(Cell cell) {
    return cell.mode() == Mode.STEP ? step(cell) : kernels(cell);
  }

  private List<Result> step(Cell cell) {
    AttentionConfig config = new AttentionConfig(backend, cell.threads(), device);
    try (StepWorkload workload = new StepWorkload(cell.shape(), config)) {
      return results(cell, workload.steps(), workload.parts());
    }
  }

  private List<Result> kernels(Cell cell) {
    try (Opened opened = new Opened()) {
      KernelWorkload workload = opened.keep(workload(cell));
      List<Contender> others = new ArrayList<>(workload.limits());
      for (Variant variant : variants) {
        others.add(
            opened
                .keep(workload(variant.change().apply(cell)))
                .steps(variant.name(), Contender.Kind.VARIANT));
      }
      for (Peer peer : peersOf(cell)) {
        others.add(opened.keep(new PeerWorkload(peer, cell.shape(), cell.threads())).contender());
      }
      return results(cell, workload.steps(KernelWorkload.OURS, Contender.Kind.OURS), others);
    }
  }

  private KernelWorkload workload(Cell cell) {
    return new KernelWorkload(cell.shape(), new EngineConfig(backend, cell.threads(), device));
  }

  private List<Result> results(Cell cell, Contender ours, List<Contender> others) {
    List<Timing> timings = new Interleaving(time).run(ours, others);
    double garbage = Garbage.perRun(ours);
    return timings.stream()
        .map(
            timing ->
                new Result(
                    cell,
                    timing.contender().name(),
                    timing.contender().kind(),
                    timing.nanos() / 1000,
                    timing.timesOurs(),
                    timing.samples(),
                    timing.disturbed(),
                    timing.contender() == ours ? garbage : Double.NaN))
        .toList();
  }
}
