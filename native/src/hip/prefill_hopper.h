// SPDX-License-Identifier: Apache-2.0
// Prefill on Hopper. A block of threads stays on a multiprocessor and takes one item after the
// other, so that queries and the first keys of the next one are on their way while this one ends.
// One warp takes the items and brings keys and values by bulk copies, others bring queries, and
// those that are left clear what must not be multiplied and widen fp8. Two or three warpgroups
// multiply. The next keys' scores are multiplied before these keys' values, and their softmax runs
// beside the latter. The cache is laid out so that what the copies bring is what wgmma reads.
#pragma once

#include "hip/copy.h"
#include "hip/hopper_results.h"
#include "hip/hopper_ring.h"
#include "hip/hopper_softmax.h"
#include "hip/wgmma.h"

namespace broadhead::gpu {

constexpr int round_up(int size, int unit) { return (size + unit - 1) / unit * unit; }

/// Tensors of T on a cache of E.
template <class T, class E, int kHead>
struct HopperPrefill {
  /// fp8 is copied to a ring of its own first, and widened from there.
  static constexpr bool kWidens = sizeof(E) < sizeof(T);
  /// Warpgroups that bring what is multiplied, one more to widen where registers are left for it;
  /// and those that multiply: a third one where its registers suffice, so that products of one run
  /// beside the softmax of others.
  static constexpr int kProducers = kWidens && kHead <= 128 ? 2 : 1;
  static constexpr int kConsumers = !kWidens && kHead <= 96 ? 3 : 2;
  static constexpr int kConsumerRows = 64;
  static constexpr int kRows = kConsumers * kConsumerRows;
  /// Multiplied at once: what a thread's registers hold the scores of, beside its results.
  static constexpr int kKeys = kConsumers == 3 ? (kHead <= 64 ? 96 : 64)
                               : kWidens       ? (kHead <= 96 ? 128 : 64)
                                               : (kHead <= 128 ? 128 : 64);
  static constexpr int kGroupWarps = hopper::kGroupThreads / kWave;
  static constexpr int kProducerThreads = kProducers * hopper::kGroupThreads;
  static constexpr int kThreads = kProducerThreads + kConsumers * hopper::kGroupThreads;
  /// Warps that bring queries, where that leaves enough of them to widen; otherwise the copying one
  /// does it.
  static constexpr int kQueryWarps = !kWidens ? 2 : kProducers == 2 ? 1 : 0;
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
  static constexpr int kValueColumns = kPanels % 2 == 0 ? 128 : 64;
  /// Registers of a thread at launch, and after the roles part. What the copying threads give is
  /// all that there is to take: a warpgroup that asks for more waits for ever.
  static constexpr int kLaunchRegisters = 65536 / kThreads / 8 * 8;
  static constexpr int kProducerRegisters = 56;
  static constexpr int kConsumerRegisters = kConsumers == 3 ? 152 : kProducers == 2 ? 200 : 224;
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
      hopper::kSharedBytes - kQueryBytes - kRows * int{sizeof(RowMask)} - 1024;
  static constexpr int kMostSlots = 8;
  static constexpr int kLeastSlots = 4;
  BH_HOST_DEVICE static constexpr int within(int least, int count, int most) {
    return count < least ? least : count < most ? count : most;
  }
  static constexpr int kSlots =
      within(kLeastSlots, kRingBytes / (kHalfBytes + (kWidens ? kCodeBytes : 0)), kMostSlots);
  static constexpr int kCodeSlots =
      kWidens ? within(1, (kRingBytes - kSlots * kHalfBytes) / kCodeBytes, kSlots) : 1;

  using Place = typename hopper::Ring<kSlots>::Place;
  using CodePlace = typename hopper::Ring<kCodeSlots>::Place;

  /// What a block of threads works on: an item, for a group of heads.
  struct Work {
    AttendItem item;
    int32_t group;         ///< -1: there is nothing left
    int32_t is_unbounded;  ///< infinities or NaNs were made zero
  };
  static constexpr int kWorks = 3;
  using WorkPlace = typename hopper::Ring<kWorks>::Place;

  /// The cache as a run of pieces of kCopyTokens tokens, 512 bytes at least, so that an int counts
  /// those of any pool: a block has those of a head's keys, and then of its values. Copies are
  /// limited by the instructions before them: what is the same for all items is divided once.
  struct Pieces {
    const char* memory;
    int of_half;  ///< pieces of a block's keys, or values, of a head
    int of_block;
    int blocks, rest;  ///< of kCopies pieces: whole blocks, and what is left

