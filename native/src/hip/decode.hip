// SPDX-License-Identifier: Apache-2.0
// Decode: few query rows against many keys. What counts is that the cache streams by: every wave
// keeps some tiles of its own under way, without waiting for other waves.
//
// A block of threads is resident for the whole launch and works through its items, which the plan
// chose so that all blocks end together. Its waves take tiles in turns and join at the end of an
// item.
#include <type_traits>

#include "hip/copy.h"
#include "hip/kernels.h"
#include "hip/softmax.h"

namespace broadhead::gpu {
namespace {

/// Terms that a float32 weight is split into so that its product with a value is as good as
/// float32.
template <class T>
constexpr int kWeightTerms = 2;
template <>
constexpr int kWeightTerms<BFloat16> = 3;

/// A wave's share of an item's tiles, every kWaves-th, on their way from the cache to the matrix
/// instructions.
template <class T, class E, int kHead>
class Stream {
 public:
  static constexpr int kHalfBytes = kTile * kHead * int{sizeof(E)};  ///< keys of a tile
#if BH_TILE == BH_TILE_MMA
  /// Tiles under way: what does not fit into registers lies in shared memory, a ring for each wave.
  static constexpr int kRing = kHead <= 64 ? 12288 : 16384;
  static constexpr int kStages = kRing / (2 * kHalfBytes) < 2 ? 2
                                 : kRing / (2 * kHalfBytes) > kTilesAhead
                                     ? kTilesAhead
                                     : kRing / (2 * kHalfBytes);
  static constexpr int kRingBytes = 2 * kStages * kHalfBytes;
#else
  static constexpr int kRingBytes = 16;
#endif

  BH_INLINE Stream(const StepArgs& step, int kv_head, char* ring)
      : cache_(step.cache),
        blocks_(step.blocks),
        tiles_per_block_(step.cache.block_size / kTile),
        kv_head_(kv_head),
        ring_(ring + wave_index() * kRingBytes) {}

  /// Starts to load an item's first tiles.
  BH_INLINE void start(const AttendItem& item) {
    table_ = item.blocks;
    first_tile_ = item.first_key / kTile + wave_index();
    end_tile_ = (item.end_key + kTile - 1) / kTile;
    turn_ = 0;
    first_ids_ = item.first_blocks[lane_index() % kTilesAhead * kWaves + wave_index()];
    ids_ = load_ids(0);
    ids_ahead_ = load_ids(kWave);
    begin_loads();
  }

  BH_INLINE bool done() const { return tile() >= end_tile_; }
  BH_INLINE int tile() const { return tile_of(turn_); }
  BH_INLINE void advance() { ++turn_; }

#if BH_TILE == BH_TILE_MMA
  /// Calls visit(keys) when they are here, then loads those of a later tile.
  template <class Visit>
  BH_INLINE void with_keys(Visit&& visit) {
    wait();
    KeyTile<T, E, kHead> keys;
    keys.template load<Memory::kShared>(slot(turn_, 0));
    visit(keys);
    __syncwarp();
    fetch_half(turn_ + kStages, 0);
  }
  template <class Visit>
  BH_INLINE void with_values(Visit&& visit) {
    wait();
    ValueTile<T, E, kHead> values;
    values.template load<Memory::kShared>(slot(turn_, 1));
    visit(values);
    __syncwarp();
    fetch_half(turn_ + kStages, 1);
  }

 private:
  BH_INLINE void begin_loads() {
#pragma unroll
    for (int n = 0; n < kStages; ++n) {
      fetch_half<true>(n, 0);
      fetch_half<true>(n, 1);
    }
  }

  BH_INLINE char* slot(int n, int half) const {
    return ring_ + (n % kStages * 2 + half) * kHalfBytes;
  }

