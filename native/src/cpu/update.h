// SPDX-License-Identifier: Apache-2.0
// Cache update: new keys and values go to their slots. Included by kernel sources only (see vec.h).
#pragma once

#include "cpu/rotary.h"

namespace broadhead::cpu::BH_TIER {

/// Heads of tokens, `stride` elements from one to the next.
template <class E>
struct Heads {
  const E* first;
  int64_t stride;

  [[gnu::always_inline]] const E* operator[](int token) const { return first + token * stride; }
};

/// `count` heads divided by `scale` as elements E: as they lie if they are it, or else in
/// `scratch`.
template <class E, class S>
BH_INLINE Heads<E> unscale(Heads<S> heads, int count, int head_size, float scale, E* scratch) {
  if constexpr (__is_same(S, E)) {
    if (scale == 1) return heads;
  }
  for (int t = 0; t < count; ++t) {
    for (int d = 0; d < head_size; d += kWidth) {
      const Vec v = load(heads[t] + d);
      store(scratch + t * head_size + d, scale == 1 ? v : v / broadcast(scale));
    }
  }
  return {scratch, head_size};
}

/// Stores a vector, past the caches if it streams and the tier can.
template <bool kStreams, class V>
BH_INLINE void put(void* to, V v) {
  if constexpr (kStreams) {
#if defined(__AVX512F__)
    if constexpr (sizeof v == sizeof(__m512i)) {
      return _mm512_stream_si512(static_cast<__m512i*>(to), (__m512i)v);
    }
#endif
#if defined(__AVX2__)
    if constexpr (sizeof v == sizeof(__m256i)) {
      return _mm256_stream_si256(static_cast<__m256i*>(to), (__m256i)v);
    }
#endif
#if defined(__x86_64__)
    if constexpr (sizeof v == sizeof(__m128i)) {
      return _mm_stream_si128(static_cast<__m128i*>(to), (__m128i)v);
    }
#endif
  }
  __builtin_memcpy(to, &v, sizeof v);
}

template <int kBytes>
struct Unsigned;
template <>
struct Unsigned<1> {
  using Type = uint8_t;
};
template <>
struct Unsigned<2> {
  using Type = uint16_t;
};
template <>
struct Unsigned<4> {
  using Type = uint32_t;
};

/// `kCount` elements that are only moved.
template <class E, int kCount>
struct ElementsOf {
  typedef typename Unsigned<sizeof(E)>::Type Type __attribute__((vector_size(kCount * sizeof(E))));
};
template <class E, int kCount>
using Elements = typename ElementsOf<E, kCount>::Type;

/// Elements that fill a vector.
template <class E>
constexpr int kElements = sizeof(Vec) / sizeof(E);

/// Stores kColumns dimensions of kTile tokens, from `d` on.
template <bool kStreams, int kColumns, class E>
BH_INLINE void store_columns(Heads<E> heads, int d, E* to) {
  Elements<E, kColumns> rows[kTile];
#pragma GCC unroll 16
  for (int t = 0; t < kTile; ++t) __builtin_memcpy(&rows[t], heads[t] + d, sizeof rows[t]);
  transpose(rows);
#pragma GCC unroll 16
  for (int i = 0; i < kTile; ++i) {
    put<kStreams>(to + i * kColumns, rows[transposed_row<Elements<E, kColumns>>(i)]);
  }
}

/// Stores the heads of kTile tokens as the keys of a tile.
template <bool kStreams = false, class E>
BH_INLINE void store_keys(Heads<E> heads, int head_size, E* tile) {
  constexpr int kColumns = kElements<E>;
  int d = 0;
  for (; d + kColumns <= head_size; d += kColumns) {
    store_columns<kStreams, kColumns>(heads, d, tile + d * kTile);
  }
  if constexpr (kColumns > kTile) {
    for (; d < head_size; d += kTile) store_columns<kStreams, kTile>(heads, d, tile + d * kTile);
  }
}

/// Stores one head as the key of one token of a tile.
template <class E>
BH_INLINE void store_key(const E* head, int head_size, E* tile, int token) {
  for (int d = 0; d < head_size; d += kTile) {
#pragma GCC unroll 16
    for (int i = 0; i < kTile; ++i) tile[(d + i) * kTile + token] = head[d + i];
  }
}

/// Stores `count` heads as values of a tile from its `token`th one on, in the tile's order: lines
/// that are streamed must not be filled in parts.
template <bool kStreams = false, class E>
BH_INLINE void store_values(Heads<E> heads, int count, int head_size, E* tile, int token) {
  constexpr int kMoved = kElements<E> < kTile ? kElements<E> : kTile;
  E* to = tile + kTile * head_size + token * kTile;
  for (int d = 0; d < head_size; d += kTile) {
    for (int t = 0; t < count; ++t) {
      for (int i = 0; i < kTile; i += kMoved) {
        Elements<E, kMoved> moved;
        __builtin_memcpy(&moved, heads[t] + d + i, sizeof moved);
        put<kStreams>(to + d * kTile + t * kTile + i, moved);
      }
    }
  }
}

/// Bytes of a tile's keys that are fetched as they lie: twice as many stay in the second-level
/// cache beside what is written.
constexpr int64_t kFetchedBytes = int64_t{64} << 10;

/// New tokens from `first` on whose slots follow one another within a tile.
BH_INLINE int run_in_tile(const int64_t* slots, int first, int end) {
  int last = first + 1;
  while (last < end && slots[last] == slots[last - 1] + 1 && slots[last] % kTile != 0) ++last;
  return last - first;
}

template <class T, class E>
static void update_tokens(const LayerView& layer, const Step& step, const CacheView& cache,
                          const StepRow& row, int first, int end, bool streams, float* scratch) {
  const int size = layer.head_size;
  const int64_t stride = int64_t{layer.num_kv_heads} * size;
  const StepPart& part = step.part(row);
  const T* all_keys = static_cast<const T*>(part.key) + row.key * stride;
  const T* all_values = static_cast<const T*>(part.value) + row.value * stride;
  T* rotated = reinterpret_cast<T*>(scratch);
  E* rounded = reinterpret_cast<E*>(scratch + kTile * size);
  const bool fetches = kTile * stride * static_cast<int64_t>(sizeof(T)) <= kFetchedBytes;
  const int64_t* slots = step.slots(row);
  for (int t = first, run; t < end; t += run) {
    run = run_in_tile(slots, t, end);
    if (slots[t] < 0) continue;
    const int64_t block = slots[t] / cache.block_size;
    const int offset = static_cast<int>(slots[t] % cache.block_size);
    const int place = offset % kTile;
    for (int h = 0; h < layer.num_kv_heads; ++h) {
      E* tile = reinterpret_cast<E*>(cache.tile(block, h, offset / kTile));
      Heads<T> keys{all_keys + t * stride + h * size, stride};
      const Heads<T> values{all_values + t * stride + h * size, stride};
      // Heads of a token lie side by side, but those of a tile are read token after token. So the
      // next tokens come from memory in its order, as many at a time as a head of them, and nearer
      // head by head.
      if (fetches && t + run < end) {
        const int64_t next = (t + run) * stride + int64_t{h} * run * size;
        fetch<2>(all_keys + next, run * size);
        fetch<2>(all_values + next, run * size);
      }
      for (int i = 0; i < run; ++i) fetch(keys[i] + size, size);
      if (layer.rotary_dim > 0) {
        for (int i = 0; i < run; ++i) {
          rotate(layer, part, keys[i], row.positions + t + i, rotated + i * size);
        }
        keys = {rotated, size};
      }
      const Heads<E> new_keys = unscale(keys, run, size, layer.k_scale, rounded);
      if (run < kTile) {
        for (int i = 0; i < run; ++i) store_key(new_keys[i], size, tile, place + i);
      } else if (streams) {
        store_keys<true>(new_keys, size, tile);
      } else {
        store_keys(new_keys, size, tile);
      }
      for (int i = 0; i < run; ++i) fetch(values[i] + size, size);
      const Heads<E> new_values = unscale(values, run, size, layer.v_scale, rounded);
      if (streams && run == kTile) {
        store_values<true>(new_values, run, size, tile, place);
      } else {
        store_values(new_values, run, size, tile, place);
      }
    }
  }
}

static void update(const LayerView& layer, const Step& step, const CacheView& cache, int64_t row,
                   int first, int end, bool streams, float* scratch) {
  with_tensor_dtype(layer.dtype, [&](auto t) {
    with_dtype(cache.dtype, [&](auto e) {
      update_tokens<decltype(t), decltype(e)>(layer, step, cache, step.rows[row], first, end,
                                              streams, scratch);
    });
  });
#if defined(__x86_64__)
  if (streams) _mm_sfence();  // else who is told that this is done might not see all of it
#endif
}

}  // namespace broadhead::cpu::BH_TIER
