// SPDX-License-Identifier: Apache-2.0
package io.broadhead.attention;

import io.broadhead.attention.cache.KvCacheManager;
import io.broadhead.attention.cache.RowRefusedException;
import io.broadhead.attention.cache.RowRequest;
import io.broadhead.attention.cache.StepFullException;
import io.broadhead.kernel.ErrorCode;
import io.broadhead.kernel.KernelException;
import io.broadhead.kernel.StepPart;
import java.util.ArrayList;
import java.util.List;

/**
 * What is in a step: runs of rows and, with managed block tables, the places of their tokens. Rows
 * for which there is no place are refused, or left to a later step if there may be one then.
 *
 * <p>Used again for each step, by one thread: runs are added, then the plan is committed or rolled
 * back, and cleared.
 */
final class StepPlan {
  private final OutOfBlocks outOfBlocks;
  private final List<Placed> placed = new ArrayList<>();

  /** Null without managed block tables. */
  private KvCacheManager manager;

  /** A part of a step, and what it was taken from. */
  record Placed(StepPart part, RowRun run) {
    BoundLayer layer() {
      return run.batch().layer();
    }

    void giveBack() {
      layer().giveBack(part);
    }
  }

  private enum Place {
    /** In the step. */
    PLACED,
    /** Left out of its batch. */
    REFUSED,
    /** To be placed in a later step. */
    LATER
  }

  StepPlan(OutOfBlocks outOfBlocks) {
    this.outOfBlocks = outOfBlocks;
  }

  /** Uses {@code blockTables} from the next step on. */
  void manage(KvCacheManager blockTables) {
    manager = blockTables;
  }

  /** What is in the step, in order; whoever uses it gives the parts back. */
  List<Placed> placed() {
    return placed;
  }

  /** Rows of all parts of a step. */
  static int rows(List<Placed> step) {
    int rows = 0;
    for (Placed placed : step) {
      rows += placed.part.rows();
    }
    return rows;
  }

  /** The row that is number {@code row} of all parts. */
  RowRun row(long row) {
    long left = row;
    for (Placed each : placed) {
      if (left < each.run.count()) {
        return each.run.rows(each.run.row() + (int) left, 1);
      }
      left -= each.run.count();
    }
    throw new IndexOutOfBoundsException("row " + row + " of a step of " + rows(placed));
  }

  /** The step was computed. */
  void commit() {
    if (manager != null) {
      manager.commit();
    }
  }

  /** The step is not computed: the cache is as it was before. */
  void rollBack() {
    if (manager != null) {
      manager.rollBack();
    }
  }

  void clear() {
    placed.clear();
  }

  /**
   * Adds a run to the step, or those of its rows that fit.
   *
   * @param stays whether the step is to be computed: only then is a sequence lost for which there
   *     are no blocks
   * @return false if the step is full
   * @throws KernelException if there are no blocks and that is to fail
   */
  boolean add(RowRun run, boolean stays) {
    BoundLayer layer = run.batch().layer();
    if (!layer.isManaged()) {
      placed.add(new Placed(layer.takePart(), run));
      return true;
    }
    int end = run.row() + run.count();
    int row = run.row();
    while (row < end) {
      StepPart part = layer.takePart();
      boolean kept = false;
      Place place = Place.PLACED;
      int first = row;
      try {
        part.planned().clear();
        while (row < end && place == Place.PLACED) {
          place = placeOrRefuse(run, row, part, stays);
          row += place == Place.PLACED ? 1 : 0;
        }
        kept = row > first;
      } finally {
        if (!kept) {
          layer.giveBack(part);
        }
      }
      if (kept) {
        placed.add(new Placed(part, run.isWhole() ? run.rows(first, row - first) : run));
      }
      if (place == Place.LATER) {
        return false;
      }
      row += place == Place.REFUSED ? 1 : 0;
    }
    return true;
  }

  private Place placeOrRefuse(RowRun run, int row, StepPart part, boolean stays) {
    PendingBatch batch = run.batch();
    int to = run.isWhole() ? batch.rows().tokens(row) : run.to();
    try {
      RowRequest request = batch.request(row, run.from(), to);
      return place(batch, row, request, part, stays);
    } catch (RowRefusedException e) {
      batch.refuse(row, e.code(), e.getMessage());
      return Place.REFUSED;
    }
  }

  private Place place(PendingBatch batch, int row, RowRequest request, StepPart part, boolean stays)
      throws RowRefusedException {
    int shard = batch.shard(row);
    try {
      manager.plan(shard, request, part.planned());
      return Place.PLACED;
    } catch (StepFullException e) {
      if (!placed.isEmpty() || part.planned().rows() > 0) {
        return Place.LATER;
      }
      RowRefusedException shortage = manager.shortage(shard, request, e);
      if (outOfBlocks == OutOfBlocks.FAIL) {
        RefusedRow refused = batch.refused(row, shortage.code(), shortage.getMessage());
        throw new KernelException(shortage.code(), row, refused.toString());
      }
      if (stays) {
        manager.giveUp(shard, request);
      }
      throw shortage;
    } catch (RowRefusedException e) {
      if (stays && e.code() == ErrorCode.SEQUENCE_LOST) {
        manager.passOver(shard, request);
      }
      throw e;
    }
  }
}
