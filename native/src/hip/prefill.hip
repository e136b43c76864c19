// SPDX-License-Identifier: Apache-2.0
// Prefill and chunked prefill: many query rows share every key and value. Tiles go through shared
// memory, the next one while this one is used; a wave holds its query rows' results in registers.
#include "hip/copy.h"
#include "hip/kernels.h"
#if defined(__CUDACC__)
#include "hip/prefill_hopper.h"
#endif
#include "hip/softmax.h"

namespace broadhead::gpu {
namespace {

constexpr int kThreads = kWaves * kWave;

template <class T, class E, int kHead>
struct Prefill {
  static constexpr bool kRdna = BH_TILE == BH_TILE_WMMA11 || BH_TILE == BH_TILE_WMMA12;
  static constexpr int kRows = prefill_rows(kHead, kRdna);
  static constexpr int kColumnTiles = kRows / (kWaves * kColumns);
  static constexpr int kTiles = kHead / 16;
  /// Keys in shared memory at a time: 64 KiB is what AMD's machines have.
  static constexpr int kMostKeys = BH_TILE == BH_TILE_MMA      ? 64
                                   : BH_TILE == BH_TILE_WMMA11 ? 16
                                                               : 32;
  static constexpr int kKeys = kHead > 128 && kMostKeys > 16 ? kMostKeys / 2 : kMostKeys;
  static constexpr int kRowBytes = kHead * 2;
  static constexpr int kHalfBytes = kKeys * kRowBytes;
  /// NVIDIA's threads have 255 registers, RDNA 3 holds operands twice: no room for queries.
  static constexpr bool kQueryInShared = BH_TILE == BH_TILE_MMA || BH_TILE == BH_TILE_WMMA11;
  static constexpr int kQueryLanes = BH_TILE == BH_TILE_WMMA11 ? 16 : kWave;

  /// Queries beside tiles of large heads leave room for one stage.
  static constexpr int kStages = BH_TILE == BH_TILE_WMMA11 && kHead > 128 ? 1 : 2;

  struct Shared {
    char tiles[kStages][2][kHalfBytes];  ///< stage; keys, values
    Columns query[kQueryInShared ? kWaves * kColumnTiles * kTiles : 1][kQueryLanes];
    QueryRow rows[kRows];
    int32_t is_unbounded;  ///< infinities or NaNs were made zero
  };

  const LayerArgs& layer;
  const StepArgs& step;
  Shared& shared;

  BH_INLINE void run(const AttendItem& item, int group) {
    if (threadIdx.x == 0) shared.is_unbounded = 0;
    describe_rows(layer, step, item, group, kRows, shared.rows);
    __syncthreads();
    Columns query[kColumnTiles][kTiles];
    ColumnState state[kColumnTiles];
    Sums results[kColumnTiles][kTiles];
    const int first_row = wave_index() * kColumnTiles * kColumns;
#pragma unroll
    for (int c = 0; c < kColumnTiles; ++c) {
      const QueryRow& row = shared.rows[first_row + c * kColumns + column_index()];
      load_query<T, kHead>(reinterpret_cast<const T*>(row.query), query[c]);
      if constexpr (kQueryInShared) {
#pragma unroll
        for (int t = 0; t < kTiles; ++t) query_at(c, t) = query[c][t];
      }
      state[c].begin();
#pragma unroll
      for (int t = 0; t < kTiles; ++t) results[c][t] = {};
    }
    KeyRange range;
#pragma unroll
    for (int c = 0; c < kColumnTiles; ++c) {
#pragma unroll
      for (int i = 0; i < kLaneColumns; ++i) {
        const int row = first_row + c * kColumns + sum_column(i);
        if (row < item.num_tokens * layer.group_size) range.add(shared.rows[row]);
      }
    }
    copy_tiles(item, group, item.first_key, 0);
    for (int key = item.first_key, n = 0; key < item.end_key; key += kKeys, ++n) {
      const int stage = n % kStages;
      const bool more = key + kKeys < item.end_key;
      wait_for_copies();
      __syncthreads();
      if (kStages == 2 && more) copy_tiles(item, group, key + kKeys, stage ^ 1);
      const int end_key = key + kKeys < item.end_key ? key + kKeys : item.end_key;
      for (int first = key; first < end_key; first += kTile) {
        if (!any(range.touches(first))) continue;
        const bool whole = !any(!range.contains(first));
        const int at = (first - key) * kRowBytes;
        attend_tile(item, first, whole, shared.tiles[stage][0] + at, shared.tiles[stage][1] + at,
                    query, state, results);
      }
      if (kStages == 1 && more) {
        __syncthreads();
        copy_tiles(item, group, key + kKeys, 0);
      }
    }
    write(item, group, first_row, state, results);
  }

