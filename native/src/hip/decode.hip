// SPDX-License-Identifier: Apache-2.0
// Decode: few query rows against many keys. What counts is that the cache streams by: every lane
// loads keys and values from where the cache has them into the registers that the matrix
// instructions read, a tile ahead, and nothing passes through shared memory.
//
// A block of threads is resident for the whole launch and works through its share of all items'
// tiles, so that all blocks end together whatever the lengths of the rows are. Its waves take tiles
// in turns and join at the end of an item.
#include "hip/kernels.h"
#include "hip/softmax.h"

namespace broadhead::gpu {
namespace {

/// Terms that a float32 weight is split into so that its product with a value is as good as float32.
template <class T>
constexpr int kWeightTerms = 2;
template <>
constexpr int kWeightTerms<BFloat16> = 3;

/// A wave's share of an item's tiles: keys and values in registers or on their way there. A wave
/// takes kStep tiles in a row, then the other waves do.
template <class T, class E, int kHead>
class Stream {
 public:
  static constexpr int kRowBytes = kHead * int{sizeof(E)};
  /// As many tiles as keep some kilobytes under way: narrow rows need more of them.
  static constexpr int kStep = kRowBytes > 128 ? 1 : kRowBytes > 64 ? 2 : 4;

  KeyTile<T, E, kHead> keys[kStep];
  ValueTile<T, E, kHead> values[kStep];

  BH_INLINE explicit Stream(const StepArgs& step)
      : cache_(step.cache), blocks_(step.blocks), tiles_per_block_(step.cache.block_size / kTile) {}

  /// Starts to load an item's first tiles.
  BH_INLINE void start(const AttendItem& item, int kv_head) {
    kv_head_ = kv_head;
    table_ = item.blocks;
    first_tile_ = item.first_key / kTile + wave_index() * kStep;
    end_tile_ = (item.end_key + kTile - 1) / kTile;
    turn_ = 0;
    ids_ahead_ = load_ids(0);
    if (done()) return;
    find();
    load_keys();
    load_values();
  }

  BH_INLINE bool done() const { return tile() >= end_tile_; }
  /// First of the kStep tiles whose keys and values are here.
  BH_INLINE int tile() const { return tile_of(turn_ * kStep); }
  /// Goes to the next tiles; keys may be loaded at once, values when the current ones are used.
  BH_INLINE void advance() {
    ++turn_;
    if (!done()) find();
  }
  BH_INLINE void load_keys() {
#pragma unroll
    for (int s = 0; s < kStep; ++s) {
      if (s > 0 && tile() + s >= end_tile_) break;
      keys[s].template load<Memory::kCache>(half_[s], cache_.block_size, token_[s]);
    }
  }
  BH_INLINE void load_values() {
#pragma unroll
    for (int s = 0; s < kStep; ++s) {
      if (s > 0 && tile() + s >= end_tile_) break;
      values[s].template load<Memory::kCache>(half_[s] + cache_.half_bytes, cache_.block_size,
                                              token_[s]);
    }
  }

 private:
  /// The wave's tile number n.
  BH_INLINE int tile_of(int n) const {
    return first_tile_ + n / kStep * (kWaves * kStep) + n % kStep;
  }

  /// Block ids of the wave's tiles n, n + 1, ..., a lane holding one each.
  BH_INLINE int32_t load_ids(int n) const {
    const int tile = tile_of(n + lane_index());
    return tile < end_tile_ ? blocks_[table_ + tile / tiles_per_block_] : 0;
  }

  BH_INLINE void find() {
    const int n = turn_ * kStep;
    if (n % kWave == 0) {
      ids_ = ids_ahead_;
      ids_ahead_ = load_ids(n + kWave);
    }
#pragma unroll
    for (int s = 0; s < kStep; ++s) {
      half_[s] = keys_of(cache_, shuffle(ids_, (n + s) % kWave), kv_head_);
      token_[s] = (tile() + s) % tiles_per_block_ * kTile;
    }
  }

