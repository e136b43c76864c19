// SPDX-License-Identifier: Apache-2.0
// Prefill on Hopper: one warp brings keys and values by bulk copies, the other warps of its
// warpgroup clear what must not be multiplied and widen fp8, two warpgroups multiply. The next
// keys' scores are multiplied before these keys' values, and their softmax runs beside the latter.
// The cache is laid out so that what the copies bring is what wgmma reads.
#pragma once

#include "hip/softmax.h"
#include "hip/wgmma.h"

namespace broadhead::gpu {

constexpr int round_up(int size, int unit) { return (size + unit - 1) / unit * unit; }

/// Tensors of T on a cache of E.
template <class T, class E, int kHead>
struct HopperPrefill {
  /// fp8 is copied to a ring of its own first, and widened from there.
  static constexpr bool kWidens = sizeof(E) < sizeof(T);
  /// Warpgroups that bring keys and values, one more to widen where registers are left for it; and
  /// those that multiply.
  static constexpr int kProducers = kWidens && kHead <= 128 ? 2 : 1;
  static constexpr int kConsumers = 2;
  static constexpr int kRows = 64 * kConsumers;
  /// Multiplied at once: what a thread's registers hold the scores of, beside its results.
  static constexpr int kKeys = kHead <= (kWidens ? 96 : 128) ? 128 : 64;
  static constexpr int kProducerThreads = kProducers * hopper::kGroupThreads;
  static constexpr int kThreads = kProducerThreads + kConsumers * hopper::kGroupThreads;
  static constexpr int kRowBytes = kHead * 2;
  static constexpr int kPanels = kHead / 64;                 ///< of 128 bytes
  static constexpr int kLastWidth = kRowBytes % kPanel;      ///< bytes of one more panel, or 0
  static constexpr int kPanelBytes = kPanelTokens * kPanel;  ///< of 8 tokens, or rows
  static constexpr int kWidestBytes = kPanelTokens * (kPanels > 0 ? kPanel : kLastWidth);
  /// From 8 tokens, or rows, to the next 8: panels begin at multiples of their size.
  static constexpr int kGroupBytes = round_up(kPanelTokens * kRowBytes, kWidestBytes);
  static constexpr int kTileBytes = kTile / kPanelTokens * kGroupBytes;
  static constexpr int kHalfBytes = kKeys / kTile * kTileBytes;
  static constexpr int kQueryBytes = kRows / kPanelTokens * kGroupBytes;
  static constexpr int kScores = kKeys / 2;  ///< numbers of a thread
  static constexpr int kResults = kHead / 2;
  static constexpr int kValueColumns = kPanels % 2 == 0 ? 128 : 64;
  /// Registers of a thread at launch, and after the roles part. What the copying threads give is
  /// all that there is to take: a warpgroup that asks for more waits for ever.
  static constexpr int kLaunchRegisters = 65536 / kThreads / 8 * 8;
  static constexpr int kProducerRegisters = kWidens ? 56 : 40;
  static constexpr int kConsumerRegisters = kProducers == 2 ? 200 : kWidens ? 224 : 232;
  static_assert(kProducers * kProducerRegisters + kConsumers * kConsumerRegisters <=
                (kProducers + kConsumers) * kLaunchRegisters);

  /// Chunks that a thread widens at once, as its registers allow.
  static constexpr int kWidensAtOnce = kProducers == 2 ? 4 : kHead < 224 ? 2 : 1;
  static constexpr int kCodeBytes = kWidens ? kKeys * kHead : kChunk;  ///< nobody uses that chunk
  /// Tokens of a copy, which lie side by side in the cache and in shared memory.
  static constexpr int kCopyTokens =
      kWidens || kGroupBytes == kPanelTokens * kRowBytes ? kTile : kPanelTokens;
  static constexpr int kCopyBytes = kCopyTokens * kHead * int{sizeof(E)};
  static constexpr int kCopies = kKeys / kCopyTokens;
  static_assert(kCopies <= kWave);

