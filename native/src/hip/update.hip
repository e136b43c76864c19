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

/// A tensor of `heads` heads, rotated. All threads of the block bring it to shared memory first.
template <class T>
class Rotated {
 public:
  BH_INLINE Rotated(const LayerArgs& layer, const char* tensor, int heads, int position)
      : layer_(layer), position_(position) {
    constexpr int kPerChunk = kChunk / int{sizeof(T)};
    for (int i = static_cast<int>(threadIdx.x); i < heads * layer.head_size / kPerChunk;
         i += kThreads) {
      reinterpret_cast<Chunk*>(shared_memory())[i] =
          load_constant(reinterpret_cast<const Chunk*>(tensor) + i);
    }
    __syncthreads();
  }

  /// A run of its numbers.
  BH_INLINE void load(int element, float* numbers) const {
    const int dimension = element % layer_.head_size;
    const T* head = reinterpret_cast<const T*>(shared_memory()) + element - dimension;
    rotate(layer_, head, position_, dimension, numbers);
  }

 private:
  const LayerArgs& layer_;
  int position_;
};

/// Elements of a chunk of the cache.
template <class E>
constexpr int kElements = kChunk / int{sizeof(E)};

/// Stores chunks of a token's key and value, from `element` of all KV heads on.
template <class E>
BH_INLINE void store(const CacheView& cache, const UpdateToken& token, int element,
                     const Chunk& key, const Chunk& value) {
  const int head = element / cache.head_size;
  const int byte = (element - head * cache.head_size) * int{sizeof(E)};
  char* to = keys_of(cache, token.block, head) + half_offset(cache.row_bytes, token.offset, byte);
  *reinterpret_cast<Chunk*>(to) = key;
  *reinterpret_cast<Chunk*>(to + cache.half_bytes) = value;
}

/// Divides by the scale and rounds to E, once.
template <class E>
BH_INLINE Chunk to_chunk(float* numbers, float scale) {
  if (scale != 1) {
#pragma unroll
    for (int i = 0; i < kElements<E>; ++i) numbers[i] /= scale;
  }
  E elements[kElements<E>];
#pragma unroll
  for (int i = 0; i < kElements<E>; ++i) narrow(numbers[i], elements[i]);
  Chunk chunk;
  __builtin_memcpy(&chunk, elements, kChunk);
  return chunk;
}

/// A token's run of a tensor, as much as makes a chunk of E.
template <class T, class E>
struct Source {
  T elements[kElements<E>];

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
      float numbers[kElements<E>];
#pragma unroll
      for (int i = 0; i < kElements<E>; ++i) numbers[i] = widen(elements[i]);
      bits = to_chunk<E>(numbers, scale);
    }
    return bits;
  }
};

template <class T, class E>
BH_INLINE void write_token(const LayerArgs& layer, const CacheView& cache,
                           const UpdateToken& token) {
  const int elements = layer.num_kv_heads * layer.head_size;
  constexpr int kStep = kThreads * kElements<E>;
#pragma unroll 1
  for (int e = static_cast<int>(threadIdx.x) * kElements<E>; e < elements; e += kStep) {
    Source<T, E> key, value;
    key.load(token.key, e);
    value.load(token.value, e);
    store<E>(cache, token, e, key.chunk(layer.k_scale), value.chunk(layer.v_scale));
  }
}

template <class T, class E>
BH_INLINE void write_rotated(const LayerArgs& layer, const CacheView& cache,
                             const UpdateToken& token) {
  const int elements = layer.num_kv_heads * layer.head_size;
  const Rotated<T> key(layer, token.key, layer.num_kv_heads, token.position);
  constexpr int kStep = kThreads * kElements<E>;
  for (int e = static_cast<int>(threadIdx.x) * kElements<E>; e < elements; e += kStep) {
    Source<T, E> value;
    value.load(token.value, e);
    float numbers[kElements<E> < kRun ? kRun : kElements<E>];
    if constexpr (kElements<E> < kRun) {
      // Half of a run: its first numbers are those of element e.
      float whole[kRun];
      key.load(e / kRun * kRun, whole);
#pragma unroll
      for (int i = 0; i < kElements<E>; ++i)
        numbers[i] = e % kRun == 0 ? whole[i] : whole[i + kElements<E>];
    } else {
#pragma unroll
      for (int i = 0; i < kElements<E>; i += kRun) key.load(e + i, numbers + i);
    }
    store<E>(cache, token, e, to_chunk<E>(numbers, layer.k_scale), value.chunk(layer.v_scale));
  }
}

