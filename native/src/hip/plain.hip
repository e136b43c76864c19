// SPDX-License-Identifier: Apache-2.0
// Attention for every combination of dtypes, in float32 on the ordinary units: what the matrix
// kernels do not take, float32 tensors above all. Works through the same items as decode.
#include "hip/kernels.h"
#include "hip/softmax.h"

namespace broadhead::gpu {
namespace {

constexpr int kThreads = 128;

BH_INLINE float load_element(int dtype, const char* bytes) {
  float number = 0;
  with_dtype(dtype, [&](auto element) {
    using E = decltype(element);
    number = widen(*reinterpret_cast<const E*>(bytes));
  });
  return number;
}

BH_HOST_DEVICE constexpr int element_bytes(int dtype) {
  return dtype == BH_FLOAT32 ? 4 : dtype == BH_FLOAT16 || dtype == BH_BFLOAT16 ? 2 : 1;
}

/// An item's memory. Keys have a column more than the head so that 16 of them lie in 16 banks.
struct Plain {
  const LayerArgs& layer;
  const StepArgs& step;
  QueryRow* rows;
  float* query;    ///< [rows][head_size]
  float* sums;     ///< [rows][head_size]
  float* tile;     ///< [kTile][head_size + 1]: keys, then values
  float* weights;  ///< [rows][kTile]
  float* maximum;
  float* denominator;
  float* factor;
  int32_t* last;

  static constexpr size_t bytes(int head_size) {
    const int count = plain_rows(head_size);
    return sizeof(QueryRow) * static_cast<size_t>(count) +
           sizeof(float) * static_cast<size_t>(2 * count * head_size + kTile * (head_size + 1) +
                                               count * kTile + 3 * count + 4);
  }

  BH_INLINE Plain(const LayerArgs& of, const StepArgs& at, char* memory) : layer(of), step(at) {
    const int most = plain_rows(layer.head_size);
    rows = reinterpret_cast<QueryRow*>(memory);
    query = reinterpret_cast<float*>(rows + most);
    sums = query + most * layer.head_size;
    tile = sums + most * layer.head_size;
    weights = tile + kTile * (layer.head_size + 1);
    maximum = weights + most * kTile;
    denominator = maximum + most;
    factor = denominator + most;
    last = reinterpret_cast<int32_t*>(factor + most);
  }

  BH_INLINE void run(const AttendItem& item, int group) {
    const int size = layer.head_size;
    const int count = item.num_tokens * layer.group_size;
    const int self = static_cast<int>(threadIdx.x);
    describe_rows(layer, step, item, group, plain_rows(size), rows);
    __syncthreads();
    const int bytes = tensor_bytes(layer);
    for (int i = self; i < count * size; i += kThreads) {
      query[i] = load_element(layer.dtype, rows[i / size].query + i % size * bytes);
      sums[i] = 0;
    }
    if (self < count) {
      maximum[self] = -infinity();
      denominator[self] = 0;
    }
    const int tiles_per_block = step.cache.block_size / kTile;
    const int32_t* blocks = step.blocks + item.blocks;
    for (int key = item.first_key; key < item.end_key; key += kTile) {
      const int t = key / kTile;
      const char* keys =
          keys_of(step.cache, blocks[t / tiles_per_block], group / layer.groups_per_kv_head);
      const int token = t % tiles_per_block * kTile;
      __syncthreads();
      load_tile(item, keys, token, key);
      __syncthreads();
      for (int i = self; i < count * kTile; i += kThreads) {
        const float* q = query + i / kTile * size;
        const float* k = tile + i % kTile * (size + 1);
        float product = 0;
        for (int d = 0; d < size; ++d) product += q[d] * k[d];
        const QueryRow& row = rows[i / kTile];
        const int position = key + i % kTile;
        const bool seen = position >= row.first && position < row.end;
        weights[i] = seen ? transform_score(layer, row.slope, product, position - row.position)
                          : -infinity();
      }
      __syncthreads();
      load_tile(item, keys + step.cache.half_bytes, token, key);
      if (self < count) weigh(self);
      __syncthreads();
      for (int i = self; i < count * size; i += kThreads) {
        const float* w = weights + i / size * kTile;
        const float* v = tile + i % size;
        float sum = sums[i] * factor[i / size];
        // A weight of zero does not undo a value that is infinite or not a number.
        const int first = rows[i / size].first - key;
        const int end = rows[i / size].end - key;
#pragma unroll
        for (int k = 0; k < kTile; ++k) {
          if (k >= first && k < end) sum += w[k] * v[k * (size + 1)];
        }
        sums[i] = sum;
      }
    }
    __syncthreads();
    write(item, group, count);
  }

 private:
  /// Keys or values of a tile; what no token of the item sees becomes zero.
  BH_INLINE void load_tile(const AttendItem& item, const char* half, int token, int key) const {
    const CacheView& cache = step.cache;
    const int size = layer.head_size;
    const int bytes = element_bytes(cache.dtype);
    for (int i = static_cast<int>(threadIdx.x); i < kTile * size; i += kThreads) {
      const int k = i / size;
      const int d = i % size;
      const bool seen = key + k >= item.first_seen && key + k < item.end_key;
      tile[k * (size + 1) + d] =
          seen
              ? load_element(cache.dtype, half + half_offset(cache.row_bytes, token + k, d * bytes))
              : 0;
    }
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
    constexpr int kRun = 8;
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

__global__ void __launch_bounds__(kThreads) plain(LayerArgs layer, const StepArgs* arguments) {
  const StepArgs& step = *arguments;
  Plain kernel(layer, step, shared_memory());
  int i = static_cast<int>(blockIdx.x);
  if (step.decode_items()[i].num_tokens == 0) return;
  while (i >= 0) {
    kernel.run(step.decode_items()[i], static_cast<int>(blockIdx.y));
    i = step.decode_items()[i].next;
    __syncthreads();
  }
}

}  // namespace

KernelLaunch plain_kernel(const LayerArgs& layer) {
  return {&plain, Plain::bytes(layer.head_size), kThreads, plain_rows(layer.head_size)};
}

}  // namespace broadhead::gpu