 private:
  BH_INLINE Columns& query_at(int c, int t) const {
    return shared.query[(wave_index() * kColumnTiles + c) * kTiles + t][lane_index() % kQueryLanes];
  }

  /// Starts to copy kKeys keys and values from `first_key` on to a stage, widened to T.
  BH_INLINE void copy_tiles(const AttendItem& item, int group, int first_key, int stage) const {
    const CacheView& cache = step.cache;
    constexpr int kSourceBytes = kHead * int{sizeof(E)};
    constexpr int kChunks = kSourceBytes;  // of a tile of 16 tokens: 16 * bytes / 16
    const int tiles_per_block = cache.block_size / kTile;
    const int32_t* blocks = step.blocks + item.blocks;
    const int tiles = (item.end_key - first_key + kTile - 1) / kTile;
    const int count = (tiles < kKeys / kTile ? tiles : kKeys / kTile) * kChunks;
#pragma unroll 1  // more would take registers that nvcc does not have left
    for (int i = static_cast<int>(threadIdx.x); i < count; i += kThreads) {
      const int t = i / kChunks;
      const int tile = first_key / kTile + t;
      const char* from =
          keys_of(cache, blocks[tile / tiles_per_block], group / layer.groups_per_kv_head);
      const int at = i % kChunks * kChunk;  // within the tile
      from += tile % tiles_per_block * kTile * kSourceBytes + at;
#pragma unroll
      for (int half = 0; half < 2; ++half, from += cache.half_bytes) {
        char* to = shared.tiles[stage][half] + t * kTile * kRowBytes;
        if constexpr (sizeof(E) == sizeof(T)) {
          copy_chunk(to + at, from);
        } else {
          const Chunk codes = load_constant(reinterpret_cast<const Chunk*>(from));
          constexpr int kGroupBytes = kPanelTokens * kSourceBytes;
          const int panel = at % kGroupBytes / (kPanel * kPanelTokens);
          const int width = panel_width(kSourceBytes, panel);
          const int rest = at % kGroupBytes % (kPanel * kPanelTokens);  // within the panel
          const int token = at / kGroupBytes * kPanelTokens + rest / width;
          const int byte =
              (panel * kPanel + ((rest % width / kChunk) ^ swizzle(width, token)) * kChunk) * 2;
          Chunk wide[2];
          widen_chunk<T, E>(codes, wide);
#pragma unroll
          for (int c = 0; c < 2; ++c) {
            const auto offset = half_offset(kRowBytes, token, byte + c * kChunk);
            *reinterpret_cast<Chunk*>(to + offset) = wide[c];
          }
        }
      }
    }
    commit_copies();
  }

  BH_INLINE void attend_tile(const AttendItem& item, int first_key, bool whole,
                             const char* key_tile, const char* value_tile,
                             const Columns (&query)[kColumnTiles][kTiles],
                             ColumnState (&state)[kColumnTiles],
                             Sums (&results)[kColumnTiles][kTiles]) const {
    Sums scores[kColumnTiles] = {};
    KeyTile<T, T, kHead> keys;
    keys.template load<Memory::kShared>(key_tile);
    keys.for_each([&](int i, const Rows& rows) {
#pragma unroll
      for (int c = 0; c < kColumnTiles; ++c) {
        if constexpr (kQueryInShared) {
          multiply<T>(rows, query_at(c, i), scores[c]);
        } else {
          multiply<T>(rows, query[c][i], scores[c]);
        }
      }
    });
    Columns weights[kColumnTiles];
#pragma unroll
    for (int c = 0; c < kColumnTiles; ++c) {
      state[c].template weigh<kTiles>(layer,
                                      shared.rows + (wave_index() * kColumnTiles + c) * kColumns,
                                      first_key, whole, scores[c], results[c]);
      weights[c] = to_columns<T>(scores[c]);
    }
    ValueTile<T, T, kHead> values;
    values.template load<Memory::kShared>(value_tile);
    if (!whole) {
      values.keep(item.first_seen - first_key, item.end_key - first_key);
      if (values.drop_unbounded()) shared.is_unbounded = 1;
    }
    values.for_each([&](int i, const Rows& rows) {
#pragma unroll
      for (int c = 0; c < kColumnTiles; ++c) multiply<T>(rows, weights[c], results[c][i]);
    });
  }

