// SPDX-License-Identifier: Apache-2.0
package io.broadhead.attention.cache;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.fail;

import io.broadhead.arrow.Allocators;
import io.broadhead.attention.testing.SavedCache;
import io.broadhead.kernel.ErrorCode;
import io.broadhead.kernel.PlannedRows;
import java.util.ArrayList;
import java.util.Collections;
import java.util.HashMap;
import java.util.Iterator;
import java.util.List;
import java.util.Map;
import java.util.function.IntToLongFunction;
import net.jqwik.api.ForAll;
import net.jqwik.api.Property;
import net.jqwik.api.constraints.IntRange;
import net.jqwik.api.constraints.Size;
import org.apache.arrow.memory.BufferAllocator;

/**
 * Random schedules of prompts, decode steps, forks and ends, planned by the manager and carried out
 * on a pool of numbers: every row must read, through its block table, what a plain list of the
 * sequence's tokens says. Now and then the cache is saved, or moves to another pool with nothing
 * but what was saved.
 */
class KvCacheManagerPropertyTest {
  private static final int BLOCK = 4;
  private static final int LONGEST = 40;
  private static final int SHARD = 3;

  private static final LayerRole FIRST = new LayerRole(0, "first", 0, 0, false);
  private static final LayerRole SECOND = new LayerRole(1, "second", 1, 1, false);
  private static final LayerRole SHARING = new LayerRole(2, "sharing", 0, 0, false);
  private static final LayerRole CROSS = new LayerRole(3, "cross", 2, 3, true);
  private static final List<LayerRole> LAYERS = List.of(FIRST, SECOND, SHARING, CROSS);
  private static final int CACHES = 3;

  /** A sequence as a list of what each position holds. */
  private static final class Model {
    final long id;
    final List<Long> tags = new ArrayList<>();
    List<Long> crossTags = new ArrayList<>();
    final int[] done = new int[LAYERS.size()];
    final List<Long> tokenIds = new ArrayList<>();
    boolean hasIds;
    boolean lost;

    Model(long id) {
      this.id = id;
    }

    List<Long> tags(LayerRole layer) {
      return layer.cross() ? crossTags : tags;
    }
  }

  /** New tokens of a sequence in a round: they go through every layer. */
  private record Turn(Model sequence, Model parent, int tokens, int crossTokens, boolean ends) {}

  private record Row(Turn turn, RowRequest request) {}

  /** Runs what a list of choices says, as long as it lasts. */
  private static final class Schedule implements AutoCloseable {
    final Iterator<Integer> choices;
    final boolean maybeGivenUp;
    final boolean swaps;
    SavedCache saved = new SavedCache();
    TaggedMemory memory;
    KvCacheManager manager;
    final BufferAllocator allocator = Allocators.root();
    final PlannedRows places = new PlannedRows(allocator);
    final List<Row> step = new ArrayList<>();
    final Map<Long, Model> alive = new HashMap<>();
    final List<Model> lost = new ArrayList<>();
    long nextId;
    long nextTag;

    Schedule(List<Integer> choices, int numBlocks, boolean swaps, boolean maybeGivenUp) {
      this.choices = choices.iterator();
      this.maybeGivenUp = maybeGivenUp;
      this.swaps = swaps;
      open(numBlocks);
    }

    void open(int numBlocks) {
      memory = new TaggedMemory(CACHES, BLOCK, numBlocks);
      manager =
          new KvCacheManager(
              new CacheShape(BLOCK, numBlocks, LAYERS), memory, saved.stores(), swaps);
    }

    /** Between steps the cache may be saved, and even move. */
    void maybeSave() {
      if (oneIn(5)) {
        manager.save();
        if (oneIn(2)) {
          move();
        }
      }
    }

    void move() {
      long sequences = manager.sequences();
      saved = saved.copy();
      open(manager.capacity() + choose(3));
      manager.restore(SHARD, saved.sequences(SHARD).entrySet(), saved.blocks(SHARD).entrySet());
      assertThat(manager.sequences()).isEqualTo(sequences);
    }

    @Override
    public void close() {
      places.close();
      allocator.close();
    }

    int choose(int bound) {
      return choices.hasNext() ? choices.next() % bound : 0;
    }

    boolean oneIn(int n) {
      return choose(n) == n - 1;
    }

    void run() {
      while (choices.hasNext()) {
        round();
      }
      endAll();
      assertThat(manager.sequences()).isZero();
      assertThat(manager.free()).isEqualTo(manager.capacity());
      fillThePool();
      saved.requireEmpty();
    }

