// SPDX-License-Identifier: Apache-2.0
package io.broadhead.attention.cache;

import io.broadhead.kernel.ErrorCode;
import java.util.BitSet;
import java.util.List;
import java.util.Optional;
import java.util.function.Consumer;

/** A token stream and its cache. */
final class Sequence {
  final Shard shard;
  final Object id;

  /** What it was forked from, or null. */
  final Object parent;

  /** Blocks of its own tokens, shared by all layers that attend to them. */
  final BlockTable own = new BlockTable();

  /** Blocks of an encoder's tokens, for cross attention. */
  final BlockTable cross = new BlockTable();

  /** Tokens that steps have computed, for each layer. */
  final int[] done;

  /** The same with those of the step that is being planned. */
  final int[] planned;

  /**
   * Layers in which the tokens taken from the parent must still be found to be there, because the
   * parent had not been through them when it was forked.
   */
  final BitSet unverified = new BitSet();

  /** Layers whose last row has come. */
  final BitSet ended = new BitSet();

  /**
   * Own tokens that it has at its end; 0 while no layer of these has ended, or more than it has.
   */
  int endAt;

  /** The last step that it was planned for. */
  long lastStep = -1;

  /** The step that its last row in a layer was planned for. */
  long endStep = -1;

  /** What happened in steps before this one is saved. */
  long savedBefore;

  /** Whether there is a record of it. */
  boolean wasRecorded;

  /** Whether its blocks have places. */
  boolean resident;

  /** Why its tokens are gone, or null. */
  String lost;

  /** A row that begins it anew may come in layers up to this one. */
  int lostAt;

  /** How many sequences were lost with this one: a row that came before does not begin it anew. */
  long loss;

  Sequence(Shard shard, Object id, Object parent, int layers) {
    this.shard = shard;
    this.id = id;
    this.parent = parent;
    this.done = new int[layers];
    this.planned = new int[layers];
  }

  BlockTable table(boolean isCross) {
    return isCross ? cross : own;
  }

  void forEachBlock(Consumer<CacheBlock> visit) {
    for (BlockTable table : List.of(own, cross)) {
      for (int i = 0; i < table.size(); i++) {
        visit.accept(table.get(i));
      }
    }
  }

  /**
   * Own or cross tokens that every such layer has written which has written any. Those that share a
   * cache need not have come to them.
   */
  int tokensInAllLayers(List<LayerRole> layers, boolean isCross) {
    return layers.stream()
        .filter(layer -> layer.writes() && layer.cross() == isCross && done[layer.index()] > 0)
        .mapToInt(layer -> done[layer.index()])
        .min()
        .orElse(0);
  }

  /**
   * {@code row}, its last one in a layer, was computed. If it brings no tokens, those of the other
   * layers do not tell whether they have seen theirs.
   */
  void endsWith(RowRequest row) {
    LayerRole layer = row.layer();
    ended.set(layer.index());
    if (!layer.cross()) {
      boolean adds = layer.newTokens(row.queries(), row.keys()) > 0;
      endAt = adds ? Math.max(endAt, done[layer.index()]) : Integer.MAX_VALUE;
    }
  }

  /**
   * Whether no layer is {@linkplain #unfinished unfinished}. A sequence that does not go through
   * all layers of the job never gets there: it ends with a row without tokens.
   */
  boolean isOver(List<LayerRole> layers) {
    return !ended.isEmpty() && unfinished(layers).isEmpty();
  }

  /**
   * The first layer that has neither seen its last row, nor has as many tokens as the layers that
   * have.
   */
  Optional<LayerRole> unfinished(List<LayerRole> layers) {
    return layers.stream()
        .filter(
            layer ->
                !ended.get(layer.index())
                    && (layer.cross()
                        || unverified.get(layer.index())
                        || endAt == 0
                        || done[layer.index()] < endAt))
        .findFirst();
  }

  /** Whether {@code row} sends it again from its first token. */
  boolean isRestartedBy(RowRequest row) {
    int tokens = row.layer().newTokens(row.queries(), row.keys());
    return tokens > 0
        && row.seqLen() == tokens
        && row.layer().index() <= lostAt
        && row.knownLosses() >= loss;
  }

  RowRefusedException lostRow() {
    return new RowRefusedException(
        ErrorCode.SEQUENCE_LOST,
        "sequence "
            + id
            + ": "
            + lost
            + "; expected it again from its first token, with seq_len as many as its keys, or after a"
            + " row without tokens that ends it");
  }
}