template <class T>
BH_INLINE void move_query(const LayerArgs& layer, const char* query, char* to) {
  const int chunks = layer.num_heads * layer.head_size * int{sizeof(T)} / kChunk;
#pragma unroll 4
  for (int c = static_cast<int>(threadIdx.x); c < chunks; c += kThreads) {
    reinterpret_cast<Chunk*>(to)[c] = load_constant(reinterpret_cast<const Chunk*>(query) + c);
  }
}

template <class T>
BH_INLINE void rotate_query(const LayerArgs& layer, const QueryToken& token, char* to) {
  const int elements = layer.num_heads * layer.head_size;
  const Rotated<T> query(layer, token.query, layer.num_heads, token.position);
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
      reinterpret_cast<Chunk*>(to + e * int{sizeof(T)})[c] = chunk;
    }
  }
}

BH_INLINE void copy_chunk_of(const Transfer& transfer, int64_t index) {
  if (index >= transfer.bytes / kChunk) return;
  reinterpret_cast<Chunk*>(transfer.to)[index] =
      reinterpret_cast<const Chunk*>(transfer.from)[index];
}

/// A block of threads for each token to write, then for each query, then for parts of the plan.
template <class T, class Write, class Prepare>
BH_INLINE void share_out(const LayerArgs& layer, const UpdateArgs& args, Write&& write,
                         Prepare&& prepare) {
  const int block = static_cast<int>(blockIdx.x);
  const int query = block - args.num_tokens;
  if (query < 0) {
    write(args.tokens[block]);
  } else if (query < args.num_queries) {
    const int bytes = layer.num_heads * layer.head_size * int{sizeof(T)};
    prepare(args.queries[query], args.prepared_query + int64_t{query} * bytes);
  } else {
    copy_chunk_of(args.plan, int64_t{query - args.num_queries} * kThreads + threadIdx.x);
  }
}

/// Blocks of threads of a multiprocessor or, on AMD, waves of a SIMD, that registers must suffice
/// for: what is only moved takes few, and the more of it is under way the better.
template <class T, class E>
constexpr int kResident = BH_TILE == BH_TILE_MMA&& __is_same(T, E) ? 16 : 8;

template <class T, class E>
__global__ void __launch_bounds__(kThreads, (kResident<T, E>))
    update(LayerArgs layer, UpdateArgs args) {
  share_out<T>(
      layer, args, [&](const UpdateToken& token) { write_token<T, E>(layer, args.cache, token); },
      [&](const QueryToken& token, char* to) { move_query<T>(layer, token.query, to); });
}

template <class T, class E>
__global__ void __launch_bounds__(kThreads) update_rotated(LayerArgs layer, UpdateArgs args) {
  share_out<T>(
      layer, args, [&](const UpdateToken& token) { write_rotated<T, E>(layer, args.cache, token); },
      [&](const QueryToken& token, char* to) { rotate_query<T>(layer, token, to); });
}

template <class T, class E>
LaunchOf<UpdateArgs> launch_of(const LayerArgs& layer) {
  if (layer.rotary_dim == 0) return {&update<T, E>, 0, kThreads, 0};
  const auto elements = static_cast<size_t>(layer.num_heads * layer.head_size);
  return {&update_rotated<T, E>, elements * sizeof(T), kThreads, 0};
}

template <class T>
LaunchOf<UpdateArgs> for_cache(const LayerArgs& layer, int cache_dtype) {
  switch (cache_dtype) {
    case BH_FLOAT32:
      return launch_of<T, Float32>(layer);
    case BH_FLOAT16:
      return launch_of<T, Float16>(layer);
    case BH_BFLOAT16:
      return launch_of<T, BFloat16>(layer);
    case BH_FLOAT8_E4M3FN:
      return launch_of<T, Float8E4M3>(layer);
    default:
      return launch_of<T, Float8E5M2>(layer);
  }
}

}  // namespace

LaunchOf<UpdateArgs> update_kernel(const LayerArgs& layer, int cache_dtype) {
  switch (layer.dtype) {
    case BH_FLOAT32:
      return for_cache<Float32>(layer, cache_dtype);
    case BH_FLOAT16:
      return for_cache<Float16>(layer, cache_dtype);
    default:
      return for_cache<BFloat16>(layer, cache_dtype);
  }
}

int update_blocks(const UpdateArgs& update) {
  constexpr int kBytes = kThreads * kChunk;
  return update.num_tokens + update.num_queries +
         static_cast<int>((update.plan.bytes + kBytes - 1) / kBytes);
}

}  // namespace broadhead::gpu
