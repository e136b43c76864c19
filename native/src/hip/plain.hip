// SPDX-License-Identifier: Apache-2.0
// Attention for every combination of dtypes, in float32 on the ordinary units: what the matrix
// kernels do not take, float32 tensors above all. Works through the same items as decode.
#include "hip/kernels.h"
#include "hip/softmax.h"

namespace broadhead::gpu {
namespace {

constexpr int kThreads = 128;

/// Numbers that a thread takes at once.
constexpr int kRun = 4;
struct alignas(16) Run {
  float numbers[kRun];
};

/// An item's memory, for a cache of E. Keys have a run more than the head, so that a run of 8 of
/// them lies in 8 different bank groups.
template <class E>
struct Plain {
  const LayerArgs& layer;
  const StepArgs& step;
  float* query;  ///< [rows][head_size]
  float* sums;   ///< [rows][head_size]
  float* tile;   ///< [kTile][head_size + kRun]: keys, then values
  QueryRow* rows;
  float* weights;  ///< [rows][kTile]
  float* maximum;
  float* denominator;
  float* factor;
  int32_t* last;

  /// For an item of so many rows.
  static constexpr size_t bytes(int head_size, int count) {
    return sizeof(QueryRow) * static_cast<size_t>(count) +
           sizeof(float) * static_cast<size_t>(2 * count * head_size + kTile * (head_size + kRun) +
                                               count * kTile + 3 * count + 4);
  }

  BH_INLINE Plain(const LayerArgs& of, const StepArgs& at, int count, char* memory)
      : layer(of), step(at) {
    query = reinterpret_cast<float*>(memory);
    sums = query + count * layer.head_size;
    tile = sums + count * layer.head_size;
    rows = reinterpret_cast<QueryRow*>(tile + kTile * (layer.head_size + kRun));
    weights = reinterpret_cast<float*>(rows + count);
    maximum = weights + count * kTile;
    denominator = maximum + count;
    factor = denominator + count;
    last = reinterpret_cast<int32_t*>(factor + count);
  }

  BH_INLINE void run(const AttendItem& item, int group, int count) {
    const int size = layer.head_size;
    const int self = static_cast<int>(threadIdx.x);
    describe_rows(layer, step, item, group, count, rows);
    __syncthreads();
    with_tensor_dtype(layer.dtype, [&](auto element) {
      using T = decltype(element);
      for (int i = self; i < count * size; i += kThreads) {
        query[i] = widen(reinterpret_cast<const T*>(rows[i / size].query)[i % size]);
        sums[i] = 0;
      }
    });
    if (self < count) {
      maximum[self] = -infinity();
      denominator[self] = 0;
    }
    const int tiles_per_block = step.cache.block_size / kTile;
    const int32_t* blocks = step.blocks + item.blocks;
    for (int key = item.first_key; key < item.end_key; key += kTile) {
      const int t = key / kTile;
      const char* keys =
          keys_of(step.cache, blocks[t / tiles_per_block], group / layer.groups_per_kv_head) +
          t % tiles_per_block * kTile * step.cache.row_bytes;
      __syncthreads();
      load_tile(item, keys, key);
      __syncthreads();
      for (int i = self; i < count * kTile; i += kThreads) {
        const QueryRow& row = rows[i / kTile];
        const int position = key + i % kTile;
        const bool seen = position >= row.first && position < row.end;
        weights[i] = seen ? transform_score(layer, row.slope, product(i / kTile, i % kTile),
                                            position - row.position)
                          : -infinity();
      }
      __syncthreads();
      load_tile(item, keys + step.cache.half_bytes, key);
      if (self < count) weigh(self);
      __syncthreads();
      for (int i = self * kRun; i < count * size; i += kThreads * kRun) {
        add_values(i / size, i % size, key);
      }
    }
    __syncthreads();
    write(item, group, count);
  }

 private:
  /// Keys or values of a tile; what no token of the item sees becomes zero.
  BH_INLINE void load_tile(const AttendItem& item, const char* half, int key) const {
    constexpr int kNumbers = kChunk / int{sizeof(E)};
    const int size = layer.head_size;
    const int chunks = size / kNumbers;
    for (int i = static_cast<int>(threadIdx.x); i < kTile * chunks; i += kThreads) {
      const int k = i / chunks;
      const int c = i % chunks;
      const bool seen = key + k >= item.first_seen && key + k < item.end_key;
      Chunk chunk = {};
      if (seen) {
        chunk = load_constant(reinterpret_cast<const Chunk*>(
            half + half_offset(step.cache.row_bytes, k, c * kChunk)));
      }
      E elements[kNumbers];
      __builtin_memcpy(elements, &chunk, sizeof chunk);
#pragma unroll
      for (int r = 0; r < kNumbers / kRun; ++r) {
        Run run;
#pragma unroll
        for (int e = 0; e < kRun; ++e) run.numbers[e] = widen(elements[r * kRun + e]);
        *run_of_tile(k, c * kNumbers + r * kRun) = run;
      }
    }
  }

  BH_INLINE Run* run_of_tile(int key, int dimension) const {
    return reinterpret_cast<Run*>(tile + key * (layer.head_size + kRun) + dimension);
  }

