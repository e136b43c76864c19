// SPDX-License-Identifier: Apache-2.0
// Cache update: new keys and values go to their slots, rotated, rounded once. Queries that must be
// rotated or that lie in host memory are put where attention reads them on the way.
#include "hip/cache_layout.h"
#include "hip/element.h"
#include "hip/kernels.h"

namespace broadhead::gpu {
namespace {

constexpr int kThreads = 128;
constexpr int kRun = 8;  ///< elements that a thread handles at a time

template <class T>
BH_INLINE void load_numbers(const T* from, float* numbers) {
  T elements[kRun];
  constexpr int kChunks = kRun * int{sizeof(T)} / kChunk;
#pragma unroll
  for (int c = 0; c < kChunks; ++c) {
    const Chunk chunk = load_constant(reinterpret_cast<const Chunk*>(from) + c);
    __builtin_memcpy(reinterpret_cast<char*>(elements) + c * kChunk, &chunk, kChunk);
  }
#pragma unroll
  for (int i = 0; i < kRun; ++i) numbers[i] = widen(elements[i]);
}

/// Rotary embedding of dimensions dimension .. dimension + kRun - 1 of a head in shared memory,
/// rounded to T: each pair (a, b) becomes (a cos - b sin, b cos + a sin).
template <class T>
BH_INLINE void rotate(const LayerArgs& layer, const T* head, int position, int dimension,
                      float* numbers) {
  const int half = layer.rotary_dim / 2;
  const float* cosines = layer.cos_sin + int64_t{position} * layer.rotary_dim;
#pragma unroll
  for (int i = 0; i < kRun; ++i) {
    const int d = dimension + i;
    const float own = widen(head[d]);
    numbers[i] = own;
    if (d >= layer.rotary_dim) continue;
    const bool second = layer.is_neox ? d >= half : d % 2 == 1;
    const int pair = layer.is_neox ? (second ? d - half : d) : d / 2;
    const int partner = layer.is_neox ? (second ? d - half : d + half) : (second ? d - 1 : d + 1);
    const float other = widen(head[partner]);
    const float cosine = cosines[pair];
    const float sine = cosines[half + pair];
    T rounded;
    narrow(second ? own * cosine + other * sine : own * cosine - other * sine, rounded);
    numbers[i] = widen(rounded);
  }
}

/// Loads a run of a tensor of `heads` heads. With rotary embedding all threads of the block bring
/// the tensor to shared memory first.
template <class T>
class Tensor {
 public:
  BH_INLINE Tensor(const LayerArgs& layer, const void* tensors, int64_t index, int heads,
                   int position)
      : layer_(layer),
        tensor_(static_cast<const T*>(tensors) + index * heads * layer.head_size),
        position_(position) {
    if (layer.rotary_dim == 0) return;
    auto* shared = reinterpret_cast<T*>(shared_memory());
    __syncthreads();
    constexpr int kPerChunk = kChunk / int{sizeof(T)};
    for (int i = static_cast<int>(threadIdx.x); i < heads * layer.head_size / kPerChunk;
         i += kThreads) {
      reinterpret_cast<Chunk*>(shared)[i] =
          load_constant(reinterpret_cast<const Chunk*>(tensor_) + i);
    }
    __syncthreads();
    tensor_ = shared;
  }

  BH_INLINE void load(int element, float* numbers) const {
    if (layer_.rotary_dim == 0) {
      load_numbers(tensor_ + element, numbers);
    } else {
      const int dimension = element % layer_.head_size;
      rotate(layer_, tensor_ + element - dimension, position_, dimension, numbers);
    }
  }

