// SPDX-License-Identifier: Apache-2.0
// Cache update: new keys and values go to their slots. Included by kernel sources only (see vec.h).
#pragma once

#include "cpu/rotary.h"

namespace broadhead::cpu::BH_TIER {

/// x / scale, the one rounding being the store's.
BH_INLINE Vec unscale(Vec v, float scale) { return scale == 1 ? v : v / broadcast(scale); }

/// Stores a vector, past the caches if it streams and the tier can.
template <bool kStreams, class E>
BH_INLINE void put(E* to, Vec v) {
  if constexpr (kStreams) {
    alignas(Vec) E rounded[kWidth];
    store(rounded, v);
#if defined(__AVX512F__)
    if constexpr (sizeof rounded == sizeof(__m512i)) {
      return _mm512_stream_si512(reinterpret_cast<__m512i*>(to),
                                 *reinterpret_cast<const __m512i*>(rounded));
    }
#endif
#if defined(__AVX2__)
    if constexpr (sizeof rounded == sizeof(__m256i)) {
      return _mm256_stream_si256(reinterpret_cast<__m256i*>(to),
                                 *reinterpret_cast<const __m256i*>(rounded));
    }
#endif
#if defined(__x86_64__)
    if constexpr (sizeof rounded == sizeof(__m128i)) {
      return _mm_stream_si128(reinterpret_cast<__m128i*>(to),
                              *reinterpret_cast<const __m128i*>(rounded));
    }
#endif
  }
  store(to, v);
}

/// Stores the heads of kTile tokens, token_stride elements apart, as the keys of a whole tile.
template <bool kStreams = false, class S, class E>
BH_INLINE void store_keys(const S* heads, int64_t token_stride, int head_size, float scale,
                          E* tile) {
  for (int d = 0; d < head_size; d += kWidth) {
    Vec rows[kVecsPerRun][kWidth];
#pragma GCC unroll 4
    for (int v = 0; v < kVecsPerRun; ++v) {
#pragma GCC unroll 16
      for (int i = 0; i < kWidth; ++i) {
        rows[v][i] = unscale(load(heads + (v * kWidth + i) * token_stride + d), scale);
      }
      transpose(rows[v]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < kWidth; ++i) {
#pragma GCC unroll 4
      for (int v = 0; v < kVecsPerRun; ++v) {
        put<kStreams>(tile + (d + i) * kTile + v * kWidth, rows[v][i]);
      }
    }
  }
}

/// Stores one head as the key of one token of a tile.
template <class S, class E>
BH_INLINE void store_key(const S* head, int head_size, float scale, E* tile, int token) {
  for (int d = 0; d < head_size; d += kWidth) {
    E rounded[kWidth];
    store(rounded, unscale(load(head + d), scale));
    for (int i = 0; i < kWidth; ++i) tile[(d + i) * kTile + token] = rounded[i];
  }
}

/// Stores one head as the value of one token of a tile.
template <bool kStreams = false, class S, class E>
BH_INLINE void store_value(const S* head, int head_size, float scale, E* tile, int token) {
  E* to = tile + kTile * head_size + token * kTile;
  for (int d = 0; d < head_size; d += kTile) {
    for (int v = 0; v < kTile; v += kWidth) {
      put<kStreams>(to + d * kTile + v, unscale(load(head + d + v), scale));
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
                          const StepRow& row, int first, int end, bool streams, float* rotated) {
  const int size = layer.head_size;
  const int64_t stride = int64_t{layer.num_kv_heads} * size;
  const StepPart& part = step.part(row);
  const T* all_keys = static_cast<const T*>(part.key) + row.key * stride;
  const T* all_values = static_cast<const T*>(part.value) + row.value * stride;
  const bool fetches = kTile * stride * static_cast<int64_t>(sizeof(T)) <= kFetchedBytes;
  const int64_t* slots = step.slots(row);
  for (int t = first, run; t < end; t += run) {
    run = run_in_tile(slots, t, end);
    if (slots[t] < 0) continue;
    const int64_t block = slots[t] / cache.block_size;
    const int offset = static_cast<int>(slots[t] % cache.block_size);
    const bool streams_tile = streams && run == kTile;
    for (int h = 0; h < layer.num_kv_heads; ++h) {
      E* tile = reinterpret_cast<E*>(cache.tile(block, h, offset / kTile));
      auto write_keys = [&](const auto* heads, int64_t token_stride) {
        if (streams_tile) {
          store_keys<true>(heads, token_stride, size, layer.k_scale, tile);
        } else if (run == kTile) {
          store_keys(heads, token_stride, size, layer.k_scale, tile);
        } else {
          for (int i = 0; i < run; ++i) {
            store_key(heads + i * token_stride, size, layer.k_scale, tile, offset % kTile + i);
          }
        }
      };
      const T* keys = all_keys + t * stride + h * size;
      const T* values = all_values + t * stride + h * size;
      // Heads of a token lie side by side, but those of a tile are read token after token. So the
      // next tokens come from memory in its order, as many at a time as a head of them, and nearer
      // head by head.
      if (fetches && t + run < end) {
        const int64_t next = (t + run) * stride + int64_t{h} * run * size;
        fetch<2>(all_keys + next, run * size);
        fetch<2>(all_values + next, run * size);
      }
      for (int i = 0; i < run; ++i) fetch(keys + i * stride + size, size);
      if (layer.rotary_dim == 0) {
        write_keys(keys, stride);
      } else {
        for (int i = 0; i < run; ++i) {
          load_rotated(layer, part, keys + i * stride, row.positions + t + i, rotated + i * size);
        }
        write_keys(rotated, size);
      }
      for (int i = 0; i < run; ++i) {
        fetch(values + i * stride + size, size);
        if (streams_tile) {
          store_value<true>(values + i * stride, size, layer.v_scale, tile, i);
        } else {
          store_value(values + i * stride, size, layer.v_scale, tile, offset % kTile + i);
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