  BH_INLINE float product(int row, int key) const {
    const auto* q = reinterpret_cast<const Run*>(query + row * layer.head_size);
    const Run* k = run_of_tile(key, 0);
    Run sum = {};
#pragma unroll 4
    for (int i = 0; i < layer.head_size / kRun; ++i) {
      const Run a = q[i];
      const Run b = k[i];
#pragma unroll
      for (int e = 0; e < kRun; ++e) sum.numbers[e] += a.numbers[e] * b.numbers[e];
    }
    return sum.numbers[0] + sum.numbers[1] + (sum.numbers[2] + sum.numbers[3]);
  }

  /// Adds weighted values of a tile's keys to a run of a row's sums.
  BH_INLINE void add_values(int row, int dimension, int key) const {
    auto* to = reinterpret_cast<Run*>(sums + row * layer.head_size + dimension);
    const float* w = weights + row * kTile;
    Run sum = *to;
#pragma unroll
    for (int e = 0; e < kRun; ++e) sum.numbers[e] *= factor[row];
    // A weight of zero does not undo a value that is infinite or not a number.
    const int first = rows[row].first - key;
    const int end = rows[row].end - key;
#pragma unroll
    for (int k = 0; k < kTile; ++k) {
      if (k < first || k >= end) continue;
      const Run v = *run_of_tile(k, dimension);
#pragma unroll
      for (int e = 0; e < kRun; ++e) sum.numbers[e] += w[k] * v.numbers[e];
    }
    *to = sum;
  }

  BH_INLINE void weigh(int row) const {
    float* w = weights + row * kTile;
    float highest = -infinity();
    for (int k = 0; k < kTile; ++k) highest = fmaxf(highest, w[k]);
    highest = fmaxf(maximum[row], highest * kLog2E);
    const float subtract = highest == -infinity() ? 0.0f : highest;
    factor[row] = highest == maximum[row] ? 1.0f : exp2f(maximum[row] - highest);
    float sum = denominator[row] * factor[row];
    for (int k = 0; k < kTile; ++k) {
      w[k] = exp2f(fmaf(w[k], kLog2E, -subtract));
      sum += w[k];
    }
    maximum[row] = highest;
    denominator[row] = sum;
  }

  BH_INLINE void write(const AttendItem& item, int group, int count) const {
    const int size = layer.head_size;
    for (int i = static_cast<int>(threadIdx.x); i < count * (size / kRun); i += kThreads) {
      const int row = i / (size / kRun);
      const int dimension = i % (size / kRun) * kRun;
      const Token token = token_of(step, item, row / layer.group_size);
      const int head = group * layer.group_size + row % layer.group_size;
      const float* from = sums + row * size + dimension;
      if (token.num_partials == 1) {
        const Finish done = finish(layer, head, maximum[row], denominator[row]);
        with_tensor_dtype(layer.dtype, [&](auto element) {
          store_output<decltype(element), kRun>(layer, token.output, head, dimension, done.factor,
                                                from);
        });
        if (token.lse && dimension == 0) token.lse[head] = done.lse;
      } else {
        const int64_t partial = int64_t{token.first_partial + item.piece} * layer.num_heads + head;
        store_numbers<Float32, kRun>(step.partial_sums, partial * size + dimension, from);
        if (dimension == 0) {
          step.partial_state[partial * 2] = maximum[row];
          step.partial_state[partial * 2 + 1] = denominator[row];
        }
      }
    }
    with_tensor_dtype(layer.dtype, [&](auto element) {
      finish_item<decltype(element)>(layer, step, item, group, last);
    });
  }
};

template <class E>
__global__ void __launch_bounds__(kThreads, 6) plain(LayerArgs layer, const StepArgs* arguments) {
  const StepArgs& step = *arguments;
  int i = static_cast<int>(blockIdx.x);
  if (step.decode_items()[i].num_tokens == 0) return;
  while (i >= 0) {
    const AttendItem& item = step.decode_items()[i];
    const int count = item.num_tokens * layer.group_size;
    Plain<E>(layer, step, count, shared_memory()).run(item, static_cast<int>(blockIdx.y), count);
    i = item.next;
    __syncthreads();
  }
}

template <class E>
KernelLaunch launch_of(int head_size, int rows) {
  return {&plain<E>, Plain<E>::bytes(head_size, rows), kThreads, rows};
}

}  // namespace

KernelLaunch plain_kernel(const LayerArgs& layer, int cache_dtype, int rows) {
  switch (cache_dtype) {
    case BH_FLOAT8_E4M3FN:
      return launch_of<Float8E4M3>(layer.head_size, rows);
    case BH_FLOAT8_E5M2:
      return launch_of<Float8E5M2>(layer.head_size, rows);
    case BH_BFLOAT16:
      return launch_of<BFloat16>(layer.head_size, rows);
    case BH_FLOAT16:
      return launch_of<Float16>(layer.head_size, rows);
    default:
      return launch_of<Float32>(layer.head_size, rows);
  }
}

}  // namespace broadhead::gpu