    void round() {
      List<Turn> turns = new ArrayList<>();
      List<Model> before = new ArrayList<>(alive.values());
      for (Model sequence : before) {
        if (sequence.tags.size() < LONGEST && oneIn(2)) {
          turns.add(turn(sequence, null, 1 + choose(5)));
        }
      }
      Model parent = before.isEmpty() || !oneIn(3) ? null : before.get(choose(before.size()));
      Model begun = new Model(nextId++);
      if (parent != null && parent.tags.size() < LONGEST) {
        begun.tags.addAll(parent.tags.subList(0, parent.done[FIRST.index()]));
        begun.crossTags.addAll(parent.crossTags.subList(0, parent.done[CROSS.index()]));
        System.arraycopy(parent.done, 0, begun.done, 0, begun.done.length);
        begun.hasIds = parent.hasIds;
        begun.tokenIds.addAll(parent.tokenIds.subList(0, parent.hasIds ? begun.tags.size() : 0));
        turns.add(turn(begun, parent, 1 + choose(6)));
      } else if (alive.size() < 6) {
        begun.hasIds = oneIn(2);
        turns.add(turn(begun, null, 1 + choose(14)));
      }
      Collections.rotate(turns, choose(3));
      // Rows of a sequence that was given up are told from its return by the order of the layers.
      List<LayerRole> order =
          maybeGivenUp || oneIn(2) ? LAYERS : List.of(CROSS, SECOND, FIRST, SHARING);
      for (LayerRole layer : order) {
        for (Turn turn : turns) {
          rows(layer, turn);
          if (oneIn(4)) {
            compute();
          }
        }
        compute();
        for (Turn turn : turns) {
          if (turn.ends && oneIn(3)) {
            beginAnewInVain(layer, turn.sequence);
          }
        }
        maybeSave();
      }
      for (Turn turn : turns) {
        if (turn.ends || turn.sequence.lost) {
          alive.remove(turn.sequence.id);
        }
        if (turn.sequence.lost) {
          lost.add(turn.sequence);
        }
      }
    }

    /** A step with a row of another sequence of that id fails; other layers may not be done yet. */
    void beginAnewInVain(LayerRole layer, Model sequence) {
      long sequences = manager.sequences();
      int tokens = 1 + choose(6);
      try {
        manager.plan(
            SHARD,
            new RowRequest(
                sequence.id,
                null,
                layer,
                tokens,
                layer.writes() ? tokens : 0,
                0,
                RowRequest.UNKNOWN,
                null,
                manager.losses(),
                false),
            places);
      } catch (RowRefusedException | StepFullException e) {
        assertThat(manager.sequences()).as(e.getMessage()).isEqualTo(sequences);
      }
      manager.rollBack();
      places.clear();
      assertThat(manager.sequences()).isEqualTo(sequences);
    }

    /** Adds the tokens of a turn to the model; equal ids from the start on give equal tags. */
    Turn turn(Model sequence, Model parent, int tokens) {
      boolean first = sequence.tags.isEmpty();
      for (int i = 0; i < tokens; i++) {
        if (sequence.hasIds) {
          sequence.tokenIds.add((long) (sequence.tags.size() < 8 ? 7 : choose(2)));
          sequence.tags.add((long) sequence.tokenIds.hashCode() << 20 | sequence.tags.size());
        } else {
          sequence.tags.add(nextTag++);
        }
      }
      int crossTokens = first ? 1 + choose(6) : 0;
      for (int i = 0; i < crossTokens; i++) {
        sequence.crossTags.add(nextTag++);
      }
      alive.put(sequence.id, sequence);
      return new Turn(sequence, parent, tokens, crossTokens, oneIn(5));
    }

    void rows(LayerRole layer, Turn turn) {
      int keys = layer.cross() ? turn.crossTokens : layer.writes() ? turn.tokens : 0;
      int cut = layer.cross() || turn.tokens == 1 ? 0 : choose(turn.tokens);
      if (cut > 0) {
        row(layer, turn, cut, layer.writes() ? cut : 0, false);
        row(layer, turn, turn.tokens - cut, layer.writes() ? keys - cut : 0, turn.ends);
      } else {
        row(layer, turn, turn.tokens, keys, turn.ends);
      }
    }

    void row(LayerRole layer, Turn turn, int queries, int keys, boolean ends) {
      Model sequence = turn.sequence;
      int start = sequence.done[layer.index()];
      int seqLen = start + (layer.cross() ? keys : Math.max(queries, keys));
      IntToLongFunction ids =
          sequence.hasIds && layer.writes() && !layer.cross()
              ? i -> sequence.tokenIds.get(start + i)
              : null;
      RowRequest request =
          new RowRequest(
              sequence.id,
              turn.parent == null ? null : turn.parent.id,
              layer,
              queries,
              keys,
              0,
              oneIn(2) ? seqLen : RowRequest.UNKNOWN,
              ids,
              manager.losses(),
              ends);
      if (manager.dependsOnAllLayers(SHARD, request)) {
        compute(); // a fork takes what has been computed
      }
      add(new Row(turn, request));
      sequence.done[layer.index()] = seqLen;
    }

