// SPDX-License-Identifier: Apache-2.0
package io.broadhead.attention.cache;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import io.broadhead.attention.testing.SavedCache;
import java.util.Arrays;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import java.util.function.IntUnaryOperator;
import java.util.stream.LongStream;
import net.jqwik.api.Example;
import net.jqwik.api.ForAll;
import net.jqwik.api.Property;
import net.jqwik.api.constraints.IntRange;
import net.jqwik.api.constraints.Size;

/** What is saved of a pool, whatever was written in which order, is what the pool holds. */
class ExternalBlocksPropertyTest {
  private static final int BLOCK = 4;
  private static final int NUM_BLOCKS = 5;
  private static final int CACHES = 3;
  private static final int SHARDS = 2;
  private static final List<LayerRole> LAYERS =
      List.of(
          new LayerRole(0, "a", 0, 0, false),
          new LayerRole(1, "b", 1, 1, false),
          new LayerRole(2, "c", 2, 2, true));

  private SavedCache saved;
  private TaggedMemory memory;
  private ExternalBlocks blocks;

  private void openEmpty(SavedCache state, int numBlocks) {
    saved = state;
    memory = new TaggedMemory(CACHES, BLOCK, numBlocks);
    CacheShape shape = new CacheShape(BLOCK, numBlocks, LAYERS);
    blocks = new ExternalBlocks(shape, memory, saved, saved);
  }

  private void open(SavedCache state, int numBlocks) {
    openEmpty(state, numBlocks);
    for (int shard = 0; shard < SHARDS; shard++) {
      for (Map.Entry<Long, byte[]> block : List.copyOf(saved.blocks(shard).entrySet())) {
        blocks.restore(shard, block.getKey(), block.getValue());
      }
    }
  }

  private void write(int shard, int cache, int slot, long tag, long now) {
    memory.set(cache, slot, tag);
    blocks.written(shard, cache, slot, slot + 1, now);
  }

  @Property(tries = 500)
  void restoresWhatThePoolHeld(
      @ForAll @Size(min = 20, max = 400) List<@IntRange(max = 9999) Integer> choices) {
    open(new SavedCache(), NUM_BLOCKS);
    long[][] expected = new long[CACHES][NUM_BLOCKS * BLOCK];
    for (long[] cache : expected) {
      Arrays.fill(cache, TaggedMemory.EMPTY);
    }
    Integer[] shardOfBlock = new Integer[NUM_BLOCKS];
    long tag = 0;
    for (int choice : choices) {
      if (choice % 7 == 6) {
        blocks.save(1);
      } else if (choice % 31 == 30) {
        blocks.save(1);
        open(saved.copy(), NUM_BLOCKS);
      } else {
        int first = choice % (NUM_BLOCKS * BLOCK);
        int end = Math.min(NUM_BLOCKS * BLOCK, first + 1 + choice % 6);
        for (int cache = choice % 5 == 0 ? 1 : 0; cache < CACHES; cache++) {
          for (int slot = first; slot < end; slot++) {
            expected[cache][slot] = ++tag;
            memory.set(cache, slot, tag);
          }
          blocks.written(choice % SHARDS, cache, first, end, tag);
        }
        Arrays.fill(shardOfBlock, first / BLOCK, (end - 1) / BLOCK + 1, choice % SHARDS);
      }
    }
    blocks.save(1);
    open(saved.copy(), NUM_BLOCKS + 1);
    for (int cache = 0; cache < CACHES; cache++) {
      for (int slot = 0; slot < NUM_BLOCKS * BLOCK; slot++) {
        assertThat(memory.get(cache, slot / BLOCK, slot % BLOCK))
            .as("cache %d, slot %d", cache, slot)
            .isEqualTo(expected[cache][slot]);
      }
    }
    for (int shard = 0; shard < SHARDS; shard++) {
      int writer = shard;
      assertThat(saved.blocks(shard).keySet())
          .as("blocks that shard %d wrote last", shard)
          .containsExactlyInAnyOrderElementsOf(
              LongStream.range(0, NUM_BLOCKS)
                  .filter(block -> Objects.equals(shardOfBlock[(int) block], writer))
                  .boxed()
                  .toList());
    }
    int perBlock = BLOCK * CACHES;
    assertThat(saved.bytes())
        .as("parts that were replaced are removed, unless a part of them is needed")
        .isLessThanOrEqualTo((long) NUM_BLOCKS * perBlock * BLOCK * 16);
  }