  /// Copies keys (half 0) or values of the wave's tile n, as they lie in the cache. Halves arrive
  /// in the order in which they are fetched; one is fetched for each that is waited for.
  template <bool kFirst = false>
  BH_INLINE void fetch_half(int n, int half) {
    if (tile_of(n) < end_tile_) {
      if (half == 0) find<kFirst>(n);
      constexpr int kRowBytes = kHead * int{sizeof(E)};
      const char* from = tile_ + half * cache_.half_bytes;
      char* to = slot(n, half);
#pragma unroll
      for (int i = 0; i < (kRowBytes + kWave - 1) / kWave; ++i) {
        const int chunk = i * kWave + lane_index();  // of 16 * kRowBytes / 16
        if ((i + 1) * kWave <= kRowBytes || chunk < kRowBytes) {
          copy_chunk(to + chunk * kChunk, from + chunk * kChunk);
        }
      }
    }
    commit_copies();
  }

  BH_INLINE void wait() {
    wait_for_copies<2 * kStages - 1>();
    __syncwarp();
  }
#elif BH_TILE == BH_TILE_MFMA
  /// In registers, a tile ahead.
  template <class Visit>
  BH_INLINE void with_keys(Visit&& visit) {
    visit(keys_);
    if (tile_of(turn_ + 1) >= end_tile_) return;
    find(turn_ + 1);
    load_keys(keys_);
  }
  template <class Visit>
  BH_INLINE void with_values(Visit&& visit) {
    visit(values_);
    if (tile_of(turn_ + 1) < end_tile_) load_values(values_);
  }

 private:
  BH_INLINE void begin_loads() {
    if (done()) return;
    find<true>(0);
    load_keys(keys_);
    load_values(values_);
  }

  KeyTile<T, E, kHead> keys_;
  ValueTile<T, E, kHead> values_;
#else
  /// RDNA's waves of 32 hold twice as much of a tile: no registers for the next one, but there are
  /// many waves.
  template <class Visit>
  BH_INLINE void with_keys(Visit&& visit) {
    find(turn_);
    KeyTile<T, E, kHead> keys;
    load_keys(keys);
    visit(keys);
  }
  template <class Visit>
  BH_INLINE void with_values(Visit&& visit) {
    ValueTile<T, E, kHead> values;
    load_values(values);
    visit(values);
  }

 private:
  BH_INLINE void begin_loads() {}
#endif

  BH_INLINE void load_keys(KeyTile<T, E, kHead>& keys) const {
    keys.template load<Memory::kCache>(tile_);
  }
  BH_INLINE void load_values(ValueTile<T, E, kHead>& values) const {
    values.template load<Memory::kCache>(tile_ + cache_.half_bytes);
  }

  BH_INLINE int tile_of(int n) const { return first_tile_ + n * kWaves; }

  /// Block ids of the wave's tiles n, n + 1, ..., a lane holding one each.
  BH_INLINE int32_t load_ids(int n) const {
    const int tile = tile_of(n + lane_index());
    return tile < end_tile_ ? blocks_[table_ + tile / tiles_per_block_] : 0;
  }

  /// Finds the wave's tile n; called for n = 0, 1, 2, ...
  /// @tparam kFirst it is one of the first kTilesAhead: the block table is on its way still.
  template <bool kFirst = false>
  BH_INLINE void find(int n) {
    if (!kFirst && n > 0 && n % kWave == 0) {
      ids_ = ids_ahead_;
      ids_ahead_ = load_ids(n + kWave);
    }
    tile_ = keys_of(cache_, shuffle(kFirst ? first_ids_ : ids_, n % kWave), kv_head_);
    if (tiles_per_block_ > 1) tile_ += tile_of(n) % tiles_per_block_ * kTile * cache_.row_bytes;
  }