  const CacheView& cache_;
  const int32_t* blocks_;
  int tiles_per_block_;
  int table_;
  int first_tile_;
  int end_tile_;
  int turn_;
  int kv_head_;
  int32_t ids_;
  int32_t ids_ahead_;
  const char* half_[kStep];
  int token_[kStep];
};

template <class T, class E, int kHead, int kColumnTiles>
struct Decode {
  static constexpr int kQueryRows = kColumnTiles * kColumns;
  static constexpr int kTiles = kHead / 16;
  static constexpr int kTerms = kWeightTerms<T>;
  static constexpr int kStep = Stream<T, E, kHead>::kStep;
  /// Large heads leave no registers for queries.
  static constexpr bool kQueryInShared = kHead > 96;
  /// Waves join this many dimensions at a time: what 32 KiB hold.
  static constexpr int kJoined = kWaves * kQueryRows * kHead * 4 > 32768 ? kHead / 2 : kHead;

  struct Shared {
    float sums[kWaves][kQueryRows][kJoined];
    float maximum[kWaves][kQueryRows];
    float denominator[kWaves][kQueryRows];
    QueryRow rows[kQueryRows];
    Columns query[kColumnTiles][kQueryInShared ? kTiles : 1][kWave];
    AttendItem items[2];  ///< this one and the next, in turns
    int32_t last;
  };

  const LayerArgs& layer;
  const StepArgs& step;
  Shared& shared;
  int group;

  /// Works through items first .. end - 1. An item's first keys and values are under way while the
  /// item before it is joined.
  BH_INLINE void run(int first, int end) {
    if (first >= end) return;
    const int kv_head = group / layer.groups_per_kv_head;
    Stream<T, E, kHead> stream(step);
    fetch_item(first);
    __syncthreads();
    stream.start(shared.items[first % 2], kv_head);
    for (int i = first; i < end; ++i) {
      const AttendItem& item = shared.items[i % 2];
      Columns query[kColumnTiles][kTiles];
      ColumnState state[kColumnTiles];
      Sums results[kColumnTiles][kTiles];
      if (i + 1 < end) fetch_item(i + 1);
      begin(item, query, state, results);
      attend(item, stream, query, state, results);
      if (i + 1 < end) stream.start(shared.items[(i + 1) % 2], kv_head);
      join(item, state, results);
    }
  }

 private:
  BH_INLINE void fetch_item(int i) {
    if (threadIdx.x == 0) shared.items[i % 2] = step.decode_items[i];
  }