  /// Rings of halves: keys 0, keys 1, values 0, keys 2, values 1 and so on, as they are used.
  static constexpr int kRingBytes =
      hopper::kSharedBytes - kQueryBytes - kRows * int{sizeof(RowMask)} - 512;
  static constexpr int kMostSlots = 8;
  static constexpr int kLeastSlots = 4;
  BH_HOST_DEVICE static constexpr int within(int least, int count, int most) {
    return count < least ? least : count < most ? count : most;
  }
  static constexpr int kSlots =
      within(kLeastSlots, kRingBytes / (kHalfBytes + (kWidens ? kCodeBytes : 0)), kMostSlots);
  static constexpr int kCodeSlots =
      kWidens ? within(1, (kRingBytes - kSlots * kHalfBytes) / kCodeBytes, kSlots) : 1;

  template <int kCount, int kBytes>
  struct Ring {
    char slots[kCount][kBytes];
    uint64_t full[kCount], empty[kCount];

    struct Place {
      int slot = 0;
      uint32_t parity = 0;
      /// This place; then it is the next one.
      BH_INLINE Place take() {
        const Place taken = *this;
        if (++slot == kCount) {
          slot = 0;
          parity ^= 1;
        }
        return taken;
      }
    };

    BH_INLINE void begin(int readers) {
      for (int s = 0; s < kCount; ++s) {
        hopper::init_barrier(&full[s], 1);
        hopper::init_barrier(&empty[s], readers);
      }
    }
    BH_INLINE void wait_until_full(const Place& place) {
      hopper::wait(&full[place.slot], place.parity);
    }
    BH_INLINE void wait_until_empty(const Place& place) {
      hopper::wait(&empty[place.slot], place.parity ^ 1);
    }
  };
  using Halves = Ring<kSlots, kHalfBytes>;
  using Codes = Ring<kCodeSlots, kCodeBytes>;
  using Place = typename Halves::Place;

  struct Shared {
    char query[kQueryBytes];
    Halves halves;
    Codes codes;
    RowMask rows[kRows];
    uint64_t copied[kSlots];  ///< values that are not full before some of them are cleared
    int32_t last;
    int32_t is_unbounded;  ///< infinities or NaNs were made zero
  };
  static_assert(sizeof(Shared) <= hopper::kSharedBytes);

  /// The threads that multiply.
  struct Consumers {
    __device__ int index() const { return static_cast<int>(threadIdx.x) - kProducerThreads; }
    __device__ int size() const { return kConsumers * hopper::kGroupThreads; }
    __device__ void synchronize() const { hopper::synchronize(1, size()); }
  };
  /// The threads beside the copying warp.
  struct Cleaners {
    __device__ int index() const { return static_cast<int>(threadIdx.x) - kWave; }
    __device__ static constexpr int size() { return kProducerThreads - kWave; }
    __device__ bool synchronize_any(bool found) const {
      return hopper::synchronize_any(2, size(), found);
    }
  };

  const LayerArgs& layer;
  const StepArgs& step;
  const AttendItem& item;
  int group;
  Shared& shared;
  int first_key = item.first_key;
  int tiles = (item.end_key - item.first_key + kKeys - 1) / kKeys;

  BH_INLINE void run() {
    if (threadIdx.x == 0) {
      shared.is_unbounded = 0;
      shared.halves.begin(kConsumers);
      shared.codes.begin(1);
      for (uint64_t& barrier : shared.copied) hopper::init_barrier(&barrier, 1);
      hopper::fence_barrier_init();
    }
    __syncthreads();
    if (threadIdx.x < kProducerThreads) {
      hopper::give_registers<kProducerRegisters>();
      if (threadIdx.x < kWave) {
        if constexpr (kWidens) {
          copy(shared.codes);
        } else {
          copy(shared.halves);
        }
      } else if constexpr (kWidens) {
        widen_halves();
      } else {
        clear();
      }
    } else {
      hopper::take_registers<kConsumerRegisters>();
      consume();
    }
  }

 private:
  /// Offset of byte `byte` of a token's head, or of a row, among those in shared memory.
  BH_INLINE static int offset_of(int row, int byte) {
    return row / kPanelTokens * kGroupBytes +
           static_cast<int>(half_offset(kRowBytes, row % kPanelTokens, byte));
  }

