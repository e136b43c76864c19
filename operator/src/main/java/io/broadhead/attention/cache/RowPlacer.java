// SPDX-License-Identifier: Apache-2.0
package io.broadhead.attention.cache;

import io.broadhead.kernel.PlannedRows;

/**
 * Where a row is in its sequence: the positions of its tokens, which {@link TokenWriter} finds
 * blocks for, and whether what it reads before them was written. Used by one thread.
 */
final class RowPlacer {
  private final CacheShape shape;
  private final TokenWriter writer;
  private final UndoLog undo;

  RowPlacer(CacheShape shape, TokenWriter writer, UndoLog undo) {
    this.shape = shape;
    this.writer = writer;
    this.undo = undo;
  }

  /**
   * Places the tokens of a row, and notes in the log how to take that back.
   *
   * @param isFirst whether no other row of the step was planned before
   * @throws RowRefusedException if the row does not fit what the cache has of its sequence
   * @throws StepFullException if the rows that were planned before are to be computed first
   */
  void place(Sequence sequence, RowRequest row, boolean isFirst, PlannedRows places)
      throws RowRefusedException, StepFullException {
    LayerRole layer = row.layer();
    int count = layer.newTokens(row.queries(), row.keys());
    boolean follows = layer.cross() && !layer.writes();
    int before = sequence.planned[layer.index()];
    int start = follows ? sequence.planned[layer.owner()] : before;
    if (!layer.writes() && !follows && (long) row.seqLen() - count > start) {
      start = row.seqLen() - count; // the rows between brought keys and no queries
    }
    int end = start + count;
    if (row.seqLen() != RowRequest.UNKNOWN && row.seqLen() != end) {
      throw RowRefusedException.badRow(
          "column seq_len: %d, expected %d (%d tokens in the cache and %d new ones)",
          row.seqLen() + row.later(), end + row.later(), start, count + row.later());
    }
    if (row.endsAtOnce()) {
      places.endRow(0); // it sees nothing, wherever the blocks are
      return;
    }
    BlockTable table = sequence.table(layer.cross());
    verifyForked(sequence, layer, table, isFirst);
    if (layer.writes()) {
      writer.write(sequence, row, start, end, places);
    } else {
      requireWritten(sequence, layer, table, before, end + row.later());
    }
    undo.add(() -> sequence.planned[layer.index()] = before);
    sequence.planned[layer.index()] = end;
    places.addBlocks(table.places(), blocks(end));
    places.endRow(end);
  }

  private int blocks(int tokens) {
    return (tokens + shape.blockSize() - 1) / shape.blockSize();
  }

  /** The tokens that were taken from the parent must be in this layer's cache by now. */
  private void verifyForked(Sequence sequence, LayerRole layer, BlockTable table, boolean isFirst)
      throws RowRefusedException, StepFullException {
    if (!sequence.unverified.get(layer.index())) {
      return;
    }
    if (!isFirst) {
      throw new StepFullException("the parent's tokens may be in the step that is being planned");
    }
    requireWritten(sequence, layer, table, 0, sequence.done[layer.index()]);
    sequence.unverified.clear(layer.index());
  }

  private void requireWritten(
      Sequence sequence, LayerRole layer, BlockTable table, int start, int end)
      throws RowRefusedException {
    for (int position = start; position < end; ) {
      int index = position / shape.blockSize();
      int to = Math.min(end - index * shape.blockSize(), shape.blockSize());
      int written = index < table.size() ? table.get(index).written[layer.cache()] : 0;
      if (written < to) {
        throw RowRefusedException.badRow(
            "column sequence_id: sequence %s has %d tokens in the cache that layer %s reads,"
                + " expected %d (those of %s come first)",
            sequence.id,
            index * shape.blockSize() + written,
            layer.name(),
            end,
            layer.writes()
                ? "its parent " + sequence.parent
                : shape.layers().get(layer.owner()).name());
      }
      position = index * shape.blockSize() + to;
    }
  }
}
