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
  BH_INLINE Tensor(const LayerArgs& layer, const char* tensor, int heads, int position)
      : layer_(layer), tensor_(reinterpret_cast<const T*>(tensor)), position_(position) {
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

/// A chunk of a head as the cache of E keeps it, the same place for every token.
template <class E>
class Place {
 public:
  static constexpr int kElements = kChunk / int{sizeof(E)};

  /// `element` counts over all KV heads of a token.
  BH_INLINE Place(const CacheView& cache, int element)
      : cache_(cache), head_(element / cache.head_size) {
    const int byte = element % cache.head_size * int{sizeof(E)};
    width_ = panel_width(cache.row_bytes, byte / kPanel);
    panel_ = byte / kPanel * kPanel * kPanelTokens;
    chunk_ = byte % kPanel / kChunk;
  }

  /// Stores a token's key or, half a block further, value.
  BH_INLINE void store(const UpdateToken& token, bool is_value, const Chunk& chunk) const {
    char* to = keys_of(cache_, token.block, head_) +
               token.offset / kPanelTokens * kPanelTokens * cache_.row_bytes + panel_ +
               token.offset % kPanelTokens * width_ +
               (chunk_ ^ swizzle(width_, token.offset)) * kChunk;
    *reinterpret_cast<Chunk*>(to + (is_value ? cache_.half_bytes : 0)) = chunk;
  }

 private:
  const CacheView& cache_;
  int head_;
  int width_;
  int panel_;
  int chunk_;
};

/// Divides by the scale and rounds to E, once.
template <class E>
BH_INLINE Chunk to_chunk(const float* numbers, float scale) {
  E elements[kChunk / int{sizeof(E)}];
#pragma unroll
  for (int i = 0; i < kChunk / int{sizeof(E)}; ++i) {
    narrow(scale == 1 ? numbers[i] : numbers[i] / scale, elements[i]);
  }
  Chunk chunk;
  __builtin_memcpy(&chunk, elements, kChunk);
  return chunk;
}

/// A token's run of a tensor, as much as makes a chunk of E.
template <class T, class E>
struct Source {
  static constexpr int kElements = kChunk / int{sizeof(E)};
  T elements[kElements];

  BH_INLINE void load(const char* tensor, int element) {
    const char* from = tensor + element * int{sizeof(T)};
    if constexpr (sizeof elements >= kChunk) {
#pragma unroll
      for (int c = 0; c < int{sizeof elements} / kChunk; ++c) {
        const Chunk chunk = load_constant(reinterpret_cast<const Chunk*>(from) + c);
        __builtin_memcpy(reinterpret_cast<char*>(elements) + c * kChunk, &chunk, kChunk);
      }
    } else {
      const Words2 words = *reinterpret_cast<const Words2*>(from);
      __builtin_memcpy(elements, &words, 8);
    }
  }
  BH_INLINE Chunk chunk(float scale) const {
    Chunk bits;
    if constexpr (__is_same(T, E)) {
      __builtin_memcpy(&bits, elements, kChunk);
    } else {
      float numbers[kElements];
#pragma unroll
      for (int i = 0; i < kElements; ++i) numbers[i] = widen(elements[i]);
      bits = to_chunk<E>(numbers, scale);
    }
    return bits;
  }
};

/// Without rotary embedding tokens are independent: a thread loads its chunk of some of them before
/// it stores the first. Blocks of threads take runs of tokens, which mostly lie in one block of the
/// cache: a thread's stores are to lines side by side.
template <class T, class E>
BH_INLINE void update_all(const LayerArgs& layer, const StepArgs& step) {
  constexpr int kAhead = 2;
  const int elements = layer.num_kv_heads * layer.head_size;
  const int blocks = static_cast<int>(gridDim.x);
  const int run = (step.num_update_tokens + blocks - 1) / blocks;
  const int begin = static_cast<int>(blockIdx.x) * run;
  const int end = begin + run < step.num_update_tokens ? begin + run : step.num_update_tokens;
  auto describe = [&](int first, UpdateToken* tokens) {
#pragma unroll
    for (int a = 0; a < kAhead; ++a) {
      tokens[a] = step.update_tokens[first + a < end ? first + a : begin];
    }
  };
  for (int e = static_cast<int>(threadIdx.x) * Place<E>::kElements; e < elements && begin < end;
       e += kThreads * Place<E>::kElements) {
    const Place<E> place(step.cache, e);
    UpdateToken tokens[kAhead];
    describe(begin, tokens);
    for (int first = begin; first < end; first += kAhead) {
      Source<T, E> keys[kAhead], values[kAhead];
#pragma unroll
      for (int a = 0; a < kAhead; ++a) {
        keys[a].load(tokens[a].key, e);
        values[a].load(tokens[a].value, e);
      }
      UpdateToken next[kAhead];
      describe(first + kAhead, next);
#pragma unroll
      for (int a = 0; a < kAhead; ++a) {
        if (first + a < end) {
          place.store(tokens[a], false, keys[a].chunk(layer.k_scale));
          place.store(tokens[a], true, values[a].chunk(layer.v_scale));
        }
        tokens[a] = next[a];
      }
    }
  }
}

template <class T, class E>
BH_INLINE void update_rotated(const LayerArgs& layer, const StepArgs& step,
                              const UpdateToken& token) {
  const int elements = layer.num_kv_heads * layer.head_size;
  const Tensor<T> key(layer, token.key, layer.num_kv_heads, token.position);
  constexpr int kElements = Place<E>::kElements;
  for (int e = static_cast<int>(threadIdx.x) * kElements; e < elements; e += kThreads * kElements) {
    const Place<E> place(step.cache, e);
    Source<T, E> value;
    value.load(token.value, e);
    float numbers[kElements < kRun ? kRun : kElements];
    if constexpr (kElements < kRun) {
      // Half of a run: its first numbers are those of element e.
      float whole[kRun];
      key.load(e / kRun * kRun, whole);
#pragma unroll
      for (int i = 0; i < kElements; ++i)
        numbers[i] = e % kRun == 0 ? whole[i] : whole[i + kElements];
    } else {
#pragma unroll
      for (int i = 0; i < kElements; i += kRun) key.load(e + i, numbers + i);
    }
    place.store(token, false, to_chunk<E>(numbers, layer.k_scale));
    place.store(token, true, value.chunk(layer.v_scale));
  }
}

template <class T>
BH_INLINE void prepare_query(const LayerArgs& layer, const StepArgs& step, int index) {
  const QueryToken& token = step.query_tokens[index];
  const int elements = layer.num_heads * layer.head_size;
  const Tensor<T> query(layer, token.query, layer.num_heads, token.position);
  T* to = reinterpret_cast<T*>(step.prepared_query) + int64_t{index} * elements;
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

/// Blocks of threads take tokens in turns: those to write, then queries.
template <class T, class E>
__global__ void __launch_bounds__(kThreads) update(LayerArgs layer, const StepArgs* arguments) {
  const StepArgs& step = *arguments;
  if (layer.rotary_dim == 0) update_all<T, E>(layer, step);
  const int tokens = layer.rotary_dim == 0 ? 0 : step.num_update_tokens;
  const int work = tokens + step.num_query_tokens;
  for (int i = static_cast<int>(blockIdx.x); i < work; i += static_cast<int>(gridDim.x)) {
    if (i < tokens) {
      update_rotated<T, E>(layer, step, step.update_tokens[i]);
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