  const CacheView& cache_;
  const int32_t* blocks_;
  int tiles_per_block_;
  int kv_head_;
  char* ring_;
  int table_ = 0;
  int first_tile_ = 0;
  int end_tile_ = 0;
  int turn_ = 0;
  int32_t first_ids_ = 0;
  int32_t ids_ = 0;
  int32_t ids_ahead_ = 0;
  const char* tile_ = nullptr;  ///< keys of the tile that was found last
};

BH_HOST_DEVICE constexpr int joined_dimensions(int head_size, int bytes, int limit) {
  // No run of a lane is cut.
  while (head_size * bytes > limit && head_size / 2 % 16 == 0) head_size /= 2;
  return head_size;
}

template <class T, class E, int kHead, int kColumnTiles>
struct Decode {
  /// What matrix instructions multiply. All numbers of an fp8 cache are float16 numbers, which
  /// takes fewer instructions and fewer terms of a weight than bfloat16.
  using M = std::conditional_t<sizeof(E) == 1, Float16, T>;
  static constexpr bool kConverts = !std::is_same_v<T, M>;
  static constexpr int kQueryRows = kColumnTiles * kColumns;
  static constexpr int kTiles = kHead / 16;
  static constexpr int kTerms = kWeightTerms<M>;
  /// Most heads leave no registers for queries.
  static constexpr bool kQueryInShared = kHead >= 64;
  /// Are queries asked for before the item's first keys? AMD's compiler would spill others for
  /// them.
#if defined(__CUDACC__)
  static constexpr bool kQueryFirst = true;
#else
  static constexpr bool kQueryFirst = false;
#endif
  /// Waves join so many dimensions at a time: beside their rings, as many blocks of threads as the
  /// registers allow fit into Hopper's shared memory.
  static constexpr int kJoinedBytes = kHead <= 64 ? 4096 : 8192;
  static constexpr int kJoined = joined_dimensions(kHead, kWaves* kQueryRows * 4, kJoinedBytes);

  struct Shared {
    char rings[kWaves * Stream<M, E, kHead>::kRingBytes];
    float sums[kWaves][kQueryRows][kJoined];
    float maximum[kWaves][kQueryRows];
    float denominator[kWaves][kQueryRows];
    QueryRow rows[kQueryRows];
    Columns query[kColumnTiles][kQueryInShared ? kTiles : 1][kWave];
    AttendItem items[2];  ///< this one and the next, in turns
    int32_t last;
    int32_t is_unbounded;  ///< infinities or NaNs were made zero
  };

  const LayerArgs& layer;
  const StepArgs& step;
  Shared& shared;
  int group;

  /// Works through the block's items. An item's first keys and values are under way while the item
  /// before it is joined. What is small is asked for first: behind all that the device's waves have
  /// under way it would take microseconds.
  BH_INLINE void run() {
    Stream<M, E, kHead> stream(step, group / layer.groups_per_kv_head, shared.rings);
    Columns query[kColumnTiles][kTiles];
    int32_t word = word_of_item(static_cast<int>(blockIdx.x));
    keep_word(shared.items[0], word);
    __syncthreads();
    if (shared.items[0].num_tokens == 0) return;
    if constexpr (kQueryFirst) load_queries(shared.items[0], query);
    word = word_of_item(shared.items[0].next);
    stream.start(shared.items[0]);
    for (int round = 0;; ++round) {
      const AttendItem& item = shared.items[round % 2];
      AttendItem& next = shared.items[(round + 1) % 2];
      ColumnState state[kColumnTiles];
      Sums results[kColumnTiles][kTiles];
      keep_word(next, word);
      begin(item, query, state, results);
      if (item.next >= 0) prefetch_for(next);
      attend(item, stream, query, state, results);
      if (item.next >= 0) stream.start(next);
      join(item, state, results);
      const int following = item.next;
      __syncthreads();
      if (following < 0) return;
      if constexpr (kQueryFirst) load_queries(next, query);
      word = word_of_item(next.next);
    }
  }

 private:
  static constexpr int kItemWords = sizeof(AttendItem) / sizeof(int32_t);