    void add(Row row) {
      Model sequence = row.turn.sequence;
      try {
        manager.plan(SHARD, row.request, places);
        assertThat(sequence.lost).isFalse();
        step.add(row);
        if (oneIn(6)) {
          planAgain();
        }
      } catch (RowRefusedException e) {
        boolean orphaned = row.turn.parent != null && row.turn.parent.lost;
        sequence.lost |= orphaned;
        assertThat(sequence.lost).as(e.getMessage()).isTrue();
        if (!orphaned) {
          assertThat(e.code()).as(e.getMessage()).isEqualTo(ErrorCode.SEQUENCE_LOST);
        }
      } catch (StepFullException e) {
        if (!step.isEmpty()) {
          compute();
          add(row);
          return;
        }
        assertThat(maybeGivenUp).as("there is always room").isTrue();
        RowRefusedException refused = manager.shortage(SHARD, row.request, e);
        manager.giveUp(SHARD, row.request);
        assertThat(refused.code()).isEqualTo(ErrorCode.OUT_OF_BLOCKS);
        assertThat(refused).hasMessageContaining("kv_cache.num_blocks");
        sequence.lost = true;
      }
    }

    /** The step fails: everything is taken back, and planned once more. */
    void planAgain() {
      List<Row> rows = List.copyOf(step);
      int free = manager.free();
      manager.rollBack();
      assertThat(manager.free()).isGreaterThanOrEqualTo(free);
      places.clear();
      step.clear();
      for (Row row : rows) {
        try {
          manager.plan(SHARD, row.request, places);
          step.add(row);
        } catch (RowRefusedException | StepFullException e) {
          fail("planned before, refused now: " + e.getMessage());
        }
      }
    }

    /** Carries the planned step out: all writes, then all reads, then what becomes free. */
    void compute() {
      for (int i = 0; i < step.size(); i++) {
        RowRequest request = step.get(i).request;
        long[] slots = places.slots(i);
        int seqLen = places.seqLen(i);
        for (int t = 0; t < slots.length; t++) {
          if (slots[t] >= 0) {
            int position = seqLen - slots.length + t;
            memory.set(
                request.layer().cache(),
                slots[t],
                step.get(i).turn.sequence.tags(request.layer()).get(position));
          }
        }
      }
      for (int i = 0; i < step.size(); i++) {
        check(step.get(i), places.seqLen(i), places.blocks(i));
      }
      manager.commit();
      places.clear();
      step.clear();
    }

    void check(Row row, int seqLen, int[] blocks) {
      LayerRole layer = row.request.layer();
      List<Long> expected = row.turn.sequence.tags(layer);
      assertThat(blocks).hasSize((seqLen + BLOCK - 1) / BLOCK);
      for (int position = 0; position < seqLen; position++) {
        assertThat(memory.get(layer.cache(), blocks[position / BLOCK], position % BLOCK))
            .as("%s, %s, position %d", row.request, layer, position)
            .isEqualTo(expected.get(position));
      }
    }

    void endAll() {
      alive.values().forEach(this::end);
      compute();
      for (Model sequence : lost) {
        try {
          manager.plan(SHARD, lastRow(sequence), places);
        } catch (RowRefusedException | StepFullException e) {
          fail(e.getMessage());
        }
      }
      manager.commit();
      places.clear();
    }

    /** A row without tokens ends a sequence wherever it is. */
    static RowRequest lastRow(Model sequence) {
      return new RowRequest(sequence.id, null, FIRST, 0, 0, 0, RowRequest.UNKNOWN, null, 0, true);
    }

    void end(Model sequence) {
      add(new Row(new Turn(sequence, null, 0, 0, true), lastRow(sequence)));
    }

    /** A sequence of the pool's size drives out what was kept for others. */
    void fillThePool() {
      Model all = new Model(nextId++);
      int tokens = manager.capacity() * BLOCK;
      for (int i = 0; i < tokens; i++) {
        all.tags.add(nextTag++);
      }
      add(
          new Row(
              new Turn(all, null, tokens, 0, false),
              new RowRequest(
                  all.id, null, FIRST, tokens, tokens, 0, RowRequest.UNKNOWN, null, 0, false)));
      end(all);
      compute();
      assertThat(manager.free()).isEqualTo(manager.capacity());
    }
  }

  @Property(tries = 1000)
  void everyRowReadsItsSequence(
      @ForAll @Size(min = 20, max = 600) List<@IntRange(max = 9999) Integer> choices) {
    try (Schedule schedule = new Schedule(choices, 400, false, false)) {
      schedule.run();
    }
  }

  @Property(tries = 1000)
  void swappedSequencesComeBackAsTheyWere(
      @ForAll @Size(min = 20, max = 600) List<@IntRange(max = 9999) Integer> choices,
      @ForAll @IntRange(min = 17, max = 24) int numBlocks) {
    try (Schedule schedule = new Schedule(choices, numBlocks, true, false)) {
      schedule.run();
    }
  }

  @Property(tries = 1000)
  void sequencesThatAreGivenUpLeaveTheOthersAlone(
      @ForAll @Size(min = 20, max = 600) List<@IntRange(max = 9999) Integer> choices,
      @ForAll @IntRange(min = 3, max = 24) int numBlocks) {
    try (Schedule schedule = new Schedule(choices, numBlocks, false, true)) {
      schedule.run();
    }
  }
}