  /// Keys that all rows see. Neither the first key nor the last that a token sees is before those
  /// of the token before it.
  struct WholeRange {
    int first;
    int end;
    BH_INLINE bool contains(int key, int count) const { return key >= first && key + count <= end; }
  };
  BH_INLINE WholeRange whole_range() const {
    const Token last = token_of(step, item, item.num_tokens - 1);
    return {last.first > item.first_seen ? last.first : item.first_seen,
            item.token.end < item.end_key ? item.token.end : item.end_key};
  }

  // ---- the warp that copies ----

  /// A lane makes at most one of the copies of a half: its keys among number n of what is
  /// multiplied at once. Copies are limited by how many they are, not by their bytes.
  BH_INLINE const char* source(int n) const {
    const CacheView& cache = step.cache;
    const int token = first_key + n * kKeys + lane_index() * kCopyTokens;
    if (lane_index() >= kCopies || token >= item.end_key) return nullptr;
    const int32_t block = n == 0 ? item.first_blocks[lane_index() * kCopyTokens / kTile]
                                 : step.blocks[item.blocks + token / cache.block_size];
    return keys_of(cache, block, group / layer.groups_per_kv_head) +
           token % cache.block_size / kCopyTokens * kCopyBytes;
  }

  template <class Ring>
  BH_INLINE void copy_half(Ring& ring, const typename Ring::Place& place, int n, const char* from,
                           uint64_t* full) const {
    constexpr int kStride = sizeof ring.slots[0] / kCopies;
    const int left = item.end_key - first_key - n * kKeys;
    const int count = (left < kKeys ? left + kCopyTokens - 1 : kKeys) / kCopyTokens;
    ring.wait_until_empty(place);
    if (lane_index() == 0) hopper::arrive_expecting(full, count * kCopyBytes);
    __syncwarp();
    if (from) {
      hopper::copy_bulk(ring.slots[place.slot] + lane_index() * kStride, from, kCopyBytes, full);
    }
  }

  template <class Ring>
  BH_INLINE void copy(Ring& ring) const {
    typename Ring::Place at;
    const char* from = source(0);
    if (tiles > 0) copy_half(ring, at.take(), 0, from, ring.full);
    const char* next = source(1);
    const WholeRange whole = whole_range();
    for (int n = 0; n < tiles; ++n) {
      const char* after = source(n + 2);  // on its way while this waits for room
      if (n + 1 < tiles) {
        const auto keys = at.take();
        copy_half(ring, keys, n + 1, next, &ring.full[keys.slot]);
      }
      const auto values = at.take();
      const bool cleared = !kWidens && !whole.contains(first_key + n * kKeys, kKeys);
      copy_half(ring, values, n, from ? from + step.cache.half_bytes : nullptr,
                cleared ? &shared.copied[values.slot] : &ring.full[values.slot]);
      from = next;
      next = after;
    }
  }

  // ---- the warps that clear what is not to be multiplied, and widen fp8 ----

  BH_INLINE void clear() const {
    const WholeRange whole = whole_range();
    const Cleaners team;
    uint32_t parities = 0;  // a bit for each slot
    Place at;
    at.take();
    for (int n = 0; n < tiles; ++n) {
      if (n + 1 < tiles) at.take();
      const int slot = at.take().slot;
      const int key = first_key + n * kKeys;
      if (whole.contains(key, kKeys)) continue;
      hopper::wait(&shared.copied[slot], parities >> slot & 1);
      parities ^= 1u << slot;
      const bool found = clear_ragged(key, whole, shared.halves.slots[slot], team);
      tell_full(slot, found, team);
    }
  }

  /// Tells the consumers, once the whole team comes here; `found`: this thread made infinities or
  /// NaNs zero.
  BH_INLINE void tell_full(int slot, bool found, const Cleaners& team) const {
    hopper::fence_stores();
    const bool any_found = team.synchronize_any(found);
    if (team.index() == 0) {
      if (any_found) shared.is_unbounded = 1;
      hopper::arrive(&shared.halves.full[slot]);
    }
  }

