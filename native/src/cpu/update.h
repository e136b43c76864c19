// SPDX-License-Identifier: Apache-2.0
// Cache update: new keys and values go to their slots. Included by kernel sources only (see vec.h).
#pragma once

#include "cpu/rotary.h"
#include "cpu/round_fp8.h"

namespace broadhead::cpu::BH_TIER {

/// Heads of tokens, `stride` elements from one to the next.
template <class E>
struct Heads {
  const E* first;
  int64_t stride;

  [[gnu::always_inline]] const E* operator[](int token) const { return first + token * stride; }
};

/// `count` elements divided by `scale` as elements E.
template <class E, class S>
BH_KERNEL void unscale(const S* from, int count, float scale, E* to) {
  for (int i = scale == 1 ? round_vectors(from, count, to) : 0; i < count; i += kWidth) {
    const Vec v = load(from + i);
    store(to + i, scale == 1 ? v : v / broadcast(scale));
  }
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

/// Bytes of a run's elements E, of some heads, that stay in the first-level cache on their way.
/// Rounding is slow enough for more.
template <class E>
constexpr int kGroupBytes = (sizeof(E) == 1 ? 16 : 8) << 10;

/// New tokens from `first` on whose slots follow one another within a tile.
BH_INLINE int run_in_tile(const int64_t* slots, int first, int end) {
  int last = first + 1;
  while (last < end && slots[last] == slots[last - 1] + 1 && slots[last] % kTile != 0) ++last;
  return last - first;
}

template <class T, class E>
static void update_tokens(const LayerView& layer, const Step& step, const CacheView& cache,
                          const StepRow& row, int first, int end, bool streams, float* scratch) {
  constexpr bool kConverts = !__is_same(T, E);
  const int size = layer.head_size;
  const int64_t stride = int64_t{layer.num_kv_heads} * size;
  const StepPart& part = step.part(row);
  const T* all_keys = static_cast<const T*>(part.key) + row.key * stride;
  const T* all_values = static_cast<const T*>(part.value) + row.value * stride;
  const int head_bytes = kTile * size * static_cast<int>(sizeof(E));
  const int group = max_int(1, min_int(layer.num_kv_heads, kGroupBytes<E> / head_bytes));
  E* rounded = reinterpret_cast<E*>(scratch);
  T* rotated = reinterpret_cast<T*>(rounded + kTile * group * size);
  const bool keys_lie = !kConverts && layer.rotary_dim == 0;
  const int64_t* slots = step.slots(row);
  for (int t = first, run; t < end; t += run) {
    run = run_in_tile(slots, t, end);
    if (slots[t] < 0) continue;
    const int64_t block = slots[t] / cache.block_size;
    const int offset = static_cast<int>(slots[t] % cache.block_size);
    const int place = offset % kTile;
    for (int h = 0; h < layer.num_kv_heads; h += group) {
      const int heads = min_int(group, layer.num_kv_heads - h);
      const int width = heads * size;
      auto tile = [&](int head) {
        return reinterpret_cast<E*>(cache.tile(block, h + head, offset / kTile));
      };
      // Heads of a token lie side by side, but those of a tile are read token after token. So they
      // are rotated and rounded in memory's order, and fetched in it a run ahead.
      auto elements = [&](const T* all, bool rotates, float scale) {
        for (int i = 0; i < run; ++i) {
          const T* from = all + (t + i) * stride + h * size;
          if (t + run < end) fetch<2>(from + run * stride, width);
          E* to = rounded + i * width;
          if (rotates) {
            T* turned = kConverts ? rotated : reinterpret_cast<T*>(to);
            for (int d = 0; d < width; d += size) {
              rotate(layer, part, from + d, row.positions + t + i, turned + d);
            }
          }
          if constexpr (kConverts) unscale(rotates ? rotated : from, width, scale, to);
        }
        const T* lying = all + t * stride + h * size;
        return kConverts || rotates ? Heads<E>{rounded, width}
                                    : Heads<E>{reinterpret_cast<const E*>(lying), stride};
      };
      Heads<E> keys = elements(all_keys, layer.rotary_dim > 0, layer.k_scale);
      for (int head = 0; head < heads; ++head, keys.first += size) {
        if (keys_lie) {
          for (int i = 0; i < run; ++i) fetch(keys[i] + size, size);
        }
        if (run < kTile) {
          for (int i = 0; i < run; ++i) store_key(keys[i], size, tile(head), place + i);
        } else if (streams) {
          store_keys<true>(keys, size, tile(head));
        } else {
          store_keys(keys, size, tile(head));
        }
      }
      Heads<E> values = elements(all_values, false, layer.v_scale);
      for (int head = 0; head < heads; ++head, values.first += size) {
        if (!kConverts) {
          for (int i = 0; i < run; ++i) fetch(values[i] + size, size);
        }
        if (streams && run == kTile) {
          store_values<true>(values, run, size, tile(head), place);
        } else {
          store_values(values, run, size, tile(head), place);
        }
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
