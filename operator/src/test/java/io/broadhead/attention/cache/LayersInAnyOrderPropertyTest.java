// SPDX-License-Identifier: Apache-2.0
package io.broadhead.attention.cache;

import static org.assertj.core.api.Assertions.assertThat;

import io.broadhead.arrow.Allocators;
import io.broadhead.attention.testing.SavedCache;
import io.broadhead.kernel.ErrorCode;
import io.broadhead.kernel.PlannedRows;
import java.util.ArrayList;
import java.util.Iterator;
import java.util.List;
import net.jqwik.api.ForAll;
import net.jqwik.api.Property;
import net.jqwik.api.constraints.IntRange;
import net.jqwik.api.constraints.Size;
import org.apache.arrow.memory.BufferAllocator;

/**
 * Ids that begin again, while each layer comes to their rows when it likes: a row reads what its
 * sequence has, or is refused as long as the sequence before it of its id lives in another layer.
 */
class LayersInAnyOrderPropertyTest {
  private static final int BLOCK = 4;
  private static final int IDS = 2;
  private static final int SEQUENCES = 4;

  private static final LayerRole FIRST = new LayerRole(0, "first", 0, 0, false);
  private static final LayerRole SECOND = new LayerRole(1, "second", 1, 1, false);
  private static final LayerRole SHARING = new LayerRole(2, "sharing", 0, 0, false);
  private static final LayerRole CROSS = new LayerRole(3, "cross", 2, 3, true);
  private static final List<LayerRole> LAYERS = List.of(FIRST, SECOND, SHARING, CROSS);

  /** One of the sequences of an id, after another. */
  private record Generation(int crossTokens, int[] rows) {}

  /** How far a layer has come with an id. */
  private static final class Progress {
    int generation;
    int row;
    int tokens;

    boolean isBehind(Progress other) {
      return generation < other.generation || generation == other.generation && row < other.row;
    }
  }

  private static final class Schedule implements AutoCloseable {
    final Iterator<Integer> choices;
    final TaggedMemory memory = new TaggedMemory(3, BLOCK, 100);
    final KvCacheManager manager =
        new KvCacheManager(
            new CacheShape(BLOCK, 100, LAYERS), memory, new SavedCache().stores(), false);
    final BufferAllocator allocator = Allocators.root();
    final PlannedRows places = new PlannedRows(allocator);
    final List<List<Generation>> sequences = new ArrayList<>();
    final Progress[][] progress = new Progress[IDS][LAYERS.size()];

    Schedule(List<Integer> choices) {
      this.choices = choices.iterator();
      for (int id = 0; id < IDS; id++) {
        sequences.add(new ArrayList<>());
        for (int i = 0; i < SEQUENCES; i++) {
          int[] rows = new int[1 + choose(3)];
          for (int row = 0; row < rows.length; row++) {
            rows[row] = 1 + choose(6);
          }
          sequences.get(id).add(new Generation(1 + choose(6), rows));
        }
        for (int layer = 0; layer < LAYERS.size(); layer++) {
          progress[id][layer] = new Progress();
        }
      }
    }

    int choose(int bound) {
      return choices.hasNext() ? choices.next() % bound : 0;
    }

    void run() {
      while (choices.hasNext()) {
        row(choose(IDS), LAYERS.get(choose(LAYERS.size())));
      }
      for (int id = 0; id < IDS; id++) {
        while (living(id) < SEQUENCES) {
          for (LayerRole layer : LAYERS) {
            row(id, layer);
          }
        }
      }
      assertThat(manager.sequences()).isZero();
      assertThat(manager.free()).isEqualTo(manager.capacity());
    }

    /** The sequence of an id that has not ended in all layers. */
    int living(int id) {
      int living = SEQUENCES;
      for (Progress each : progress[id]) {
        living = Math.min(living, each.generation);
      }
      return living;
    }

    /** The next row of an id in a layer. */
    void row(int id, LayerRole layer) {
      Progress at = progress[id][layer.index()];
      if (at.generation == SEQUENCES
          || !layer.writes() && !at.isBehind(progress[id][layer.owner()])) {
        return;
      }
      Generation sequence = sequences.get(id).get(at.generation);
      int tokens = sequence.rows[at.row];
      int crossTokens = at.row == 0 ? sequence.crossTokens : 0;
      int keys = layer.cross() ? crossTokens : layer.writes() ? tokens : 0;
      boolean ends = at.row == sequence.rows.length - 1;
      RowRequest request =
          new RowRequest(
              (long) id, null, layer, tokens, keys, 0, RowRequest.UNKNOWN, null, 0, ends);
      try {
        manager.plan(0, request, places);
        assertThat(at.generation).as("%s", request).isEqualTo(living(id));
        compute(id, layer, at, keys);
        at.tokens += layer.cross() ? keys : tokens;
        at.row++;
        if (ends) {
          at.generation++;
          at.row = 0;
          at.tokens = 0;
        }
      } catch (RowRefusedException e) {
        assertThat(at.generation).as(e.getMessage()).isGreaterThan(living(id));
        assertThat(e.code()).isEqualTo(ErrorCode.INVALID_ROW);
        assertThat(e)
            .hasMessageStartingWith(
                "column sequence_id: sequence %d has ended in layer %s and not in layer ",
                id, layer.name());
        manager.rollBack();
      } catch (StepFullException e) {
        throw new AssertionError(e);
      } finally {
        places.clear();
      }
    }

    void compute(int id, LayerRole layer, Progress at, int keys) {
      long[] slots = places.slots(0);
      int seqLen = places.seqLen(0);
      assertThat(slots).hasSize(keys);
      for (int i = 0; i < keys; i++) {
        memory.set(layer.cache(), slots[i], tag(id, layer, at, seqLen - keys + i));
      }
      int[] blocks = places.blocks(0);
      for (int position = 0; position < seqLen; position++) {
        assertThat(memory.get(layer.cache(), blocks[position / BLOCK], position % BLOCK))
            .isEqualTo(tag(id, layer, at, position));
      }
      assertThat(seqLen)
          .isEqualTo(
              layer.cross()
                  ? sequences.get(id).get(at.generation).crossTokens
                  : at.tokens + sequences.get(id).get(at.generation).rows[at.row]);
      manager.commit();
    }

    /** What a cache has of the token at a position of a sequence. */
    static long tag(int id, LayerRole layer, Progress at, int position) {
      return ((id * 100L + at.generation) * 100 + layer.cache()) * 1000 + position;
    }

    @Override
    public void close() {
      places.close();
      allocator.close();
    }
  }

  @Property(tries = 1000)
  void rowsReadTheirSequenceOrWaitForTheOtherLayers(
      @ForAll @Size(min = 50, max = 300) List<@IntRange(max = 9999) Integer> choices) {
    try (Schedule schedule = new Schedule(choices)) {
      schedule.run();
    }
  }
}
