// SPDX-License-Identifier: Apache-2.0
// Cache update: new keys and values go to their slots, rotated, rounded once. Queries that must be
// rotated or that lie in host memory are put where attention reads them on the way.
#include "hip/cache_layout.h"
#include "hip/element.h"
#include "hip/kernels.h"

namespace broadhead::gpu {
namespace {

constexpr int kThreads = 256;

/// Tokens of a block of threads. Threads for a panel of one token are followed by those for the
/// same panel of the next one, so that a wave stores runs of 256 bytes and more: blocks in any
/// order take runs of 128 more slowly.
template <class E>
constexpr int kTokens = sizeof(E) == 1 ? 4 : 2;
constexpr int kTogether = kPanel / kChunk;

/// Elements of a chunk.
template <class E>
constexpr int kElements = kChunk / int{sizeof(E)};

/// Elements in a row of a tensor.
template <class T, int kCount>
struct Source {
  T elements[kCount];

  BH_INLINE void load(const char* from) {
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
};

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

template <class E, class T>
BH_INLINE Chunk to_chunk(const Source<T, kElements<E>>& source, float scale) {
  if constexpr (__is_same(T, E)) {
    Chunk bits;
    __builtin_memcpy(&bits, source.elements, kChunk);
    return bits;
  } else {
    float numbers[kElements<E>];
#pragma unroll
    for (int i = 0; i < kElements<E>; ++i) numbers[i] = widen(source.elements[i]);
    return to_chunk<E>(numbers, scale);
  }
}

template <class T>
BH_INLINE float rounded(float x) {
  T element;
  narrow(x, element);
  return widen(element);
}

/// Rotary embedding of kCount dimensions of a head from `dimension` on, a multiple of kCount,
/// rounded to T: each pair (a, b) becomes (a cos - b sin, b cos + a sin).
template <class T, int kCount>
BH_INLINE void rotate(const LayerArgs& layer, const char* head, int position, int dimension,
                      float* numbers) {
  const int half = layer.rotary_dim / 2;
  const float* cosines = layer.cos_sin + int64_t{position} * layer.rotary_dim;
  Source<T, kCount> own;
  own.load(head + dimension * int{sizeof(T)});
#pragma unroll
  for (int i = 0; i < kCount; ++i) numbers[i] = widen(own.elements[i]);
  if (dimension >= layer.rotary_dim) return;
  if (half % kCount == 0 && !layer.is_neox) {
    Source<Float32, kCount / 2> cosine, sine;
    cosine.load(reinterpret_cast<const char*>(cosines + dimension / 2));
    sine.load(reinterpret_cast<const char*>(cosines + half + dimension / 2));
#pragma unroll
    for (int i = 0; i < kCount; i += 2) {
      const float a = numbers[i], b = numbers[i + 1];
      const float c = widen(cosine.elements[i / 2]), s = widen(sine.elements[i / 2]);
      numbers[i] = rounded<T>(a * c - b * s);
      numbers[i + 1] = rounded<T>(b * c + a * s);
    }
    return;
  }
  if (half % kCount == 0) {
    // All are first or all are second of their pairs, and the others lie together, too.
    const bool second = dimension >= half;
    const int pair = second ? dimension - half : dimension;
    Source<T, kCount> others;
    Source<Float32, kCount> cosine, sine;
    others.load(head + (second ? pair : pair + half) * int{sizeof(T)});
    cosine.load(reinterpret_cast<const char*>(cosines + pair));
    sine.load(reinterpret_cast<const char*>(cosines + half + pair));
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const float turned = widen(others.elements[i]) * widen(sine.elements[i]);
      const float kept = numbers[i] * widen(cosine.elements[i]);
      numbers[i] = rounded<T>(second ? kept + turned : kept - turned);
    }
    return;
  }
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    const int d = dimension + i;
    if (d >= layer.rotary_dim) continue;
    const bool second = layer.is_neox ? d >= half : d % 2 == 1;
    const int pair = layer.is_neox ? (second ? d - half : d) : d / 2;
    const int partner = layer.is_neox ? (second ? pair : pair + half) : (second ? d - 1 : d + 1);
    const float turned = widen(reinterpret_cast<const T*>(head)[partner]) * cosines[half + pair];
    const float kept = numbers[i] * cosines[pair];
    numbers[i] = rounded<T>(second ? kept + turned : kept - turned);
  }
}

/// The same for all dimensions that make a chunk of E.
template <class T, class E>
BH_INLINE Chunk rotated_chunk(const LayerArgs& layer, const char* tensor, int position, int element,
                              float scale) {
  const int dimension = element % layer.head_size;
  const char* head = tensor + (element - dimension) * int{sizeof(T)};
  constexpr int kCount = kElements<E> < 8 ? kElements<E> : 8;
  float numbers[kElements<E>];
#pragma unroll
  for (int i = 0; i < kElements<E>; i += kCount)
    rotate<T, kCount>(layer, head, position, dimension + i, numbers + i);
  return to_chunk<E>(numbers, scale);
}

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

/// A chunk for each thread of the tokens from `first` on.
template <class T, class E, bool kRotated>
BH_INLINE void write_tokens(const LayerArgs& layer, const UpdateArgs& args, int first) {
  constexpr int kChunks = kThreads / kTokens<E>;   // of a token
  constexpr int kShared = kTogether * kTokens<E>;  // threads for a panel of all tokens
  const int thread = static_cast<int>(threadIdx.x), part = static_cast<int>(blockIdx.y);
  const int index = first + thread / kTogether % kTokens<E>;
  const int chunk = part * kChunks + thread / kShared * kTogether + thread % kTogether;
  const int element = chunk * kElements<E>;
  if (index >= args.num_tokens || element >= layer.num_kv_heads * layer.head_size) return;
  const UpdateToken token = args.tokens[index];
  Source<T, kElements<E>> value;
  Chunk key_chunk;
  if constexpr (kRotated) {
    value.load(token.value + element * int{sizeof(T)});
    key_chunk = rotated_chunk<T, E>(layer, token.key, token.position, element, layer.k_scale);
  } else {
    Source<T, kElements<E>> key;
    key.load(token.key + element * int{sizeof(T)});
    value.load(token.value + element * int{sizeof(T)});
    key_chunk = to_chunk<E>(key, layer.k_scale);
  }
  store<E>(args.cache, token, element, key_chunk, to_chunk<E>(value, layer.v_scale));
}

/// A query to where attention reads it, by all blocks of threads of its column.
template <class T, bool kRotated>
BH_INLINE void prepare_query(const LayerArgs& layer, const QueryToken& token, char* to) {
  [[maybe_unused]] constexpr int kAhead = kRotated ? 1 : 4;
  const int chunks = layer.num_heads * layer.head_size / kElements<T>;
  const int threads = static_cast<int>(gridDim.y) * kThreads;
  const int first = static_cast<int>(blockIdx.y) * kThreads + static_cast<int>(threadIdx.x);
#pragma unroll kAhead
  for (int c = first; c < chunks; c += threads) {
    Chunk chunk;
    if constexpr (kRotated) {
      chunk = rotated_chunk<T, T>(layer, token.query, token.position, c * kElements<T>, 1);
    } else {
      chunk = load_constant(reinterpret_cast<const Chunk*>(token.query) + c);
    }
    reinterpret_cast<Chunk*>(to)[c] = chunk;
  }
}

BH_INLINE void copy_chunk_of(const Transfer& transfer, int64_t index) {
  if (index >= transfer.bytes / kChunk) return;
  reinterpret_cast<Chunk*>(transfer.to)[index] =
      reinterpret_cast<const Chunk*>(transfer.from)[index];
}

/// Blocks of threads of a multiprocessor or, on AMD, waves of a SIMD, that registers must suffice
/// for: what is only moved takes few, and the more of it is under way the better.
template <class T, class E, bool kRotated>
constexpr int kResident = BH_TILE != BH_TILE_MMA || (__is_same(T, E) && !kRotated) ? 8
                          : kRotated && sizeof(E) > 1                              ? 6
                                                                                   : 4;

/// Columns of blocks of threads for tokens to write, then for queries, then for parts of the plan.
template <class T, class E, bool kRotated>
__global__ void __launch_bounds__(kThreads, (kResident<T, E, kRotated>))
    update(LayerArgs layer, UpdateArgs args) {
  const int column = static_cast<int>(blockIdx.x);
  const int query = column - (args.num_tokens + kTokens<E> - 1) / kTokens<E>;
  if (query < 0) {
    write_tokens<T, E, kRotated>(layer, args, column * kTokens<E>);
  } else if (query < args.num_queries) {
    const int64_t bytes = layer.num_heads * layer.head_size * int{sizeof(T)};
    prepare_query<T, kRotated>(layer, args.queries[query], args.prepared_query + query * bytes);
  } else {
    const int64_t block = int64_t{query - args.num_queries} * gridDim.y + blockIdx.y;
    copy_chunk_of(args.plan, block * kThreads + threadIdx.x);
  }
}

int over(int64_t count, int64_t each) { return static_cast<int>((count + each - 1) / each); }

template <class T, class E>
hipError_t launch(hipStream_t stream, const LayerArgs& layer, const UpdateArgs& args) {
  const int chunks = layer.num_kv_heads * layer.head_size / kElements<E>;
  const int parts = over(chunks, kThreads / kTokens<E>);
  const int columns = over(args.num_tokens, kTokens<E>) + args.num_queries +
                      over(args.plan.bytes, int64_t{parts} * kThreads * kChunk);
  return launch_kernel(layer.rotary_dim == 0 ? &update<T, E, false> : &update<T, E, true>,
                       dim3(static_cast<unsigned>(columns), static_cast<unsigned>(parts)), kThreads,
                       0, stream, layer, args);
}

template <class T>
hipError_t for_cache(int cache_dtype, hipStream_t stream, const LayerArgs& layer,
                     const UpdateArgs& args) {
  switch (cache_dtype) {
    case BH_FLOAT32:
      return launch<T, Float32>(stream, layer, args);
    case BH_FLOAT16:
      return launch<T, Float16>(stream, layer, args);
    case BH_BFLOAT16:
      return launch<T, BFloat16>(stream, layer, args);
    case BH_FLOAT8_E4M3FN:
      return launch<T, Float8E4M3>(stream, layer, args);
    default:
      return launch<T, Float8E5M2>(stream, layer, args);
  }
}

}  // namespace

hipError_t launch_update(hipStream_t stream, const LayerArgs& layer, const UpdateArgs& args) {
  switch (layer.dtype) {
    case BH_FLOAT32:
      return for_cache<Float32>(args.cache.dtype, stream, layer, args);
    case BH_FLOAT16:
      return for_cache<Float16>(args.cache.dtype, stream, layer, args);
    default:
      return for_cache<BFloat16>(args.cache.dtype, stream, layer, args);
  }
}

}  // namespace broadhead::gpu
