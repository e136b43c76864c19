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

/// Block ids of a wave's tiles, a lane holding one each, loaded ahead.
class TileBlocks {
 public:
  BH_INLINE TileBlocks(const int32_t* blocks, int tiles_per_block, int first, int end)
      : blocks_(blocks), tiles_per_block_(tiles_per_block), end_(end) {
    next_ = load(first);
  }

  /// Called for n = 0, 1, ... in order: block of the wave's tile n, which is tile `tile`.
  BH_INLINE int32_t at(int n, int tile) {
    if (n % kWave == 0) {
      now_ = next_;
      next_ = load(tile + kWaves * kWave);
    }
    return shuffle(now_, n % kWave);
  }

 private:
  BH_INLINE int32_t load(int first) const {
    const int tile = first + kWaves * lane_index();
    return tile < end_ ? blocks_[tile / tiles_per_block_] : 0;
  }

  const int32_t* blocks_;
  int tiles_per_block_;
  int end_;
  int32_t now_ = 0;
  int32_t next_;
};

template <class T, class E, int kHead, int kColumnTiles>
struct Decode {
  static constexpr int kQueryRows = kColumnTiles * kColumns;
  static constexpr int kTiles = kHead / 16;

  /// Large heads leave no registers for queries.
  static constexpr bool kQueryInShared = kHead > 96;

  struct Shared {
    float sums[kQueryRows][kHead];
    float maximum[kWaves][kQueryRows];
    float denominator[kWaves][kQueryRows];
    QueryRow rows[kQueryRows];
    Columns query[kColumnTiles][kQueryInShared ? kTiles : 1][kWave];
    int32_t last;
  };

  const LayerArgs& layer;
  const StepArgs& step;
  Shared& shared;

  BH_INLINE void run(const AttendItem& item, int group) {
    describe_rows(layer, step, item, group, kQueryRows, shared.rows);
    Columns query[kColumnTiles][kTiles];
    ColumnState state[kColumnTiles];
    Sums results[kColumnTiles][kTiles];
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
    stream(item, group, query, state, results);
    join(item, group, state, results);
  }

 private:
  BH_INLINE void stream(const AttendItem& item, int group,
                        const Columns (&query)[kColumnTiles][kTiles],
                        ColumnState (&state)[kColumnTiles], Sums (&results)[kColumnTiles][kTiles]) {
    const CacheView& cache = step.cache;
    const bool is_e5m2 = cache.dtype == BH_FLOAT8_E5M2;
    const int tiles_per_block = cache.block_size / kTile;
    const int first_tile = item.first_key / kTile + wave_index();
    const int end_tile = (item.end_key + kTile - 1) / kTile;
    TileBlocks blocks(step.blocks + step.rows[item.row].blocks, tiles_per_block, first_tile,
                      end_tile);
    KeyRange range;
#pragma unroll
    for (int c = 0; c < kColumnTiles; ++c) {
#pragma unroll
      for (int i = 0; i < kLaneColumns; ++i) {
        range.add(shared.rows[c * kColumns + sum_column(i)]);
      }
    }
    KeyTile<T, E, kHead> keys;
    ValueTile<T, E, kHead> values;
    const char* half = nullptr;
    int token = 0;
    auto find = [&](int n, int tile) {
      half = keys_of(cache, blocks.at(n, tile), group / layer.groups_per_kv_head);
      token = tile % tiles_per_block * kTile;
    };
    if (first_tile < end_tile) {
      find(0, first_tile);
      keys.template load<Memory::kCache>(half, cache.block_size, token);
      values.template load<Memory::kCache>(half + cache.half_bytes, cache.block_size, token);
    }
    for (int n = 0, tile = first_tile; tile < end_tile; ++n, tile += kWaves) {
      const bool more = tile + kWaves < end_tile;
      Sums scores[kColumnTiles] = {};
      keys.for_each(is_e5m2, [&](int i, const Rows& rows) {
#pragma unroll
        for (int c = 0; c < kColumnTiles; ++c) {
          if constexpr (kQueryInShared) {
            multiply<T>(rows, shared.query[c][i][lane_index()], scores[c]);
          } else {
            multiply<T>(rows, query[c][i], scores[c]);
          }
        }
      });
      if (more) {
        find(n + 1, tile + kWaves);
        keys.template load<Memory::kCache>(half, cache.block_size, token);
      }
      const int first_key = tile * kTile;
      const bool whole = !any(!range.contains(first_key));
      Columns weights[kColumnTiles][kWeightTerms<T>];
#pragma unroll
      for (int c = 0; c < kColumnTiles; ++c) {
        state[c].template weigh<kTiles>(layer, shared.rows + c * kColumns, first_key, whole, scores[c],
                                        results[c]);
#pragma unroll
        for (int term = 0; term < kWeightTerms<T>; ++term) {
          weights[c][term] = to_columns<T>(scores[c]);
          if (term + 1 == kWeightTerms<T>) break;
#pragma unroll
          for (int i = 0; i < kSumWords; ++i) {
            T rounded;
            narrow(scores[c].values[i], rounded);
            scores[c].values[i] -= widen(rounded);
          }
        }
      }
      if (first_key < item.first_seen || first_key + kTile > item.end_key) {
        values.keep(item.first_seen - first_key, item.end_key - first_key);
      }
      values.for_each(is_e5m2, [&](int i, const Rows& rows) {
#pragma unroll
        for (int c = 0; c < kColumnTiles; ++c) {
#pragma unroll
          for (int term = 0; term < kWeightTerms<T>; ++term) {
            multiply<T>(rows, weights[c][term], results[c][i]);
          }
        }
      });
      if (more) values.template load<Memory::kCache>(half + cache.half_bytes, cache.block_size, token);
    }
  }

