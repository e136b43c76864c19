// SPDX-License-Identifier: Apache-2.0
// Prefill on Hopper: one warp brings tiles of keys and values by bulk copies, two warpgroups
// multiply. While one tile's values are multiplied the next one's scores are, and the softmax runs
// beside both. The cache is laid out so that what the copies bring is what wgmma reads.
#pragma once

#include "hip/softmax.h"
#include "hip/wgmma.h"

namespace broadhead::gpu {

/// Head sizes of whole panels.
constexpr bool has_hopper_prefill(int head_size) { return head_size % 64 == 0; }

template <class T, int kHead>
struct HopperPrefill {
  static constexpr int kConsumers = 2;
  static constexpr int kRows = 64 * kConsumers;
  static constexpr int kKeys = kHead <= 128 ? 128 : 64;
  static constexpr int kStages = 2;
  static constexpr int kPanels = kHead / 64;
  static constexpr int kThreads = (1 + kConsumers) * hopper::kGroupThreads;
  static constexpr int kPanelBytes = kKeys * kPanel;
  static constexpr int kHalfBytes = kPanels * kPanelBytes;
  static constexpr int kTileBytes = kTile * kPanel;  ///< of a panel of 16 tokens
  static constexpr int kScores = kKeys / 2;          ///< numbers of a thread
  static constexpr int kResults = kHead / 2;
  static constexpr int kValueColumns = kHead % 128 == 0 ? 128 : 64;
  /// Registers of a thread at launch, and after the roles part. What the producer gives is all that
  /// there is to take: a warpgroup that asks for more waits for ever.
  static constexpr int kLaunchRegisters = 65536 / kThreads / 8 * 8;
  static constexpr int kProducerRegisters = 40;
  static constexpr int kConsumerRegisters = 232;
  static_assert(kProducerRegisters + kConsumers * kConsumerRegisters <=
                (1 + kConsumers) * kLaunchRegisters);

  struct Shared {
    char query[kPanels * kRows * kPanel];
    char keys[kStages][kHalfBytes];
    char values[kStages][kHalfBytes];
    QueryRow rows[kRows];
    uint64_t keys_full[kStages], keys_empty[kStages];
    uint64_t values_full[kStages], values_empty[kStages];
    uint64_t ragged;
    int32_t last;
    int32_t is_unbounded;  ///< infinities or NaNs were made zero
  };

  /// The threads that multiply.
  struct Consumers {
    __device__ int index() const { return static_cast<int>(threadIdx.x) - hopper::kGroupThreads; }
    __device__ int size() const { return kConsumers * hopper::kGroupThreads; }
    __device__ void synchronize() const { hopper::synchronize(1, size()); }
  };

  const LayerArgs& layer;
  const StepArgs& step;
  const AttendItem& item;
  int group;
  Shared& shared;

  BH_INLINE void run() {
    if (threadIdx.x == 0) {
      shared.is_unbounded = 0;
      for (int s = 0; s < kStages; ++s) {
        hopper::init_barrier(&shared.keys_full[s], 1);
        hopper::init_barrier(&shared.values_full[s], 1);
        hopper::init_barrier(&shared.keys_empty[s], kConsumers);
        hopper::init_barrier(&shared.values_empty[s], kConsumers);
      }
      hopper::init_barrier(&shared.ragged, 1);
      hopper::fence_barrier_init();
    }
    describe_rows(layer, step, item, group, kRows, shared.rows);
    __syncthreads();
    if (threadIdx.x < hopper::kGroupThreads) {
      hopper::give_registers<kProducerRegisters>();
      if (threadIdx.x < kWave) produce();
    } else {
      hopper::take_registers<kConsumerRegisters>();
      consume();
    }
  }

 private:
  BH_INLINE int num_tiles() const { return (item.end_key - item.first_key + kKeys - 1) / kKeys; }

  // ---- the warp that copies ----