  /// Values that no row sees become zero, and of those that some rows see infinities and NaNs;
  /// tells whether it found such. A thread keeps its place within a token.
  BH_INLINE bool clear_ragged(int tile_key, const WholeRange& whole, char* values,
                              const Cleaners& team) const {
    constexpr int kRowChunks = kRowBytes / kChunk;
    constexpr int kTokens = team.size() / kRowChunks;  // at once
    const int first = team.index() / kRowChunks;
    if (first >= kTokens) return false;
    const int byte = team.index() % kRowChunks * kChunk;
    // Tokens that any row sees, and among these those that all rows see.
    const int seen = within(0, item.first_seen - tile_key, kKeys);
    const int unseen = within(seen, item.end_key - tile_key, kKeys);
    const int begin = within(seen, whole.first - tile_key, unseen);
    const int end = within(begin, whole.end - tile_key, unseen);
    auto for_each_chunk = [&](int from, int to, auto&& body) {
      for (int token = from + first; token < to; token += kTokens) {
        body(*reinterpret_cast<Chunk*>(values + offset_of(token, byte)));
      }
    };
    bool found = false;
    auto clear = [](Chunk& chunk) { chunk = {}; };
    auto drop = [&](Chunk& chunk) {
      Chunk kept = chunk;
      if (!drop_unbounded(kept)) return;
      chunk = kept;
      found = true;
    };
    for_each_chunk(0, seen, clear);
    for_each_chunk(seen, begin, drop);
    for_each_chunk(end, unseen, drop);
    for_each_chunk(unseen, kKeys, clear);
    return found;
  }

  /// Whether any row of the item sees a key.
  BH_INLINE bool is_seen(int key) const { return key >= item.first_seen && key < item.end_key; }

  /// Makes infinities and NaNs zero; tells whether there were any.
  BH_INLINE static bool drop_unbounded(Chunk& numbers) {
    bool found = false;
#pragma unroll
    for (uint32_t& word : numbers.words) {
      const uint32_t bits = unbounded_bits<E>(word);
      found |= bits != 0;
      word &= ~bits;
    }
    return found;
  }

  BH_INLINE void widen_halves() const {
    const WholeRange whole = whole_range();
    const Cleaners team;
    typename Codes::Place from;
    Place to;
    for (int m = 0; m < 2 * tiles; ++m) {
      const bool are_values = m == 2 * tiles - 1 || (m > 0 && m % 2 == 0);
      const int n = are_values ? (m - 1) / 2 : (m + 1) / 2;
      const auto codes = from.take();
      const Place wide = to.take();
      shared.codes.wait_until_full(codes);
      shared.halves.wait_until_empty(wide);
      const bool found =
          widen_half(first_key + n * kKeys, whole, are_values, shared.codes.slots[codes.slot],
                     shared.halves.slots[wide.slot], team);
      tell_full(wide.slot, found, team);
      if (team.index() == 0) hopper::arrive(&shared.codes.empty[codes.slot]);
    }
  }

  /// What no row sees becomes zero, and of values that some rows see infinities and NaNs; tells
  /// whether it found such. A thread keeps its place within 8 tokens.
  BH_INLINE bool widen_half(int tile_key, const WholeRange& whole, bool are_values,
                            const char* codes, char* wide, const Cleaners& team) const {
    constexpr int kRowChunks = kHead / kChunk;
    constexpr int kTokens =
        team.size() < kPanelTokens * kRowChunks ? kPanelTokens / 2 : kPanelTokens;
    constexpr int kGroups = team.size() / (kTokens * kRowChunks);  // of 8 tokens, at once
    const int first_group = team.index() / (kTokens * kRowChunks);
    if (first_group >= kGroups) return false;
    const int byte = team.index() % kRowChunks * kChunk;
    // Threads side by side begin with different halves of a line, which are in different banks.
    const bool turn = 2 * byte / kPanel % 2 != 0;
    const bool ragged = !whole.contains(tile_key, kKeys);
    bool found = false;
#pragma unroll
    for (int t = 0; t < kPanelTokens; t += kTokens) {
      const int token = team.index() / kRowChunks % kTokens + t;
      const int from = static_cast<int>(half_offset(kHead, token, byte));
      const int to = offset_of(token, 2 * byte + turn * kChunk);
#pragma unroll kWidensAtOnce
      for (int g = first_group; g < kKeys / kPanelTokens; g += kGroups) {
        Chunk chunk = *reinterpret_cast<const Chunk*>(codes + g * kPanelTokens * kHead + from);
        if (ragged) {
          const int key = tile_key + g * kPanelTokens + token;
          if (!is_seen(key)) {
            chunk = {};
          } else if (are_values && !whole.contains(key, 1)) {
            found |= drop_unbounded(chunk);
          }
        }
        if (turn) chunk = {{chunk.words[2], chunk.words[3], chunk.words[0], chunk.words[1]}};
        Chunk numbers[2];
        widen_chunk<T, E>(chunk, numbers);
        char* group = wide + g * kGroupBytes;
        *reinterpret_cast<Chunk*>(group + to) = numbers[0];
        *reinterpret_cast<Chunk*>(group + (to ^ kChunk)) = numbers[1];
      }
    }
    return found;
  }