  BH_INLINE void begin(const AttendItem& item, Columns (&query)[kColumnTiles][kTiles],
                       ColumnState (&state)[kColumnTiles], Sums (&results)[kColumnTiles][kTiles]) {
    describe_rows(layer, step, item, group, kQueryRows, shared.rows);
#pragma unroll
    for (int c = 0; c < kColumnTiles; ++c) {
      const int row = c * kColumns + column_index();
      load_query<T, kHead>(query_of<T>(layer, step, item, group, row), query[c]);
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

  BH_INLINE void attend(const AttendItem& item, Stream<T, E, kHead>& stream,
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
    while (!stream.done()) {
      const int first_key = stream.tile() * kTile;
      Sums scores[kStep][kColumnTiles] = {};
#pragma unroll
      for (int s = 0; s < kStep; ++s) {
        stream.keys[s].for_each([&](int i, const Rows& rows) {
#pragma unroll
          for (int c = 0; c < kColumnTiles; ++c) {
            if constexpr (kQueryInShared) {
              multiply<T>(rows, shared.query[c][i][lane_index()], scores[s][c]);
            } else {
              multiply<T>(rows, query[c][i], scores[s][c]);
            }
          }
        });
      }
      stream.advance();
      if (!stream.done()) stream.load_keys();
#pragma unroll
      for (int s = 0; s < kStep; ++s) {
        const int key = first_key + s * kTile;
        Columns weights[kColumnTiles][kTerms];
        const bool whole = !any(!range.contains(key));
#pragma unroll
        for (int c = 0; c < kColumnTiles; ++c) {
          state[c].template weigh<kTiles>(layer, shared.rows + c * kColumns, key, whole,
                                          scores[s][c], results[c]);
          split_weights(scores[s][c], weights[c]);
        }
        if (key < item.first_seen || key + kTile > item.end_key) {
          stream.values[s].keep(item.first_seen - key, item.end_key - key);
        }
        stream.values[s].for_each([&](int i, const Rows& rows) {
#pragma unroll
          for (int c = 0; c < kColumnTiles; ++c) {
#pragma unroll
            for (int term = 0; term < kTerms; ++term) {
              multiply<T>(rows, weights[c][term], results[c][i]);
            }
          }
        });
      }
      if (!stream.done()) stream.load_values();
    }
  }

  BH_INLINE void split_weights(Sums& weights, Columns (&terms)[kTerms]) const {
#pragma unroll
    for (int term = 0; term < kTerms; ++term) {
      terms[term] = to_columns<T>(weights);
      if (term + 1 == kTerms) break;
#pragma unroll
      for (int i = 0; i < kSumWords; ++i) {
        T rounded;
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
        for_each_result<E, kHead>(results[c], [&](int i, int dimension, const float* numbers,
                                                  auto count) {
          if (dimension < begin || dimension >= begin + kJoined) return;
          float* sums = shared.sums[wave][c * kColumns + sum_column(i)] + dimension - begin;
#pragma unroll
          for (int d = 0; d < decltype(count)::value; ++d) sums[d] = numbers[d];
        });
      }
      __syncthreads();
      write(item, begin);
    }
    finish_item<T>(layer, step, item, group, &shared.last);
    __syncthreads();
  }

  /// Writes dimensions begin .. begin + kJoined - 1 of the joined result.
  BH_INLINE void write(const AttendItem& item, int begin) const {
    constexpr int kRun = 8;
    const int work = item.num_tokens * layer.group_size * (kJoined / kRun);
    for (int w = static_cast<int>(threadIdx.x); w < work; w += kWaves * kWave) {
      const int row = w / (kJoined / kRun);
      const int dimension = w % (kJoined / kRun) * kRun;
      const Token token = step.tokens[item.first_token + row / layer.group_size];
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
        const int64_t result = result_index(layer, step, token, head);
        store_output<T, kRun>(layer, step, result, begin + dimension, last.factor, sums);
        if (step.lse && begin + dimension == 0) step.lse[result] = last.lse;
      } else {
        const int64_t partial =
            int64_t{token.first_partial + item.piece} * layer.num_heads + head;
        store_numbers<Float32, kRun>(step.partial_sums, partial * kHead + begin + dimension, sums);
        if (begin + dimension == 0) {
          step.partial_state[partial * 2] = maximum;
          step.partial_state[partial * 2 + 1] = denominator;
        }
      }
    }
  }
};

template <class T, class E, int kHead, int kColumnTiles>
__global__ void __launch_bounds__(kWaves* kWave,
                                  (kHead <= 128 && kColumnTiles == 1 ? 3 : 2))
    decode(LayerArgs layer, const StepArgs* arguments) {
  using Kernel = Decode<T, E, kHead, kColumnTiles>;
  const StepArgs& step = *arguments;
  auto& shared = *reinterpret_cast<typename Kernel::Shared*>(shared_memory());
  const int slot = static_cast<int>(blockIdx.x);
  Kernel{layer, step, shared, static_cast<int>(blockIdx.y)}.run(step.slot_items[slot],
                                                               step.slot_items[slot + 1]);
}

template <class T, class E, int kColumnTiles>
KernelLaunch launch_of() {
  using Kernel = Decode<T, E, BH_HEAD_SIZE, kColumnTiles>;
  return {&decode<T, E, BH_HEAD_SIZE, kColumnTiles>,
          sizeof(typename Kernel::Shared), 0, Kernel::kQueryRows};
}

template <class T, class E>
KernelLaunch for_rows(int rows, int columns) {
  // Where a matrix tile has 8 columns, decode_rows() may need two.
  if constexpr (BH_HEAD_SIZE <= 128) {
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
