// SPDX-License-Identifier: Apache-2.0
// Attention for every combination of dtypes, in float32 on the ordinary units: what the matrix
// kernels do not take, float32 tensors above all. Works through the same items as decode.
#include "hip/kernels.h"
#include "hip/softmax.h"

namespace broadhead::gpu {
namespace {

constexpr int kThreads = 128;

/// Waves of a scheduler that registers are to suffice for: two on AMD, whose have 256 then.
#if defined(__HIP__)
constexpr int kResidentWaves = 2;
#else
constexpr int kResidentWaves = 4;
#endif

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
    const int block_size = step.cache.block_size;
    auto block_of = [&](int key) {
      return key < item.end_key ? step.blocks[item.blocks + key / block_size] : 0;
    };
    auto keys_from = [&](int32_t block, int key) {
      return keys_of(step.cache, block, group / layer.groups_per_kv_head) +
             key % block_size * step.cache.row_bytes;
    };
    const Places places(*this);
    Half half;
    const char* keys = keys_from(block_of(item.first_key), item.first_key);
    int32_t next = block_of(item.first_key + kTile);  // asked for long before it is used
    load(item, keys, item.first_key, places, half);
    for (int key = item.first_key; key < item.end_key; key += kTile) {
      __syncthreads();
      keep(half, places);
      load(item, keys + step.cache.half_bytes, key, places, half);
      __syncthreads();
      weigh(count, key);
      __syncthreads();
      keep(half, places);
      if (key + kTile < item.end_key) {
        keys = keys_from(next, key + kTile);
        next = block_of(key + 2 * kTile);
        load(item, keys, key + kTile, places, half);
      }
      __syncthreads();
      for (int i = self * kRun; i < count * size; i += kThreads * kRun) {
        add_values(i / size, i % size, key);
      }
    }
    __syncthreads();
    write(item, group, count);
  }

 private:
  static constexpr int kNumbers = kChunk / int{sizeof(E)};  ///< of a chunk
  static constexpr int kMostChunks = kTile * 256 / kNumbers / kThreads;

  /// A thread's part of a tile's keys or values.
  struct Half {
    Chunk chunks[kMostChunks];
  };

  /// Where its chunks are, the same in all tiles.
  struct Places {
    int from[kMostChunks];  ///< offset in the cache, -1: there is no such chunk
    int to[kMostChunks];    ///< index in `tile`

    BH_INLINE explicit Places(const Plain& plain) {
      const int row_chunks = plain.layer.head_size / kNumbers;
#pragma unroll
      for (int c = 0; c < kMostChunks; ++c) {
        const int i = c * kThreads + static_cast<int>(threadIdx.x);
        const int key = i / row_chunks;
        from[c] = key < kTile ? static_cast<int>(half_offset(plain.step.cache.row_bytes, key,
                                                             i % row_chunks * kChunk))
                              : -1;
        to[c] = key * (plain.layer.head_size + kRun) + i % row_chunks * kNumbers;
      }
    }
  };

  /// Loads keys or values of a tile; what no token of the item sees becomes zero.
  BH_INLINE void load(const AttendItem& item, const char* from, int key, const Places& places,
                      Half& half) const {
    const bool whole = key >= item.first_seen && key + kTile <= item.end_key;
#pragma unroll
    for (int c = 0; c < kMostChunks; ++c) {
      half.chunks[c] = {};
      const auto is_seen = [&] {
        const int k = key + places.to[c] / (layer.head_size + kRun);
        return k >= item.first_seen && k < item.end_key;
      };
      if (places.from[c] >= 0 && (whole || is_seen())) {
        half.chunks[c] = load_constant(reinterpret_cast<const Chunk*>(from + places.from[c]));
      }
    }
  }

  /// Puts it where all threads read it.
  BH_INLINE void keep(const Half& half, const Places& places) const {
#pragma unroll
    for (int c = 0; c < kMostChunks; ++c) {
      if (places.from[c] < 0) break;
      E elements[kNumbers];
      __builtin_memcpy(elements, &half.chunks[c], kChunk);
#pragma unroll
      for (int r = 0; r < kNumbers / kRun; ++r) {
        Run run;
#pragma unroll
        for (int e = 0; e < kRun; ++e) run.numbers[e] = widen(elements[r * kRun + e]);
        *reinterpret_cast<Run*>(tile + places.to[c] + r * kRun) = run;
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
    Run sum = *to;
#pragma unroll
    for (int e = 0; e < kRun; ++e) sum.numbers[e] *= factor[row];
    auto add = [&](int k) {
      const float weight = weights[row * kTile + k];
      const Run v = *run_of_tile(k, dimension);
#pragma unroll
      for (int e = 0; e < kRun; ++e) sum.numbers[e] += weight * v.numbers[e];
    };
    const int first = rows[row].first - key;
    const int end = rows[row].end - key;
    if (first <= 0 && end >= kTile) {
#pragma unroll
      for (int k = 0; k < kTile; ++k) add(k);
    } else {
      // A weight of zero does not undo a value that is infinite or not a number.
      for (int k = first > 0 ? first : 0; k < kTile && k < end; ++k) add(k);
    }
    *to = sum;
  }

  /// Weights of a tile's keys; 16 lanes have a row's. Sums so far are to be multiplied by `factor`.
  BH_INLINE void weigh(int count, int key) const {
    for (int base = 0; base < count * kTile; base += kThreads) {
      const int i = base + static_cast<int>(threadIdx.x);
      const bool is_used = i < count * kTile;
      const int r = is_used ? i / kTile : 0;
      const QueryRow& row = rows[r];
      const int position = key + i % kTile;
      float score = -infinity();
      if (is_used && position >= row.first && position < row.end) {
        score = transform_score<true>(layer, row.slope, product(r, i % kTile),
                                      static_cast<float>(position - row.position));
      }
      const bool keeps = is_used && i % kTile == 0;  // one lane reads and writes a row's state
      const float before = shuffle(keeps ? maximum[r] : 0.0f, lane_index() / kTile * kTile);
      const float after =
          fmaxf(before, over_tile(score, [](float a, float b) { return fmaxf(a, b); }) * kLog2E);
      const float weight = exp2f(fmaf(score, kLog2E, after == -infinity() ? 0.0f : -after));
      const float sum = over_tile(weight, [](float a, float b) { return a + b; });
      if (is_used) weights[i] = weight;
      if (!keeps) continue;
      factor[r] = before == after ? 1.0f : exp2f(before - after);
      denominator[r] = denominator[r] * factor[r] + sum;
      maximum[r] = after;
    }
  }

  template <class Op>
  BH_INLINE static float over_tile(float x, Op&& op) {
#pragma unroll
    for (int mask = 1; mask < kTile; mask *= 2) x = op(x, shuffle_xor(x, mask));
    return x;
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
      finish_item<decltype(element), 0, kWave>(layer, step, item, group, last);
    });
  }
};

template <class E>
__global__ void __launch_bounds__(kThreads, kResidentWaves)
    plain(LayerArgs layer, const StepArgs* arguments) {
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