  /// A thread's part of item i, where there is one.
  BH_INLINE int32_t word_of_item(int i) const {
    const int word = static_cast<int>(threadIdx.x);
    return i < 0 || word >= kItemWords
               ? 0
               : reinterpret_cast<const int32_t*>(step.decode_items() + i)[word];
  }
  BH_INLINE void keep_word(AttendItem& item, int32_t word) const {
    const int i = static_cast<int>(threadIdx.x);
    if (i < kItemWords) reinterpret_cast<int32_t*>(&item)[i] = word;
  }

  BH_INLINE void load_queries(const AttendItem& item,
                              Columns (&query)[kColumnTiles][kTiles]) const {
#pragma unroll
    for (int c = 0; c < kColumnTiles; ++c) {
      const int row = c * kColumns + column_index();
      const T* from = nullptr;
      if (row < item.num_tokens * layer.group_size) {
        const int head = group * layer.group_size + row % layer.group_size;
        from = reinterpret_cast<const T*>(token_of(step, item, row / layer.group_size).query) +
               head * kHead;
      }
      load_query<T, kHead>(from, query[c]);
    }
  }

  /// The queries of the item's first token, and the item after it.
  BH_INLINE void prefetch_for(const AttendItem& item) const {
    constexpr int kLine = 128;
    const int bytes = layer.group_size * kHead * int{sizeof(T)};
    const char* queries = item.token.query + int64_t{group} * bytes;
    for (int at = static_cast<int>(threadIdx.x) * kLine; at < bytes; at += kWaves * kWave * kLine) {
      prefetch(queries + at);
    }
    if (item.next >= 0 && threadIdx.x < 2) {
      prefetch(reinterpret_cast<const char*>(step.decode_items() + item.next) +
               threadIdx.x * kLine);
    }
  }

  BH_INLINE void begin(const AttendItem& item, Columns (&query)[kColumnTiles][kTiles],
                       ColumnState (&state)[kColumnTiles], Sums (&results)[kColumnTiles][kTiles]) {
    if (threadIdx.x == 0) shared.is_unbounded = 0;
    describe_rows(layer, step, item, group, kQueryRows, shared.rows);
    if constexpr (!kQueryFirst) load_queries(item, query);
    if constexpr (kConverts) __syncthreads();
#pragma unroll
    for (int c = 0; c < kColumnTiles; ++c) {
      if constexpr (kConverts) {
        const float unit = to_float16(query[c]);
        if (wave_index() == 0) shared.rows[c * kColumns + column_index()].unit = unit;
      }
      if constexpr (kQueryInShared) {
#pragma unroll
        for (int t = 0; t < kTiles; ++t) {
          if (wave_index() == 0) shared.query[c][t][lane_index()] = query[c][t];
        }
      }
      state[c].begin();
#pragma unroll
      for (int t = 0; t < kTiles; ++t) results[c][t] = {};
    }
    __syncthreads();
  }