  BH_INLINE void produce() const {
    const CacheView& cache = step.cache;
    const int tiles_per_block = cache.block_size / kTile;
    const int32_t* blocks = step.blocks + item.blocks;
    const int end_tile = (item.end_key + kTile - 1) / kTile;
    // Neither the first key nor the last that a token sees is before those of the token before it.
    const int first_whole = shared.rows[item.num_tokens * layer.group_size - 1].first;
    const int end_whole = shared.rows[0].end;
    uint32_t ragged_parity = 0;
    for (int n = 0; n < num_tiles(); ++n) {
      const int stage = n % kStages;
      const uint32_t parity = n / kStages % 2 ^ 1;
      const int first_key = item.first_key + n * kKeys;
      const int first_tile = first_key / kTile;
      const int count =
          end_tile - first_tile < kKeys / kTile ? end_tile - first_tile : kKeys / kTile;
      // A lane copies at most one panel of 16 tokens, of keys and of values.
      static_assert(kKeys / kTile * kPanels <= kWave);
      const char* from = nullptr;
      int to = 0;
      if (lane_index() < count * kPanels) {
        const int tile = first_tile + lane_index() / kPanels;
        const int panel = lane_index() % kPanels;
        from = keys_of(cache, blocks[tile / tiles_per_block], group / layer.groups_per_kv_head) +
               (panel * cache.block_size + tile % tiles_per_block * kTile) * kPanel;
        to = panel * kPanelBytes + lane_index() / kPanels * kTileBytes;
      }
      const int bytes = count * kPanels * kTileBytes;
      hopper::wait(&shared.keys_empty[stage], parity);
      if (lane_index() == 0) hopper::arrive_expecting(&shared.keys_full[stage], bytes);
      __syncwarp();
      if (from) {
        hopper::copy_bulk(shared.keys[stage] + to, from, kTileBytes, &shared.keys_full[stage]);
      }
      hopper::wait(&shared.values_empty[stage], parity);
      const bool ragged = first_key < first_whole || first_key + kKeys > end_whole;
      uint64_t* full = ragged ? &shared.ragged : &shared.values_full[stage];
      if (lane_index() == 0) hopper::arrive_expecting(full, bytes);
      __syncwarp();
      if (from) {
        hopper::copy_bulk(shared.values[stage] + to, from + cache.half_bytes, kTileBytes, full);
      }
      if (ragged) {
        hopper::wait(&shared.ragged, ragged_parity);
        ragged_parity ^= 1;
        clear_ragged(first_key, first_whole, end_whole, shared.values[stage]);
        if (lane_index() == 0) hopper::arrive(&shared.values_full[stage]);
      }
    }
  }

  /// Values that no row sees become zero, and of those that some rows see infinities and NaNs.
  BH_INLINE void clear_ragged(int first_key, int first_whole, int end_whole, char* values) const {
    bool found = false;
    for (int key = 0; key < kKeys; ++key) {
      const int position = first_key + key;
      if (position >= first_whole && position < end_whole) continue;
      const bool is_seen = position >= item.first_seen && position < item.end_key;
      for (int i = lane_index(); i < kPanels * (kPanel / kChunk); i += kWave) {
        auto& chunk = *reinterpret_cast<Chunk*>(values + i / (kPanel / kChunk) * kPanelBytes +
                                                key * kPanel + i % (kPanel / kChunk) * kChunk);
        Chunk kept = {};
        if (is_seen) {
          kept = chunk;
#pragma unroll
          for (uint32_t& word : kept.words) {
            const uint32_t bits = unbounded_bits<T>(word);
            found |= bits != 0;
            word &= ~bits;
          }
        }
        chunk = kept;
      }
    }
    if (found) shared.is_unbounded = 1;
    hopper::fence_stores();
    __syncwarp();
  }

  // ---- the warpgroups that multiply ----

  struct State {
    float maximum[2];
    float denominator[2];
  };

  BH_INLINE void consume() {
    // The same for all lanes, as the compiler cannot know.
    const int consumer = shuffle(static_cast<int>(threadIdx.x) / hopper::kGroupThreads, 0) - 1;
    const int thread = static_cast<int>(threadIdx.x) % hopper::kGroupThreads;
    load_queries(consumer, thread);
    const int first_row = consumer * 64 + thread / kWave * 16 + lane_index() / 4;
    KeyRange range;
    for (int row = first_row; row <= first_row + 8; row += 8) {
      if (row < item.num_tokens * layer.group_size) range.add(shared.rows[row]);
    }
    State state = {{-infinity(), -infinity()}, {0, 0}};
    float scores[kScores];
    uint32_t weights[kScores / 2];
    float results[kResults];
#pragma unroll
    for (int i = 0; i < kResults; ++i) results[i] = 0;

    const int tiles = num_tiles();
    if (tiles > 0) {
      start_scores(0, consumer, scores);
      hopper::wait_for_products<0>();
      release(shared.keys_empty, 0);
      weigh(item.first_key, range, first_row, scores, state);
      round_weights(scores, weights);
      for (int n = 0; n + 1 < tiles; ++n) {
        start_scores(n + 1, consumer, scores);
        start_results(n, weights, results);
        hopper::wait_for_products<1>();
        release(shared.keys_empty, n + 1);
        const State before = state;
        weigh(item.first_key + (n + 1) * kKeys, range, first_row, scores, state);
        hopper::wait_for_products<0>();
        release(shared.values_empty, n);
        rescale(before, state, results);
        round_weights(scores, weights);
      }
      start_results(tiles - 1, weights, results);
      hopper::wait_for_products<0>();
    }
    write(first_row, state, results);
  }