  // ---- the warpgroups that multiply ----

  struct State {
    float maximum[2];
    float denominator[2];
  };

  BH_INLINE void consume() {
    // The same for all lanes, as the compiler cannot know.
    const int consumer =
        shuffle(static_cast<int>(threadIdx.x) / hopper::kGroupThreads, 0) - kProducers;
    const int thread = static_cast<int>(threadIdx.x) % hopper::kGroupThreads;
    load_queries(consumer * 64 + thread / kWave * 16);
    hopper::fence_stores();
    Consumers{}.synchronize();
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

    if (tiles > 0) {
      Place at;
      const Place first = at.take();
      start_scores(first, consumer, scores);
      hopper::wait_for_products<0>();
      release(first);
      weigh(first_key, range, first_row, scores, state);
      round_weights(scores, weights);
      for (int n = 1; n < tiles; ++n) {
        const Place keys = at.take();
        start_scores(keys, consumer, scores);
        const Place values = at.take();
        start_results(values, weights, results);
        hopper::wait_for_products<1>();
        release(keys);
        const State before = state;
        weigh(first_key + n * kKeys, range, first_row, scores, state);
        // The loop within keeps ptxas from waiting for the results before the weights.
        shared.halves.wait_until_full(at);
        hopper::wait_for_products<0>();
        release(values);
        rescale(before, state, results);
        round_weights(scores, weights);
      }
      start_results(at, weights, results);
      hopper::wait_for_products<0>();
    }
    write(first_row, state, results);
  }

  /// Tells the copying warp that a warpgroup is done with a half.
  BH_INLINE void release(const Place& place) const {
    if (threadIdx.x % hopper::kGroupThreads == 0) hopper::arrive(&shared.halves.empty[place.slot]);
  }

  /// A warp describes its 16 rows, a lane each, and brings their queries.
  BH_INLINE void load_queries(int first_row) const {
    constexpr int kWarpRows = 16;
    constexpr int kRowChunks = kRowBytes / kChunk;
    constexpr int kLoads = kWarpRows * kRowChunks / kWave;
    constexpr int kAhead = [] {
      int ahead = 8;
      while (kLoads % ahead != 0) --ahead;
      return ahead;
    }();
    const QueryRow own =
        describe_row(layer, step, item, group, first_row + lane_index() % kWarpRows);
    if (lane_index() < kWarpRows) shared.rows[first_row + lane_index()] = own;
    const auto own_query = reinterpret_cast<unsigned long long>(own.query);
    for (int base = 0; base < kLoads; base += kAhead) {
      Chunk loaded[kAhead];
#pragma unroll
      for (int a = 0; a < kAhead; ++a) {
        const int i = (base + a) * kWave + lane_index();
        const auto* query = reinterpret_cast<const Chunk*>(shuffle(own_query, i / kRowChunks));
        loaded[a] = query ? query[i % kRowChunks] : Chunk{};
      }
#pragma unroll
      for (int a = 0; a < kAhead; ++a) {
        const int i = (base + a) * kWave + lane_index();
        *reinterpret_cast<Chunk*>(shared.query + offset_of(first_row + i / kRowChunks,
                                                           i % kRowChunks * kChunk)) = loaded[a];
      }
    }
  }