  /// Joins the waves' results and writes them, or leaves them as partial results.
  BH_INLINE void join(const AttendItem& item, int group, ColumnState (&state)[kColumnTiles],
                      Sums (&results)[kColumnTiles][kTiles]) {
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
    __syncthreads();
    for (int turn = 0; turn < kWaves; ++turn) {
      if (turn == wave) {
#pragma unroll
        for (int c = 0; c < kColumnTiles; ++c) {
          float factor[kLaneColumns];
#pragma unroll
          for (int i = 0; i < kLaneColumns; ++i) {
            const float m = state[c].maximum[i];
            const float whole = maximum_of(c * kColumns + sum_column(i));
            factor[i] = m == whole ? 1.0f : exp2_fast(m - whole);
          }
          for_each_result<E, kHead>(results[c], [&](int i, int dimension, const float* numbers,
                                                    auto count) {
            float* sums = shared.sums[c * kColumns + sum_column(i)] + dimension;
#pragma unroll
            for (int d = 0; d < decltype(count)::value; ++d) {
              sums[d] = (turn == 0 ? 0.0f : sums[d]) + numbers[d] * factor[i];
            }
          });
        }
      }
      __syncthreads();
    }
    constexpr int kRun = 8;
    const int work = item.num_tokens * layer.group_size * (kHead / kRun);
    for (int w = static_cast<int>(threadIdx.x); w < work; w += kWaves * kWave) {
      const int row = w / (kHead / kRun);
      const int dimension = w % (kHead / kRun) * kRun;
      const Token token = step.tokens[item.first_token + row / layer.group_size];
      const int head = group * layer.group_size + row % layer.group_size;
      const float maximum = maximum_of(row);
      float denominator = 0;
#pragma unroll
      for (int v = 0; v < kWaves; ++v) {
        const float m = shared.maximum[v][row];
        denominator += shared.denominator[v][row] * (m == maximum ? 1.0f : exp2_fast(m - maximum));
      }
      const float* sums = shared.sums[row] + dimension;
      if (token.num_partials == 1) {
        const Finish last = finish(layer, head, maximum, denominator);
        const int64_t result = result_index(layer, step, token, head);
        store_output<T, kRun>(layer, step, result, dimension, last.factor, sums);
        if (step.lse && dimension == 0) step.lse[result] = last.lse;
      } else {
        const int64_t partial =
            int64_t{token.first_partial + item.piece} * layer.num_heads + head;
        store_numbers<Float32, kRun>(step.partial_sums, partial * kHead + dimension, sums);
        if (dimension == 0) {
          step.partial_state[partial * 2] = maximum;
          step.partial_state[partial * 2 + 1] = denominator;
        }
      }
    }
    finish_item<T>(layer, step, item, group, &shared.last);
  }

  BH_INLINE float maximum_of(int row) const {
    float maximum = shared.maximum[0][row];
#pragma unroll
    for (int v = 1; v < kWaves; ++v) maximum = fmaxf(maximum, shared.maximum[v][row]);
    return maximum;
  }
};

template <class T, class E, int kHead, int kColumnTiles>
__global__ void __launch_bounds__(kWaves* kWave, (kHead <= 128 && kColumnTiles == 1 ? 3 : 2))
    decode(LayerArgs layer, const StepArgs* arguments) {
  using Kernel = Decode<T, E, kHead, kColumnTiles>;
  const StepArgs& step = *arguments;
  auto& shared = *reinterpret_cast<typename Kernel::Shared*>(shared_memory());
  const int slot = static_cast<int>(blockIdx.x);
  const int end = step.slot_items[slot + 1];
  for (int i = step.slot_items[slot]; i < end; ++i) {
    Kernel{layer, step, shared}.run(step.decode_items[i], static_cast<int>(blockIdx.y));
    __syncthreads();
  }
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

}  // namespace

KernelLaunch BH_HEAD_NAME(decode)(bool is_bfloat16, bool is_fp8, int rows, int columns) {
  if (is_bfloat16) {
    return is_fp8 ? for_rows<BFloat16, Float8>(rows, columns)
                  : for_rows<BFloat16, BFloat16>(rows, columns);
  }
  return is_fp8 ? for_rows<Float16, Float8>(rows, columns)
                : for_rows<Float16, Float16>(rows, columns);
}

}  // namespace broadhead::gpu