    Pieces() = default;
    BH_INLINE explicit Pieces(const CacheView& cache)
        : memory(cache.memory),
          of_half(cache.block_size / kCopyTokens),
          of_block(cache.num_kv_heads * 2 * of_half),
          blocks(kCopies / of_half),
          rest(kCopies % of_half) {}
  };

  /// Whose turn it is at the queries and rows of a warpgroup.
  struct Turn {
    uint64_t full, queries_empty, rows_empty;
    /// Its first keys of an item are multiplied: the next warpgroup may begin. So one multiplies
    /// while the other has its softmax.
    uint64_t started;
  };

  struct Shared {
    char query[kQueryBytes];
    char halves[kSlots][kHalfBytes];
    char codes[kCodeSlots][kCodeBytes];
    Work works[kWorks];
    Pieces pieces;
    RowMask rows[kRows];
    Turn turns[kConsumers];
    hopper::Ring<kSlots> half_ring;
    hopper::Ring<kCodeSlots> code_ring;
    hopper::Ring<kWorks> work_ring;
    uint64_t copied[kSlots];  ///< values that are not full before some of them are cleared
    int32_t last;
  };
  static_assert(sizeof(Shared) <= hopper::kSharedBytes);

  /// The threads that multiply.
  struct Consumers {
    __device__ int index() const { return static_cast<int>(threadIdx.x) - kProducerThreads; }
    __device__ int size() const { return kConsumers * hopper::kGroupThreads; }
    __device__ void synchronize() const { hopper::synchronize(1, size()); }
  };
  /// The threads that clear or widen.
  struct Cleaners {
    static constexpr int kFirst = (1 + kQueryWarps) * kWave;
    __device__ int index() const { return static_cast<int>(threadIdx.x) - kFirst; }
    __device__ static constexpr int size() { return kProducerThreads - kFirst; }
    __device__ bool synchronize_any(bool found) const {
      return hopper::synchronize_any(2, size(), found);
    }
  };

  const LayerArgs& layer;
  const StepArgs& step;
  Shared& shared;
  // Where the calling thread is.
  Work* work = nullptr;
  uint32_t parity = 1;  ///< of how many items came before
  int first_key = 0;
  int tiles = 0;

