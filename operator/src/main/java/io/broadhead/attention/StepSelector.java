// SPDX-License-Identifier: Apache-2.0
package io.broadhead.attention;

import java.util.ArrayList;
import java.util.BitSet;
import java.util.HashSet;
import java.util.List;
import java.util.Set;

/**
 * Chooses what the next step computes: rows of the oldest batch and of younger ones of its layer,
 * within a budget of new tokens.
 *
 * <p>A row of more than half the budget is computed in pieces, one in each step: half the budget,
 * and what the others leave. So a long prompt neither holds up the others nor is held up by them.
 * Rows of one sequence keep their order. Where producers bring their own block tables, so do rows
 * of which one writes to a block that the other one touches; a batch whose rows read what others of
 * it write is one step, however long.
 *
 * <p>Used by one thread.
 */
final class StepSelector {
  private final int maxTokens;
  private final ExternalConflicts conflicts = new ExternalConflicts();

  private final List<RowRun> runs = new ArrayList<>();

  /** Sequences of which something waits: later rows of them do, too. */
  private final Set<Object> waiting = new HashSet<>();

  /** New tokens that the step may still take. */
  private long budget;

  /** Index among the runs of the piece of a long row, or -1. */
  private int piece;

  /**
   * @param maxTokens new tokens of a step, or 0: each batch is a step by itself
   */
  StepSelector(int maxTokens) {
    this.maxTokens = maxTokens;
  }

  /** Runs of one step, of batches in the order of {@code pending}; of the oldest one at least. */
  List<RowRun> choose(Iterable<PendingBatch> pending) {
    runs.clear();
    waiting.clear();
    conflicts.clear();
    budget = maxTokens;
    piece = -1;
    PendingBatch oldest = null;
    for (PendingBatch batch : pending) {
      if (batch.isDone()) {
        continue; // its result follows another one
      }
      if (oldest == null) {
        oldest = batch;
      } else if (batch.layer().spec() != oldest.layer().spec() && batch.layer().isManaged()) {
        if (batch.layer().writesCache() >= 0) {
          break; // what comes after it may read what it writes
        }
        continue;
      } else if (!batch.layer().joins(oldest.layer())) {
        break;
      }
      if (maxTokens == 0) {
        addAll(batch, runs);
        return runs;
      }
      if (!addFrom(batch)) {
        break;
      }
    }
    if (piece >= 0 && budget > 0) {
      lengthenPiece();
    }
    return runs;
  }

  /** All rows of a batch that are still to be computed. */
  static List<RowRun> all(PendingBatch batch) {
    List<RowRun> all = new ArrayList<>();
    addAll(batch, all);
    return all;
  }

  private static void addAll(PendingBatch batch, List<RowRun> to) {
    for (int row = batch.nextOpen(0), end; row >= 0; row = batch.nextOpen(end)) {
      for (end = row + 1; batch.nextOpen(end) == end; end++) {
        continue;
      }
      to.add(RowRun.rows(batch, row, end - row));
    }
  }

  /** Adds what fits of {@code batch}; false if no later one may be taken. */
  private boolean addFrom(PendingBatch batch) {
    boolean isExternal = batch.layer().isExternal();
    if (isExternal && !addConflicts(batch)) {
      return false;
    }
    if (batch.tokensLeft() > budget && !batch.isSeparable()) {
      if (runs.isEmpty()) {
        addAll(batch, runs);
        budget = 0;
      }
      return false;
    }
    for (int row = batch.nextOpen(0); row >= 0 && budget > 0; row = batch.nextOpen(row + 1)) {
      if (!addOrWait(batch, row) && isExternal) {
        conflicts.leave(batch, row);
      }
    }
    return budget > 0;
  }

  /**
   * Has rows wait whose blocks say so; false if no row of the batch may be taken. Without a long
   * row in the step they do not wait for long, so that nothing need overtake them.
   */
  private boolean addConflicts(PendingBatch batch) {
    BitSet held = conflicts.add(batch);
    if (!held.isEmpty() && piece < 0) {
      return false;
    }
    held.stream().mapToObj(batch.rows()::sequence).forEach(waiting::add);
    return waiting.isEmpty() || !waitsInPart(batch) || batch.isSeparable();
  }

  private boolean waitsInPart(PendingBatch batch) {
    boolean anyWaits = false;
    boolean anyGoes = false;
    for (int row = batch.nextOpen(0); row >= 0; row = batch.nextOpen(row + 1)) {
      boolean waits = waiting.contains(batch.rows().sequence(row));
      anyWaits |= waits;
      anyGoes |= !waits;
    }
    return anyWaits && anyGoes;
  }

  /** Adds a row, or a piece of it; false if some of it has to wait. */
  private boolean addOrWait(PendingBatch batch, int row) {
    Object sequence = batch.rows().sequence(row);
    if (waiting.contains(sequence)) {
      return false;
    }
    boolean begun = batch.tokensDone(row) > 0;
    if (!begun && fits(batch, row)) {
      addRow(batch, row);
      budget -= batch.rows().tokens(row);
      return true;
    }
    if (piece < 0 && (begun || batch.isDivisible(row))) {
      addPiece(batch, row);
    }
    waiting.add(sequence);
    return false;
  }

  /** Whether a row is taken as a whole: a short one, or one that must be. */
  private boolean fits(PendingBatch batch, int row) {
    int tokens = batch.rows().tokens(row);
    return tokens <= Math.min(budget, maxTokens / 2)
        || !batch.isDivisible(row) && (tokens <= budget || runs.isEmpty());
  }

  /** The step's one piece of a long row; {@link #lengthenPiece} adds to it what others leave. */
  private void addPiece(PendingBatch batch, int row) {
    int from = batch.tokensDone(row);
    long left = Math.min(batch.rows().tokens(row) - from, budget);
    int tokens = (int) Math.min(left, Math.max(1, maxTokens / 2));
    piece = runs.size();
    runs.add(RowRun.tokens(batch, row, from, from + tokens));
    budget -= tokens;
  }

  private void addRow(PendingBatch batch, int row) {
    RowRun last = runs.isEmpty() ? null : runs.get(runs.size() - 1);
    boolean follows =
        last != null && last.isWhole() && last.batch() == batch && last.row() + last.count() == row;
    if (follows) {
      runs.set(runs.size() - 1, RowRun.rows(batch, last.row(), last.count() + 1));
    } else {
      runs.add(RowRun.rows(batch, row, 1));
    }
  }

  /** What is left of the budget goes to the long row. */
  private void lengthenPiece() {
    RowRun run = runs.get(piece);
    int tokens = run.batch().rows().tokens(run.row());
    int to = (int) Math.min(tokens, run.to() + budget);
    boolean whole = run.from() == 0 && to == tokens;
    runs.set(
        piece,
        whole
            ? RowRun.rows(run.batch(), run.row(), 1)
            : RowRun.tokens(run.batch(), run.row(), run.from(), to));
  }
}