  @Example
  void aPoolWithTooManySlotsIsRefused() {
    CacheShape shape = new CacheShape(BLOCK, 1 << 29, LAYERS);
    assertThatThrownBy(() -> new ExternalBlocks(shape, memory, saved, saved))
        .isInstanceOf(IllegalStateException.class)
        .hasMessageStartingWith("kv_cache.num_blocks: expected at most 536870911 where");
  }

  @Example
  void onlyWhatWasWrittenIsSaved() {
    open(new SavedCache(), NUM_BLOCKS);
    for (int slot = 0; slot < 7; slot++) {
      for (int cache = 0; cache < CACHES; cache++) {
        write(0, cache, slot, slot, 0);
      }
      blocks.save(1);
      assertThat(saved.bytesPut()).isEqualTo((slot + 1L) * CACHES * 16);
    }
    blocks.save(1);
    assertThat(saved.bytesPut()).isEqualTo(7L * CACHES * 16);
    assertThat(blocks.counters().bytesSaved()).isEqualTo(saved.bytesPut());
    for (int cache = 0; cache < CACHES; cache++) {
      for (int slot = 0; slot < 4; slot++) {
        write(0, cache, slot, 100 + slot, 1); // the producer gave the block to another sequence
      }
    }
    blocks.save(1);
    assertThat(saved.bytes()).isEqualTo(7L * CACHES * 16);
  }

  /** One of all caches of a model with large blocks would be more than an array holds. */
  @Example
  void partsAreSmall() {
    int block = 1 << 15;
    saved = new SavedCache();
    memory = new TaggedMemory(CACHES, block, 1);
    blocks = new ExternalBlocks(new CacheShape(block, 1, LAYERS), memory, saved, saved);
    for (int cache = 0; cache < CACHES; cache++) {
      for (int slot = 0; slot < block; slot++) {
        write(0, cache, slot, slot, 0);
      }
    }
    blocks.save(1);
    assertThat(saved.bytes()).isEqualTo(16L * CACHES * block);
    assertThat(saved.largestPart()).isEqualTo(1 << 20);
  }

  /** The producer gave a block of one subtask to a sequence of another; now they are one. */
  @Example
  void aBlockIsOfTheShardThatWroteLast() {
    for (int last = 0; last < SHARDS; last++) {
      assertShardWins(last, shard -> 1, shard -> shard);
      assertShardWins(last, shard -> shard, shard -> 1);
      assertShardWins(last, shard -> shard, shard -> -shard); // a clock is behind another
    }
  }

  /**
   * @param checkpoint of 0, or 1 for the shard that wrote last
   * @param now of the same
   */
  private void assertShardWins(int last, IntUnaryOperator checkpoint, IntUnaryOperator now) {
    SavedCache both = new SavedCache();
    for (int shard = 0; shard < SHARDS; shard++) {
      int isLast = shard == last ? 1 : 0;
      openEmpty(both, NUM_BLOCKS);
      write(shard, 0, 0, 10 + shard, 5 + now.applyAsInt(isLast));
      blocks.save(checkpoint.applyAsInt(isLast));
    }
    open(both, NUM_BLOCKS);
    assertThat(memory.get(0, 0, 0)).isEqualTo(10 + last);
    assertThat(both.bytes()).isEqualTo(16);
    assertThat(both.blocks(1 - last)).isEmpty();
  }

  @Example
  void aSmallerPoolIsRefusedByName() {
    open(new SavedCache(), NUM_BLOCKS);
    write(0, 0, 4 * BLOCK, 1, 0);
    blocks.save(1);
    assertThatThrownBy(() -> open(saved.copy(), 4))
        .isInstanceOf(IllegalStateException.class)
        .hasMessage(
            "kv_cache.num_blocks: expected more than 4, a block that the producer's tables had when"
                + " the state was written, got 4");
  }
}