  BH_INLINE void run() {
    if (threadIdx.x == 0) {
      for (Turn& turn : shared.turns) {
        hopper::init_barrier(&turn.full, kWave);
        hopper::init_barrier(&turn.queries_empty, kGroupWarps);
        hopper::init_barrier(&turn.rows_empty, kGroupWarps);
        hopper::init_barrier(&turn.started, kGroupWarps);
      }
      shared.half_ring.begin(1, kConsumers);
      shared.code_ring.begin(1, Cleaners::size());
      shared.work_ring.begin(kWave, kThreads / kWave - 1);
      for (uint64_t& barrier : shared.copied) hopper::init_barrier(&barrier, 1);
      hopper::fence_barrier_init();
    }
    __syncthreads();
    if (threadIdx.x < kProducerThreads) {
      hopper::give_registers<kProducerRegisters>();
      if (threadIdx.x < kWave) {
        bring_items();
      } else if (const int warp = static_cast<int>(threadIdx.x) / kWave - 1; warp < kQueryWarps) {
        for_each_item([&] {
          for (int c = warp; c < kConsumers; c += kQueryWarps) bring_queries(c);
        });
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

  /// A lane's share of 8 rows in shared memory: of row lane % 8 the chunk lane / 8 and every fourth
  /// one behind it. Calls body(byte of the row, offset).
  template <class Body>
  BH_INLINE static void for_each_share(Body&& body) {
#pragma unroll
    for (int first = 0; first < kRowBytes; first += 4 * kChunk) {
      const int byte = first + lane_index() / kPanelTokens * kChunk;
      if (byte < kRowBytes) body(byte, offset_of(lane_index() % kPanelTokens, byte));
    }
  }

  /// Keys that all rows see. Neither the first key nor the last that a token sees is before those
  /// of the token before it.
  struct WholeRange {
    int first;
    int end;
    BH_INLINE bool contains(int key, int count) const { return key >= first && key + count <= end; }
  };
  BH_INLINE WholeRange whole_range() const {
    const Token last = token_of(step, work->item, work->item.num_tokens - 1);
    return {last.first > work->item.first_seen ? last.first : work->item.first_seen,
            work->item.token.end < work->item.end_key ? work->item.token.end : work->item.end_key};
  }

  /// Calls `body` at one item after the other. For all warps but the copying one.
  template <class Body>
  BH_INLINE void for_each_item(Body&& body) {
    WorkPlace at;
    for (;;) {
      const WorkPlace place = at.take();
      shared.work_ring.wait_until_full(place);
      if (!begin(shared.works[place.slot])) return;
      body();
      tell(shared.work_ring.empty[place.slot]);
    }
  }

  BH_INLINE bool begin(Work& next) {
    work = &next;
    parity ^= 1;
    first_key = next.item.first_key;
    tiles = (next.item.end_key - first_key + kKeys - 1) / kKeys;
    return next.group >= 0;
  }

  /// Arrives once for a warp.
  BH_INLINE static void tell(uint64_t& barrier) {
    __syncwarp();
    if (lane_index() == 0) hopper::arrive(&barrier);
  }

  // ---- the warp that copies ----

  /// A block of threads begins with the item of its index, and then takes the next one that nobody
  /// has: the longest ones come first.
  BH_INLINE void bring_items() {
    const int count = step.num_prefill_items * layer.num_groups;
    if (lane_index() == 0) shared.pieces = Pieces(step.cache);
    __syncwarp();
    WorkPlace work_at;
    Place at;
    CodePlace code_at;
    for (int number = static_cast<int>(blockIdx.x);; number = take_number(count)) {
      const WorkPlace place = work_at.take();
      shared.work_ring.wait_until_empty(place);
      Work& next = shared.works[place.slot];
      load(number, count, next);
      hopper::arrive(&shared.work_ring.full[place.slot]);
      __syncwarp();
      if (!begin(next)) return;
      if constexpr (kWidens) {
        copy(shared.code_ring, shared.codes, code_at);
      } else {
        copy(shared.half_ring, shared.halves, at);
      }
    }
  }

  BH_INLINE int take_number(int count) const {
    int number = 0;
    if (lane_index() == 0) {
      const auto blocks = static_cast<int>(gridDim.x);
      number = blocks + atomicAdd(step.taken, 1);
      // Every block takes one too many; this is the last of all.
      if (number == count - 1 + blocks) *step.taken = 0;
    }
    return shuffle(number, 0);
  }

  /// All lanes.
  BH_INLINE void load(int number, int count, Work& work) const {
    constexpr int kChunks = sizeof(AttendItem) / sizeof(Chunk);
    static_assert(sizeof(AttendItem) % sizeof(Chunk) == 0 && kChunks <= kWave);
    if (number < count && lane_index() < kChunks) {
      const AttendItem* from = step.prefill_items + number / layer.num_groups;
      reinterpret_cast<Chunk*>(&work.item)[lane_index()] =
          reinterpret_cast<const Chunk*>(from)[lane_index()];
    }
    if (lane_index() == 0) {
      work.group = number < count ? number % layer.num_groups : -1;
      work.is_unbounded = 0;
    }
  }

  /// Of what is copied to a half of keys, lane i has piece number i.
  struct Source {
    const int32_t* blocks;
    int head;    ///< pieces before those of the item's head in a block
    int index;   ///< of the piece's block among `blocks`
    int within;  ///< pieces before it, of that block's half
    int left;    ///< tokens from its first one to the item's end
    int block;   ///< id

    BH_INLINE int piece(const Pieces& pieces) const {
      return block * pieces.of_block + head + within;
    }
    /// Of the next half of keys. Its block's id is on its way then.
    BH_INLINE void advance(const Pieces& pieces) {
      index += pieces.blocks;
      within += pieces.rest;
      if (within >= pieces.of_half) {
        within -= pieces.of_half;
        ++index;
      }
      left -= kKeys;
      if (left > 0) block = load_constant(blocks + index);
    }
  };

  BH_INLINE Source first_source() const {
    const int of_half = shared.pieces.of_half;
    const int copy = lane_index() < kCopies ? lane_index() : 0;
    const int number = first_key / kCopyTokens + copy;
    const int index = number / of_half;
    return {step.blocks + work->item.blocks,
            work->group / layer.groups_per_kv_head * 2 * of_half,
            index,
            number - index * of_half,
            work->item.end_key - number * kCopyTokens,
            work->item.first_blocks[copy * kCopyTokens / kTile]};
  }

  /// Copies of a half of what is multiplied as number n.
  BH_INLINE int copies_of(int n) const {
    const int left = work->item.end_key - first_key - n * kKeys;
    return (left < kKeys ? left + kCopyTokens - 1 : kKeys) / kCopyTokens;
  }

  /// `own`: the calling lane's piece.
  template <class R, class Slots>
  BH_INLINE void copy_half(R& ring, Slots& slots, const typename R::Place& place, int own,
                           int count, uint64_t* full) const {
    auto copy_one = [&, memory = shared.pieces.memory](int slot, int i, int piece) {
      hopper::copy_bulk(slots[slot] + i * (sizeof slots[0] / kCopies),
                        memory + int64_t{piece} * kCopyBytes, kCopyBytes, &full[slot]);
    };
    if (count < kCopies) {
      ring.wait_until_empty(place);
      if (lane_index() == 0) hopper::arrive_expecting(&full[place.slot], count * kCopyBytes);
      __syncwarp();
      if (lane_index() < count) copy_one(place.slot, lane_index(), own);
      return;
    }
    // One lane makes all copies, from numbers that are the same for all: no loop over lanes. They
    // are exchanged before there is room, since everyone waits for what follows.
    const int slot = shuffle(place.slot, 0);
    int pieces[kCopies];
#pragma unroll
    for (int i = 0; i < kCopies; ++i) pieces[i] = shuffle(own, i);
    ring.wait_until_empty(place);
    if (!hopper::elect()) return;
    hopper::arrive_expecting(&full[slot], kCopies * kCopyBytes);
#pragma unroll
    for (int i = 0; i < kCopies; ++i) copy_one(slot, i, pieces[i]);
  }

  template <class R, class Slots>
  BH_INLINE void copy(R& ring, Slots& slots, typename R::Place& at) const {
    const Pieces& pieces = shared.pieces;
    Source source = first_source();
    if (tiles > 0) {
      const auto place = at.take();
      copy_half(ring, slots, place, source.piece(pieces), copies_of(0), ring.full);
    }
    if constexpr (kQueryWarps == 0) {
      for (int c = 0; c < kConsumers; ++c) bring_queries(c);
      source = first_source();  // not kept in registers meanwhile
    }
    int keys = source.piece(pieces);
    source.advance(pieces);
    const WholeRange whole = whole_range();
    for (int n = 0; n < tiles; ++n) {
      const int next = source.piece(pieces);
      source.advance(pieces);
      if (n + 1 < tiles) {
        const auto place = at.take();
        copy_half(ring, slots, place, next, copies_of(n + 1), ring.full);
      }
      const auto place = at.take();
      const bool cleared = !kWidens && !whole.contains(first_key + n * kKeys, kKeys);
      copy_half(ring, slots, place, keys + pieces.of_half, copies_of(n),
                cleared ? shared.copied : ring.full);
      keys = next;
    }
  }

  // ---- the warps that bring queries ----

  BH_INLINE void bring_queries(int consumer) const {
    constexpr int kRuns = kConsumerRows / kWave;
    Turn& turn = shared.turns[consumer];
    const int first_row = consumer * kConsumerRows;
    QueryRow rows[kRuns];
#pragma unroll
    for (int run = 0; run < kRuns; ++run) {
      rows[run] = describe_row(layer, step, work->item, work->group,
                               first_row + run * kWave + lane_index());
      if (!rows[run].query) continue;
#pragma unroll
      for (int byte = 0; byte < kRowBytes; byte += 128) prefetch(rows[run].query + byte);
    }
    hopper::wait(&turn.queries_empty, parity ^ 1);
    char* to = shared.query + first_row / kPanelTokens * kGroupBytes;
#pragma unroll
    for (int run = 0; run < kRuns; ++run) {
      const auto own = reinterpret_cast<unsigned long long>(rows[run].query);
#pragma unroll 1  // registers
      for (int row = lane_index() % kPanelTokens; row < kWave; row += kPanelTokens) {
        const auto* query = reinterpret_cast<const char*>(shuffle(own, row));
        for_each_share([&](int byte, int offset) {
          hopper::copy_or_clear(to + offset, query + byte, query != nullptr);
        });
        to += kGroupBytes;
      }
    }
    // Masks are still in use when queries are not.
    hopper::wait(&turn.rows_empty, parity ^ 1);
#pragma unroll
    for (int run = 0; run < kRuns; ++run) {
      shared.rows[first_row + run * kWave + lane_index()] = rows[run];
    }
    commit_copies();
    wait_for_copies();
    hopper::fence_stores();
    hopper::arrive(&turn.full);
  }

  // ---- the warp that clears what is not to be multiplied, or those that widen fp8 ----

  BH_INLINE void clear() {
    uint32_t parities = 0;  // a bit for each slot
    Place at;
    for_each_item([&] {
      const WholeRange whole = whole_range();
      if (tiles > 0) at.take();
      for (int n = 0; n < tiles; ++n) {
        if (n + 1 < tiles) at.take();
        const int slot = at.take().slot;
        const int key = first_key + n * kKeys;
        if (whole.contains(key, kKeys)) continue;
        hopper::wait(&shared.copied[slot], parities >> slot & 1);
        parities ^= 1u << slot;
        clear_ragged(key, whole, shared.halves[slot]);
        hopper::fence_stores();
        tell(shared.half_ring.full[slot]);
      }
    });
  }

  /// Values that no row sees become zero, and of those that some rows see infinities and NaNs.
  BH_INLINE void clear_ragged(int tile_key, const WholeRange& whole, char* values) const {
    auto for_each_token = [&](auto&& is_asked_for, auto&& body) {
      for (int first = 0; first < kKeys; first += kPanelTokens) {
        const int token = first + lane_index() % kPanelTokens;
        const bool asked_for = is_asked_for(tile_key + token);
        if (any(asked_for)) body(asked_for, values + first / kPanelTokens * kGroupBytes);
      }
    };
    for_each_token(
        [&](int key) { return !is_seen(key); },
        [](bool is_unseen, char* group) {
          if (!is_unseen) return;
          for_each_share([&](int, int offset) { *reinterpret_cast<Chunk*>(group + offset) = {}; });
        });
    auto is_ragged = [&](int key) { return is_seen(key) && !whole.contains(key, 1); };
    uint32_t probe = 0;  // becomes NaN
    for_each_token(is_ragged, [&](bool is_ragged, char* group) {
      uint32_t of_token = 0;
      for_each_share([&](int, int offset) {
        for (const uint32_t word : reinterpret_cast<const Chunk*>(group + offset)->words) {
          of_token = add_zero_times<E>(of_token, word);
        }
      });
      if (is_ragged) probe = add_zero_times<E>(probe, of_token);
    });
    if (!any(unbounded_bits<E>(probe) != 0)) return;
    if (lane_index() == 0) work->is_unbounded = 1;
    for_each_token(is_ragged, [](bool is_ragged, char* group) {
      if (!is_ragged) return;
      for_each_share(
          [&](int, int offset) { drop_unbounded(*reinterpret_cast<Chunk*>(group + offset)); });
    });
  }

  /// Tells the consumers, once the whole team comes here; `found`: this thread made infinities or
  /// NaNs zero.
  BH_INLINE void tell_full(int slot, bool found, const Cleaners& team) const {
    hopper::fence_stores();
    const bool any_found = team.synchronize_any(found);
    if (team.index() == 0) {
      if (any_found) work->is_unbounded = 1;
      hopper::arrive(&shared.half_ring.full[slot]);
    }
  }

  /// Whether any row of the item sees a key.
  BH_INLINE bool is_seen(int key) const {
    return key >= work->item.first_seen && key < work->item.end_key;
  }

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

  BH_INLINE void widen_halves() {
    const Cleaners team;
    CodePlace from;
    Place to;
    for_each_item([&] {
      const WholeRange whole = whole_range();
      for (int m = 0; m < 2 * tiles; ++m) {
        const bool are_values = m == 2 * tiles - 1 || (m > 0 && m % 2 == 0);
        const int n = are_values ? (m - 1) / 2 : (m + 1) / 2;
        const CodePlace codes = from.take();
        const Place wide = to.take();
        shared.code_ring.wait_until_full(codes);
        shared.half_ring.wait_until_empty(wide);
        const bool found = widen_half(first_key + n * kKeys, whole, are_values,
                                      shared.codes[codes.slot], shared.halves[wide.slot], team);
        hopper::arrive(&shared.code_ring.empty[codes.slot]);
        tell_full(wide.slot, found, team);
      }
    });
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

  BH_INLINE void consume() {
    // The same for all lanes, as the compiler cannot know.
    const int consumer =
        shuffle(static_cast<int>(threadIdx.x) / hopper::kGroupThreads, 0) - kProducers;
    const int thread = static_cast<int>(threadIdx.x) % hopper::kGroupThreads;
    const int first_row = consumer * kConsumerRows + thread / kWave * 16 + lane_index() / 4;
    const int32_t heads[2] = {hopper::heads_before(layer, first_row),
                              hopper::heads_before(layer, first_row + 8)};
    Turn& turn = shared.turns[consumer];
    Place at;
    for_each_item([&] {
      hopper::wait(&turn.full, parity);
      KeyRange range;
      for (int row = first_row; row <= first_row + 8; row += 8) {
        if (row < work->item.num_tokens * layer.group_size) range.add(shared.rows[row]);
      }
      hopper::RowStates state;
      float scores[kScores];
      uint32_t weights[kScores / 2];
      float results[kHead / 2];
#pragma unroll
      for (float& result : results) result = 0;
      auto weigh = [&](int key) {
        hopper::weigh<kKeys>(layer, shared.rows + first_row, range, key, scores, state);
      };

      // One after the other, the first of an item behind the last of the one before; they wait
      // where there is nothing to multiply, too.
      const int before = consumer == 0 ? kConsumers - 1 : consumer - 1;
      hopper::wait(&shared.turns[before].started, consumer == 0 ? parity ^ 1 : parity);
      if (tiles > 0) {
        const Place first = at.take();
        start_scores(first, consumer, scores);
        hopper::wait_for_products<0>();
        release_half(first);
        tell(turn.started);
        if (tiles == 1) tell(turn.queries_empty);
        weigh(first_key);
        hopper::round_weights<T>(scores, weights);
        for (int n = 1; n < tiles; ++n) {
          const Place keys = at.take();
          start_scores(keys, consumer, scores);
          const Place values = at.take();
          start_results(values, weights, results);
          hopper::wait_for_products<1>();
          release_half(keys);
          if (n + 1 == tiles) tell(turn.queries_empty);
          const hopper::RowStates before = state;
          weigh(first_key + n * kKeys);
          // The loop within keeps ptxas from waiting for the results before the weights.
          shared.half_ring.wait_until_full(at);
          hopper::wait_for_products<0>();
          release_half(values);
          hopper::rescale(before, state, results);
          hopper::round_weights<T>(scores, weights);
        }
        tell(turn.rows_empty);
        const Place values = at.take();
        start_results(values, weights, results);
        hopper::wait_for_products<0>();
        release_half(values);
      } else {
        tell(turn.started);
        tell(turn.queries_empty);
        tell(turn.rows_empty);
      }
      write(first_row, heads, state, results);
    });
  }

  /// Tells those who fill it that a warpgroup is done with a half.
  BH_INLINE void release_half(const Place& place) const {
    if (threadIdx.x % hopper::kGroupThreads == 0) {
      hopper::arrive(&shared.half_ring.empty[place.slot]);
    }
  }

  BH_INLINE void start_scores(const Place& place, int consumer, float* scores) const {
    shared.half_ring.wait_until_full(place);
    const uint32_t query = hopper::shared_address(shared.query) +
                           consumer * kConsumerRows / kPanelTokens * kGroupBytes;
    const uint32_t keys = hopper::shared_address(shared.halves[place.slot]);
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
    shared.half_ring.wait_until_full(place);
    const uint32_t values = hopper::shared_address(shared.halves[place.slot]);
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

  BH_INLINE void write(int first_row, const int32_t (&heads)[2], hopper::RowStates& state,
                       const float (&results)[kHead / 2]) const {
    const AttendItem& item = work->item;
    const int group = work->group;
    state.end();
    if (item.is_partial) {
      hopper::write_parts<kHead>(layer, step, item, group, first_row, state, results);
    } else if (layer.output_dtype == BH_FLOAT8_E4M3FN) {
      hopper::write_outputs<Float8E4M3, kHead>(layer, item, group, first_row, heads, state,
                                               results);
    } else {
      hopper::write_outputs<T, kHead>(layer, item, group, first_row, heads, state, results);
    }
    if (work->is_unbounded) {
      auto row_of = [&](int r) { return describe_row(layer, step, item, group, r); };
      write_unbounded<T, E>(layer, step, item, group, row_of, Consumers{});
    }
    constexpr int kLanes =
        kConsumers == 3 ? 16 : kMergeLanes<kHead>;  // fewer would spill registers
    finish_item<T, kHead, kLanes>(layer, step, item, group, &shared.last, Consumers{});
  }
};

template <class T, class E, int kHead>
__global__ void __launch_bounds__(HopperPrefill<T, E, kHead>::kThreads, 1)
    prefill_hopper(LayerArgs layer, const StepArgs* arguments) {
#if __CUDA_ARCH__ == 900
  using Kernel = HopperPrefill<T, E, kHead>;
  Kernel{layer, *arguments, shared_memory_of<typename Kernel::Shared>()}.run();
#endif
}

}  // namespace broadhead::gpu