  BH_INLINE void attend(const AttendItem& item, Stream<M, E, kHead>& stream,
                        const Columns (&query)[kColumnTiles][kTiles],
                        ColumnState (&state)[kColumnTiles], Sums (&results)[kColumnTiles][kTiles]) {
    KeyRange range;
#pragma unroll
    for (int c = 0; c < kColumnTiles; ++c) {
#pragma unroll
      for (int i = 0; i < kLaneColumns; ++i) {
        const int row = c * kColumns + sum_column(i);
        if (row < item.num_tokens * layer.group_size) range.add(shared.rows[row]);
      }
    }
    range.share();
    float unit[kColumnTiles][kLaneColumns];
#pragma unroll
    for (int c = 0; c < kColumnTiles; ++c) {
#pragma unroll
      for (int i = 0; i < kLaneColumns; ++i) {
        unit[c][i] = kConverts ? shared.rows[c * kColumns + sum_column(i)].unit : 1;
      }
    }
    for (; !stream.done(); stream.advance()) {
      const int key = stream.tile() * kTile;
      Sums scores[kColumnTiles] = {};
      stream.with_keys([&](const KeyTile<M, E, kHead>& keys) {
        keys.for_each([&](int i, const Rows& rows) {
#pragma unroll
          for (int c = 0; c < kColumnTiles; ++c) {
            if constexpr (kQueryInShared) {
              multiply<M>(rows, shared.query[c][i][lane_index()], scores[c]);
            } else {
              multiply<M>(rows, query[c][i], scores[c]);
            }
          }
        });
      });
      if constexpr (kConverts) {
#pragma unroll
        for (int c = 0; c < kColumnTiles; ++c) {
#pragma unroll
          for (int i = 0; i < kSumWords; ++i) scores[c].values[i] *= unit[c][lane_column(i)];
        }
      }
      const bool whole = range.contains(key);
      Columns weights[kColumnTiles][kTerms];
#pragma unroll
      for (int c = 0; c < kColumnTiles; ++c) {
        state[c].template weigh<kTiles>(layer, shared.rows + c * kColumns, key, whole, scores[c],
                                        results[c]);
        split_weights(scores[c], weights[c]);
      }
      stream.with_values([&](ValueTile<M, E, kHead>& values) {
        if (!whole) {
          values.keep(item.first_seen - key, item.end_key - key);
          if (values.drop_unbounded()) shared.is_unbounded = 1;
        }
        values.for_each([&](int i, const Rows& rows) {
#pragma unroll
          for (int c = 0; c < kColumnTiles; ++c) {
#pragma unroll
            for (int term = 0; term < kTerms; ++term) {
              multiply<M>(rows, weights[c][term], results[c][i]);
            }
          }
        });
      });
    }
  }

  BH_INLINE void split_weights(Sums& weights, Columns (&terms)[kTerms]) const {
#pragma unroll
    for (int term = 0; term < kTerms; ++term) {
      terms[term] = to_columns<M>(weights);
      if (term + 1 == kTerms) break;
#pragma unroll
      for (int i = 0; i < kSumWords; ++i) {
        M rounded;
        narrow(weights.values[i], rounded);
        weights.values[i] -= widen(rounded);
      }
    }
  }

  /// Joins the waves' results and writes them, or leaves them as partial results.
  BH_INLINE void join(const AttendItem& item, ColumnState (&state)[kColumnTiles],
                      const Sums (&results)[kColumnTiles][kTiles]) {
    const int wave = wave_index();
#pragma unroll
    for (int c = 0; c < kColumnTiles; ++c) {
      state[c].end();
#pragma unroll
      for (int i = 0; i < kLaneColumns; ++i) {
        const int row = c * kColumns + sum_column(i);
        shared.maximum[wave][row] = state[c].maximum[i];
        shared.denominator[wave][row] = state[c].denominator[i];
      }
    }
    for (int begin = 0; begin < kHead; begin += kJoined) {
      if (begin > 0) __syncthreads();
#pragma unroll
      for (int c = 0; c < kColumnTiles; ++c) {
        for_each_result<E, kHead>(
            results[c], [&](int i, int dimension, const float* numbers, auto count) {
              if (dimension < begin || dimension >= begin + kJoined) return;
              float* sums = shared.sums[wave][c * kColumns + sum_column(i)] + dimension - begin;
#pragma unroll
              for (int d = 0; d < decltype(count)::value; ++d) sums[d] = numbers[d];
            });
      }
      __syncthreads();
      write(item, begin);
    }
    if (shared.is_unbounded) {
      write_unbounded<T, E>(layer, step, item, group,
                            [&](int r) -> const RowMask& { return shared.rows[r]; });
    }
    finish_item<T, kHead, kWave>(layer, step, item, group, &shared.last);
  }