  BH_INLINE void start_scores(const Place& place, int consumer, float* scores) const {
    shared.halves.wait_until_full(place);
    const uint32_t query =
        hopper::shared_address(shared.query) + consumer * 64 / kPanelTokens * kGroupBytes;
    const uint32_t keys = hopper::shared_address(shared.halves.slots[place.slot]);
    hopper::fence_registers();
    if constexpr (kPanels > 0) {
      const uint64_t a = hopper::describe_matrix<kPanel>(query, kGroupBytes);
      const uint64_t b = hopper::describe_matrix<kPanel>(keys, kGroupBytes);
#pragma unroll
      for (int i = 0; i < kPanels * 4; ++i) {
        const int at = i / 4 * kPanelBytes + i % 4 * 32;
        hopper::multiply<T, kKeys>(hopper::advance(a, at), hopper::advance(b, at), i > 0, scores);
      }
    }
    if constexpr (kLastWidth > 0) {
      constexpr int kLast = kPanels * kPanelBytes;
      const uint64_t a = hopper::describe_matrix<kLastWidth>(query + kLast, kGroupBytes);
      const uint64_t b = hopper::describe_matrix<kLastWidth>(keys + kLast, kGroupBytes);
#pragma unroll
      for (int at = 0; at < kLastWidth; at += 32) {
        hopper::multiply<T, kKeys>(hopper::advance(a, at), hopper::advance(b, at),
                                   kPanels > 0 || at > 0, scores);
      }
    }
    hopper::commit_products();
  }

  BH_INLINE void start_results(const Place& place, const uint32_t* weights, float* results) const {
    shared.halves.wait_until_full(place);
    const uint32_t values = hopper::shared_address(shared.halves.slots[place.slot]);
    hopper::fence_registers();
#pragma unroll
    for (int i = 0; i < kKeys / 16; ++i) {
      if constexpr (kPanels > 0) {
        const uint64_t b = hopper::describe_matrix<kPanel>(values, kGroupBytes, kPanelBytes);
#pragma unroll
        for (int c = 0; c < kPanels * 64 / kValueColumns; ++c) {
          hopper::accumulate<T, kValueColumns>(
              weights + 4 * i,
              hopper::advance(b, i * kTileBytes + c * (kValueColumns / 64) * kPanelBytes),
              results + c * kValueColumns / 2);
        }
      }
      if constexpr (kLastWidth > 0) {
        const uint64_t b =
            hopper::describe_matrix<kLastWidth>(values + kPanels * kPanelBytes, kGroupBytes);
        hopper::accumulate<T, kLastWidth / 2>(weights + 4 * i, hopper::advance(b, i * kTileBytes),
                                              results + kPanels * 32);
      }
    }
    hopper::commit_products();
  }