  BH_INLINE void write(const AttendItem& item, int group, int first_row,
                       ColumnState (&state)[kColumnTiles],
                       const Sums (&results)[kColumnTiles][kTiles]) {
#pragma unroll
    for (int c = 0; c < kColumnTiles; ++c) {
      state[c].end();
      int head[kLaneColumns] = {};
      char* output[kLaneColumns] = {};     // of a token whose result is whole
      int64_t partial[kLaneColumns] = {};  // index of a partial result
      float factor[kLaneColumns] = {};
      bool is_used[kLaneColumns] = {};
#pragma unroll
      for (int i = 0; i < kLaneColumns; ++i) {
        const int row = first_row + c * kColumns + sum_column(i);
        if (row >= item.num_tokens * layer.group_size) continue;
        is_used[i] = true;
        const Token token = token_of(step, item, row / layer.group_size);
        head[i] = group * layer.group_size + row % layer.group_size;
        if (token.num_partials == 1) {
          const Finish last = finish(layer, head[i], state[c].maximum[i], state[c].denominator[i]);
          output[i] = token.output;
          factor[i] = last.factor;
          if (token.lse) token.lse[head[i]] = last.lse;
        } else {
          partial[i] = int64_t{token.first_partial + item.piece} * layer.num_heads + head[i];
          step.partial_state[partial[i] * 2] = state[c].maximum[i];
          step.partial_state[partial[i] * 2 + 1] = state[c].denominator[i];
        }
      }
      for_each_result<T, kHead>(
          results[c], [&](int i, int dimension, const float* numbers, auto count) {
            constexpr int kCount = decltype(count)::value;
            if (!is_used[i]) return;
            if (output[i]) {
              store_output<T, kCount>(layer, output[i], head[i], dimension, factor[i], numbers);
            } else {
              store_numbers<Float32, kCount>(step.partial_sums, partial[i] * kHead + dimension,
                                             numbers);
            }
          });
    }
    __syncthreads();
    if (shared.is_unbounded) {
      write_unbounded<T, E>(layer, step, item, group,
                            [&](int r) -> const RowMask& { return shared.rows[r]; });
    }
    finish_item<T, kHead, kMergeLanes<kHead>>(layer, step, item, group,
                                              reinterpret_cast<int32_t*>(&shared));
  }
};

template <class T, class E, int kHead>
__global__ void __launch_bounds__(kThreads) prefill(LayerArgs layer, const StepArgs* arguments) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ != 900  // Hopper has its own
  using Kernel = Prefill<T, E, kHead>;
  auto& shared = shared_memory_of<typename Kernel::Shared>();
  const int groups = layer.num_groups;
  Kernel{layer, *arguments, shared}.run(
      arguments->prefill_items[static_cast<int>(blockIdx.x) / groups],
      static_cast<int>(blockIdx.x) % groups);
#endif
}

template <class T, class E>
KernelLaunch launch_of([[maybe_unused]] bool is_hopper) {
#if defined(__CUDACC__)
  if (is_hopper) {
    using Kernel = HopperPrefill<T, E, BH_HEAD_SIZE>;
    return {&prefill_hopper<T, E, BH_HEAD_SIZE>, sizeof(typename Kernel::Shared), Kernel::kThreads,
            Kernel::kRows, true};
  }
#endif
  using Kernel = Prefill<T, E, BH_HEAD_SIZE>;
  return {&prefill<T, E, BH_HEAD_SIZE>, kSharedBytes<typename Kernel::Shared>, 0, Kernel::kRows};
}

template <class T>
KernelLaunch for_cache(int cache_dtype, bool is_hopper) {
  if (cache_dtype == BH_FLOAT8_E4M3FN) return launch_of<T, Float8E4M3>(is_hopper);
  if (cache_dtype == BH_FLOAT8_E5M2) return launch_of<T, Float8E5M2>(is_hopper);
  return launch_of<T, T>(is_hopper);
}

}  // namespace

KernelLaunch BH_HEAD_NAME(prefill)(int dtype, int cache_dtype, bool is_hopper) {
  return dtype == BH_BFLOAT16 ? for_cache<BFloat16>(cache_dtype, is_hopper)
                              : for_cache<Float16>(cache_dtype, is_hopper);
}

}  // namespace broadhead::gpu