 private:
  const LayerArgs& layer_;
  const T* tensor_;
  int position_;
};

template <class E>
BH_INLINE void store_run(const CacheView& cache, char* half, int token, int dimension, float scale,
                         float* numbers) {
  E elements[kRun];
#pragma unroll
  for (int i = 0; i < kRun; ++i) {
    narrow(scale == 1 ? numbers[i] : numbers[i] / scale, elements[i]);
  }
  char* to = half + half_offset(cache.row_bytes, cache.block_size, token,
                                dimension * int{sizeof(E)});
  if constexpr (sizeof elements == 8) {
    __builtin_memcpy(__builtin_assume_aligned(to, 8), elements, 8);
  } else {
    // A run of float32 is two chunks, which are not neighbours.
#pragma unroll
    for (int c = 0; c < int{sizeof elements} / kChunk; ++c) {
      if (c > 0) {
        to = half + half_offset(cache.row_bytes, cache.block_size, token,
                                dimension * int{sizeof(E)} + c * kChunk);
      }
      Chunk chunk;
      __builtin_memcpy(&chunk, reinterpret_cast<const char*>(elements) + c * kChunk, kChunk);
      *reinterpret_cast<Chunk*>(to) = chunk;
    }
  }
}

template <class T, class E>
BH_INLINE void update_token(const LayerArgs& layer, const StepArgs& step,
                            const UpdateToken& token) {
  const CacheView& cache = step.cache;
  const int elements = layer.num_kv_heads * layer.head_size;
  const Tensor<T> key(layer, step.source_key, token.key, layer.num_kv_heads, token.position);
  const T* value = static_cast<const T*>(step.source_value) + int64_t{token.value} * elements;
  for (int e = static_cast<int>(threadIdx.x) * kRun; e < elements; e += kThreads * kRun) {
    float keys[kRun], values[kRun];
    load_numbers(value + e, values);
    key.load(e, keys);
    char* half = keys_of(cache, token.block, e / layer.head_size);
    const int dimension = e % layer.head_size;
    store_run<E>(cache, half, token.offset, dimension, layer.k_scale, keys);
    store_run<E>(cache, half + cache.half_bytes, token.offset, dimension, layer.v_scale, values);
  }
}

template <class T>
BH_INLINE void prepare_query(const LayerArgs& layer, const StepArgs& step, int index) {
  const QueryToken& token = step.query_tokens[index];
  const int elements = layer.num_heads * layer.head_size;
  const Tensor<T> query(layer, step.source_query, token.query, layer.num_heads, token.position);
  T* to = static_cast<T*>(step.prepared_query) + int64_t{index} * elements;
  for (int e = static_cast<int>(threadIdx.x) * kRun; e < elements; e += kThreads * kRun) {
    float numbers[kRun];
    query.load(e, numbers);
    T rounded[kRun];
#pragma unroll
    for (int i = 0; i < kRun; ++i) narrow(numbers[i], rounded[i]);
    constexpr int kChunks = kRun * int{sizeof(T)} / kChunk;
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
      Chunk chunk;
      __builtin_memcpy(&chunk, reinterpret_cast<const char*>(rounded) + c * kChunk, kChunk);
      reinterpret_cast<Chunk*>(to + e)[c] = chunk;
    }
  }
}

/// Without rotary embedding a thread's runs are independent: it loads some before it stores the
/// first.
template <class T, class E>
BH_INLINE void update_all(const LayerArgs& layer, const StepArgs& step) {
  constexpr int kAhead = sizeof(T) == 4 ? 2 : 4;
  const CacheView& cache = step.cache;
  const int elements = layer.num_kv_heads * layer.head_size;
  const int runs = elements / kRun;
  const int64_t all = int64_t{step.num_update_tokens} * runs;
  const int64_t stride = int64_t{gridDim.x} * kThreads;
  for (int64_t base = int64_t{blockIdx.x} * kThreads + threadIdx.x; base < all;
       base += kAhead * stride) {
    UpdateToken tokens[kAhead];
    float keys[kAhead][kRun], values[kAhead][kRun];
    int element[kAhead];
#pragma unroll
    for (int a = 0; a < kAhead; ++a) {
      const int64_t index = base + a * stride;
      if (index >= all) break;
      tokens[a] = step.update_tokens[index / runs];
      element[a] = static_cast<int>(index % runs) * kRun;
    }
#pragma unroll
    for (int a = 0; a < kAhead; ++a) {
      if (base + a * stride >= all) break;
      load_numbers(static_cast<const T*>(step.source_key) + int64_t{tokens[a].key} * elements +
                       element[a],
                   keys[a]);
      load_numbers(static_cast<const T*>(step.source_value) + int64_t{tokens[a].value} * elements +
                       element[a],
                   values[a]);
    }
#pragma unroll
    for (int a = 0; a < kAhead; ++a) {
      if (base + a * stride >= all) break;
      char* half = keys_of(cache, tokens[a].block, element[a] / layer.head_size);
      const int dimension = element[a] % layer.head_size;
      store_run<E>(cache, half, tokens[a].offset, dimension, layer.k_scale, keys[a]);
      store_run<E>(cache, half + cache.half_bytes, tokens[a].offset, dimension, layer.v_scale,
                   values[a]);
    }
  }
}

/// Blocks of threads take tokens in turns: those to write, then queries.
template <class T, class E>
__global__ void __launch_bounds__(kThreads) update(LayerArgs layer, const StepArgs* arguments) {
  const StepArgs& step = *arguments;
  if (layer.rotary_dim == 0) update_all<T, E>(layer, step);
  const int tokens = layer.rotary_dim == 0 ? 0 : step.num_update_tokens;
  const int work = tokens + step.num_query_tokens;
  for (int i = static_cast<int>(blockIdx.x); i < work; i += static_cast<int>(gridDim.x)) {
    if (i < tokens) {
      update_token<T, E>(layer, step, step.update_tokens[i]);
    } else {
      prepare_query<T>(layer, step, i - tokens);
    }
  }
}

template <class T>
void (*for_cache(int cache_dtype))(LayerArgs, const StepArgs*) {
  switch (cache_dtype) {
    case BH_FLOAT32:
      return &update<T, Float32>;
    case BH_FLOAT16:
      return &update<T, Float16>;
    case BH_BFLOAT16:
      return &update<T, BFloat16>;
    case BH_FLOAT8_E4M3FN:
      return &update<T, Float8E4M3>;
    default:
      return &update<T, Float8E5M2>;
  }
}

}  // namespace

KernelLaunch update_kernel(const LayerArgs& layer, int cache_dtype) {
  size_t shared = 0;
  if (layer.rotary_dim > 0) {
    const size_t element = layer.dtype == BH_FLOAT32 ? 4 : 2;
    shared = static_cast<size_t>(layer.num_heads) * static_cast<size_t>(layer.head_size) * element;
  }
  switch (layer.dtype) {
    case BH_FLOAT32:
      return {for_cache<Float32>(cache_dtype), shared, kThreads, 0};
    case BH_FLOAT16:
      return {for_cache<Float16>(cache_dtype), shared, kThreads, 0};
    default:
      return {for_cache<BFloat16>(cache_dtype), shared, kThreads, 0};
  }
}

}  // namespace broadhead::gpu