  /// Turns scores into weights relative to state.maximum, which may rise. Numbers 4j, 4j + 1 of a
  /// thread are of its first row, 4j + 2 and 4j + 3 of its second.
  BH_INLINE void weigh(int tile_key, const KeyRange& range, int first_row, float* scores,
                       State& state) const {
    const bool whole = tile_key >= range.first_whole && tile_key + kKeys <= range.end_whole;
    const float factor = exponent_factor(layer);
    const int key = tile_key + lane_index() % 4 * 2;  // the thread's first one
    auto for_each_score = [&](int r, auto&& body) {
#pragma unroll
      for (int i = 0; i < kScores / 2; ++i)
        body(i / 2 * 8 + i % 2, scores[i / 2 * 4 + 2 * r + i % 2]);
    };
    if (!is_plain(layer)) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const RowMask row = shared.rows[first_row + 8 * r];
        const auto distance = static_cast<float>(key - row.position);
        for_each_score(r, [&](int at, float& score) {
          score = transform_score(layer, row.slope, score, distance + static_cast<float>(at));
        });
      }
    }
    if (!whole) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const RowMask row = shared.rows[first_row + 8 * r];
        const int first = row.first - key;
        const int end = row.end - key;
        for_each_score(r, [&](int at, float& score) {
          if (at < first || at >= end) score = -infinity();
        });
      }
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float highest = scores[2 * r];
      for_each_score(r, [&](int, float score) { highest = fmaxf(highest, score); });
      highest = fmaxf(highest, shuffle_xor(highest, 1));
      highest = fmaxf(highest, shuffle_xor(highest, 2)) * factor;
      if (highest > state.maximum[r] + kSlack) {
        const float raised = highest;
        state.denominator[r] *= exp2_fast(state.maximum[r] - raised);
        state.maximum[r] = raised;
      }
      const float subtract = state.maximum[r] == -infinity() ? 0.0f : state.maximum[r];
      float sum = 0;
      for_each_score(r, [&](int, float& score) {
        score = exp2_fast(fmaf(score, factor, -subtract));
        sum += score;
      });
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
    const int count = item.num_tokens * layer.group_size;
    Token tokens[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int row = first_row + 8 * r;
      tokens[r] = token_of(step, item, row < count ? row / layer.group_size : 0);
    }
    char* to[2] = {};  // a token's output or a partial result, if the row is used
    bool is_whole[2];
    int head[2];
    float factor[2] = {};
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      state.denominator[r] += shuffle_xor(state.denominator[r], 1);
      state.denominator[r] += shuffle_xor(state.denominator[r], 2);
      const int row = first_row + 8 * r;
      const Token& token = tokens[r];
      head[r] = group * layer.group_size + row % layer.group_size;
      is_whole[r] = token.num_partials == 1;
      if (row >= count) continue;
      const bool is_first = lane_index() % 4 == 0;
      if (is_whole[r]) {
        const Finish last = finish(layer, head[r], state.maximum[r], state.denominator[r]);
        to[r] = token.output;
        factor[r] = last.factor;
        if (token.lse && is_first) token.lse[head[r]] = last.lse;
      } else {
        const int64_t partial =
            int64_t{token.first_partial + item.piece} * layer.num_heads + head[r];
        to[r] = reinterpret_cast<char*>(step.partial_sums + partial * kHead);
        if (is_first) {
          step.partial_state[partial * 2] = state.maximum[r];
          step.partial_state[partial * 2 + 1] = state.denominator[r];
        }
      }
    }
    auto store = [&]<int kCount>(int r, int dimension, const float(&numbers)[kCount]) {
      if (!to[r]) return;
      if (is_whole[r]) {
        store_output<T, kCount>(layer, to[r], head[r], dimension, factor[r], numbers);
      } else {
        store_numbers<Float32, kCount>(to[r], dimension, numbers);
      }
    };
    // Four threads have pairs of a row: of four times 8 numbers each gets 8.
    constexpr int kWhole = kHead / 32;
#pragma unroll
    for (int i = 0; i < kWhole; ++i) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        float numbers[8];
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          float quad[4];
#pragma unroll
          for (int k = 0; k < 4; ++k) quad[k] = results[16 * i + 4 * k + 2 * r + c];
          transpose_quad(quad);
#pragma unroll
          for (int k = 0; k < 4; ++k) numbers[2 * k + c] = quad[k];
        }
        store(r, 32 * i + lane_index() % 4 * 8, numbers);
      }
    }
#pragma unroll
    for (int j = kWhole * 4; j < kHead / 8; ++j) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const float pair[2] = {results[4 * j + 2 * r], results[4 * j + 2 * r + 1]};
        store(r, 8 * j + lane_index() % 4 * 2, pair);
      }
    }
    if (shared.is_unbounded) {
      write_unbounded<T, E>(layer, step, item, group, shared.rows, Consumers{});
    }
    finish_item<T, kHead, kMergeLanes<kHead>>(layer, step, item, group, &shared.last, Consumers{});
  }
};

template <class T, class E, int kHead>
__global__ void __launch_bounds__(HopperPrefill<T, E, kHead>::kThreads, 1)
    prefill_hopper(LayerArgs layer, const StepArgs* arguments) {
#if __CUDA_ARCH__ == 900
  using Kernel = HopperPrefill<T, E, kHead>;
  auto& shared = shared_memory_of<typename Kernel::Shared>();
  const int item = static_cast<int>(blockIdx.x) / layer.num_groups;
  const int group = static_cast<int>(blockIdx.x) % layer.num_groups;
  Kernel{layer, *arguments, arguments->prefill_items[item], group, shared}.run();
#endif
}

}  // namespace broadhead::gpu