  /// Tells the copying warp that a warpgroup is done with tile n.
  BH_INLINE void release(uint64_t* barriers, int n) const {
    if (threadIdx.x % hopper::kGroupThreads == 0) hopper::arrive(&barriers[n % kStages]);
  }

  BH_INLINE void load_queries(int consumer, int thread) const {
    constexpr int kRowChunks = kHead * 2 / kChunk;
    constexpr int kLoads = 64 * kRowChunks / hopper::kGroupThreads;
    constexpr int kAhead = kLoads % 8 == 0 ? 8 : 4;
    for (int base = 0; base < kLoads; base += kAhead) {
      Chunk loaded[kAhead];
#pragma unroll
      for (int a = 0; a < kAhead; ++a) {
        const int i = (base + a) * hopper::kGroupThreads + thread;
        const char* query = shared.rows[consumer * 64 + i / kRowChunks].query;
        loaded[a] = {};
        if (query) loaded[a] = reinterpret_cast<const Chunk*>(query)[i % kRowChunks];
      }
#pragma unroll
      for (int a = 0; a < kAhead; ++a) {
        const int i = (base + a) * hopper::kGroupThreads + thread;
        const auto offset =
            half_offset(kHead * 2, kRows, consumer * 64 + i / kRowChunks, i % kRowChunks * kChunk);
        *reinterpret_cast<Chunk*>(shared.query + offset) = loaded[a];
      }
    }
    hopper::fence_stores();
    hopper::synchronize(2 + consumer, hopper::kGroupThreads);
  }

  BH_INLINE void start_scores(int n, int consumer, float* scores) const {
    const int stage = n % kStages;
    hopper::wait(&shared.keys_full[stage], n / kStages % 2);
    const uint64_t query =
        hopper::describe_matrix(hopper::shared_address(shared.query) + consumer * 64 * kPanel);
    const uint64_t keys = hopper::describe_matrix(hopper::shared_address(shared.keys[stage]));
    hopper::fence_registers();
#pragma unroll
    for (int i = 0; i < kHead / 16; ++i) {
      hopper::multiply<T, kKeys>(hopper::advance(query, i / 4 * kRows * kPanel + i % 4 * 32),
                                 hopper::advance(keys, i / 4 * kPanelBytes + i % 4 * 32), i > 0,
                                 scores);
    }
    hopper::commit_products();
  }

  BH_INLINE void start_results(int n, const uint32_t* weights, float* results) const {
    const int stage = n % kStages;
    hopper::wait(&shared.values_full[stage], n / kStages % 2);
    const uint64_t values =
        hopper::describe_matrix(hopper::shared_address(shared.values[stage]), kPanelBytes);
    hopper::fence_registers();
#pragma unroll
    for (int i = 0; i < kKeys / 16; ++i) {
#pragma unroll
      for (int c = 0; c < kHead / kValueColumns; ++c) {
        hopper::accumulate<T, kValueColumns>(
            weights + 4 * i,
            hopper::advance(values, c * (kValueColumns / 64) * kPanelBytes + i * 16 * kPanel),
            results + c * kValueColumns / 2);
      }
    }
    hopper::commit_products();
  }