  /// Writes dimensions begin .. begin + kJoined - 1 of the joined result.
  BH_INLINE void write(const AttendItem& item, int begin) const {
    constexpr int kRun = 2;
    const int work = item.num_tokens * layer.group_size * (kJoined / kRun);
    for (int w = static_cast<int>(threadIdx.x); w < work; w += kWaves * kWave) {
      const int row = w / (kJoined / kRun);
      const int dimension = w % (kJoined / kRun) * kRun;
      const Token token = token_of(step, item, row / layer.group_size);
      const int head = group * layer.group_size + row % layer.group_size;
      float maximum = shared.maximum[0][row];
#pragma unroll
      for (int v = 1; v < kWaves; ++v) maximum = fmaxf(maximum, shared.maximum[v][row]);
      float denominator = 0;
      float sums[kRun] = {};
#pragma unroll
      for (int v = 0; v < kWaves; ++v) {
        const float m = shared.maximum[v][row];
        const float factor = m == maximum ? 1.0f : exp2_fast(m - maximum);
        denominator += shared.denominator[v][row] * factor;
        const float* of_wave = shared.sums[v][row] + dimension;
#pragma unroll
        for (int d = 0; d < kRun; ++d) sums[d] += of_wave[d] * factor;
      }
      if (token.num_partials == 1) {
        const Finish last = finish(layer, head, maximum, denominator);
        store_output<T, kRun>(layer, token.output, head, begin + dimension, last.factor, sums);
        if (token.lse && begin + dimension == 0) token.lse[head] = last.lse;
      } else {
        const int64_t partial = int64_t{token.first_partial + item.piece} * layer.num_heads + head;
        store_numbers<Float32, kRun>(step.partial_sums, partial * kHead + begin + dimension, sums);
        if (begin + dimension == 0) {
          step.partial_state[partial * 2] = maximum;
          step.partial_state[partial * 2 + 1] = denominator;
        }
      }
    }
  }
};

/// Blocks of threads of a multiprocessor or, on AMD, waves of a SIMD, that registers must suffice
/// for.
BH_HOST_DEVICE constexpr int resident(int head_size, int column_tiles) {
  const int most = BH_TILE == BH_TILE_MFMA ? 3 : 4;
  return head_size <= 64 ? most + 1 - column_tiles : head_size <= 128 ? most - column_tiles : 2;
}

template <class T, class E, int kHead, int kColumnTiles>
__global__ void __launch_bounds__(kWaves* kWave, resident(kHead, kColumnTiles))
    decode(LayerArgs layer, const StepArgs* arguments) {
  using Kernel = Decode<T, E, kHead, kColumnTiles>;
  const StepArgs& step = *arguments;
  auto& shared = shared_memory_of<typename Kernel::Shared>();
  Kernel{layer, step, shared, static_cast<int>(blockIdx.y)}.run();
}

template <class T, class E, int kColumnTiles>
KernelLaunch launch_of() {
  using Kernel = Decode<T, E, BH_HEAD_SIZE, kColumnTiles>;
  return {&decode<T, E, BH_HEAD_SIZE, kColumnTiles>, kSharedBytes<typename Kernel::Shared>, 0,
          Kernel::kQueryRows};
}

template <class T, class E>
KernelLaunch for_rows(int rows, int columns) {
  // Where a matrix tile has 8 columns, decode_rows() may need two.
  if constexpr (kColumns == 8 && BH_HEAD_SIZE <= 128) {
    if (rows > columns) return launch_of<T, E, 2>();
  }
  return launch_of<T, E, 1>();
}

template <class T>
KernelLaunch for_cache(int cache_dtype, int rows, int columns) {
  if (cache_dtype == BH_FLOAT8_E4M3FN) return for_rows<T, Float8E4M3>(rows, columns);
  if (cache_dtype == BH_FLOAT8_E5M2) return for_rows<T, Float8E5M2>(rows, columns);
  return for_rows<T, T>(rows, columns);
}

}  // namespace

KernelLaunch BH_HEAD_NAME(decode)(int dtype, int cache_dtype, int rows, int columns) {
  return dtype == BH_BFLOAT16 ? for_cache<BFloat16>(cache_dtype, rows, columns)
                              : for_cache<Float16>(cache_dtype, rows, columns);
}

}  // namespace broadhead::gpu