  /// Turns scores into weights relative to state.maximum, which may rise. Numbers 4j, 4j + 1 of a
  /// thread are of its first row, 4j + 2 and 4j + 3 of its second.
  BH_INLINE void weigh(int first_key, const KeyRange& range, int first_row, float* scores,
                       State& state) const {
    const bool plain = is_plain(layer);
    const bool whole = first_key >= range.first_whole && first_key + kKeys <= range.end_whole;
    const float factor = exponent_factor(layer);
    if (!plain || !whole) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const QueryRow row = shared.rows[first_row + 8 * r];
        // From the thread's first key on, which leaves the fewest numbers to keep.
        const int key = first_key + lane_index() % 4 * 2;
        const int distance = key - row.position;
        const int first = row.first - key;
        const int end = row.end - key;
#pragma unroll
        for (int j = 0; j < kScores / 4; ++j) {
#pragma unroll
          for (int c = 0; c < 2; ++c) {
            const int at = 8 * j + c;
            float& score = scores[4 * j + 2 * r + c];
            if (!plain) score = transform_score(layer, row.slope, score, distance + at);
            if (at < first || at >= end) score = -infinity();
          }
        }
      }
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float highest = scores[2 * r];
#pragma unroll
      for (int j = 0; j < kScores / 4; ++j) {
        highest = fmaxf(highest, fmaxf(scores[4 * j + 2 * r], scores[4 * j + 2 * r + 1]));
      }
      highest = fmaxf(highest, shuffle_xor(highest, 1));
      highest = fmaxf(highest, shuffle_xor(highest, 2)) * factor;
      if (highest > state.maximum[r] + kSlack) {
        const float raised = highest;
        state.denominator[r] *= exp2_fast(state.maximum[r] - raised);
        state.maximum[r] = raised;
      }
      const float subtract = state.maximum[r] == -infinity() ? 0.0f : state.maximum[r];
      float sum = 0;
#pragma unroll
      for (int j = 0; j < kScores / 4; ++j) {
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          float& score = scores[4 * j + 2 * r + c];
          score = exp2_fast(fmaf(score, factor, -subtract));
          sum += score;
        }
      }
      state.denominator[r] += sum;
    }
  }

  BH_INLINE void rescale(const State& before, const State& state, float* results) const {
    if (!any(before.maximum[0] != state.maximum[0] || before.maximum[1] != state.maximum[1]))
      return;
    float factors[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      factors[r] = before.maximum[r] == state.maximum[r]
                       ? 1.0f
                       : exp2_fast(before.maximum[r] - state.maximum[r]);
    }
#pragma unroll
    for (int i = 0; i < kResults; ++i) results[i] *= factors[i / 2 % 2];
  }

  BH_INLINE void round_weights(const float* scores, uint32_t* weights) const {
#pragma unroll
    for (int i = 0; i < kScores / 2; ++i) {
      weights[i] = pack<T>(scores[2 * i], scores[2 * i + 1]);
    }
  }

  BH_INLINE void write(int first_row, State& state, const float* results) const {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      state.denominator[r] += shuffle_xor(state.denominator[r], 1);
      state.denominator[r] += shuffle_xor(state.denominator[r], 2);
      const int row = first_row + 8 * r;
      if (row >= item.num_tokens * layer.group_size) continue;
      const Token token = token_of(step, item, row / layer.group_size);
      const int head = group * layer.group_size + row % layer.group_size;
      const int pair = lane_index() % 4 * 2;
      if (token.num_partials == 1) {
        const Finish last = finish(layer, head, state.maximum[r], state.denominator[r]);
        if (token.lse && pair == 0) token.lse[head] = last.lse;
#pragma unroll
        for (int j = 0; j < kHead / 8; ++j) {
          store_output<T, 2>(layer, token.output, head, 8 * j + pair, last.factor,
                             results + 4 * j + 2 * r);
        }
      } else {
        const int64_t partial = int64_t{token.first_partial + item.piece} * layer.num_heads + head;
        if (pair == 0) {
          step.partial_state[partial * 2] = state.maximum[r];
          step.partial_state[partial * 2 + 1] = state.denominator[r];
        }
#pragma unroll
        for (int j = 0; j < kHead / 8; ++j) {
          store_numbers<Float32, 2>(step.partial_sums, partial * kHead + 8 * j + pair,
                                    results + 4 * j + 2 * r);
        }
      }
    }
    if (shared.is_unbounded) {
      write_unbounded<T, T>(layer, step, item, group, shared.rows, Consumers{});
    }
    finish_item<T>(layer, step, item, group, &shared.last, Consumers{});
  }
};

template <class T, int kHead>
__global__ void __launch_bounds__(HopperPrefill<T, kHead>::kThreads, 1)
    prefill_hopper(LayerArgs layer, const StepArgs* arguments) {
#if __CUDA_ARCH__ == 900
  using Kernel = HopperPrefill<T, kHead>;
  auto& shared = *reinterpret_cast<typename Kernel::Shared*>(
      reinterpret_cast<uintptr_t>(shared_memory() + 1023) & ~uintptr_t{1023});
  const int item = static_cast<int>(blockIdx.x) / layer.num_groups;
  const int group = static_cast<int>(blockIdx.x) % layer.num_groups;
  Kernel{layer, *arguments, arguments->prefill_items[item], group, shared}.run();
#endif
}

}  // namespace broadhead::gpu
