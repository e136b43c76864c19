// SPDX-License-Identifier: Apache-2.0
// Cache update: new keys and values go to their slots. Included by kernel sources only (see vec.h).
#pragma once

#include "cpu/rotary.h"

namespace broadhead::cpu::BH_TIER {

/// x / scale, the one rounding being the store's.
BH_INLINE Vec unscale(Vec v, float scale) { return scale == 1 ? v : v / broadcast(scale); }

/// Stores kTile heads, [kTile][head_size], as the keys of a whole tile, [head_size][kTile].
template <class E>
BH_INLINE void store_keys(const float* heads, int head_size, float scale, E* tile) {
  for (int d = 0; d < head_size; d += kWidth) {
    for (int t = 0; t < kTile; t += kWidth) {
      Vec rows[kWidth];
#pragma GCC unroll 16
      for (int i = 0; i < kWidth; ++i) rows[i] = load(heads + (t + i) * head_size + d);
      transpose(rows);
#pragma GCC unroll 16
      for (int i = 0; i < kWidth; ++i) store(tile + (d + i) * kTile + t, unscale(rows[i], scale));
    }
  }
}

/// Stores one head as the key of one token of a tile.
template <class E>
BH_INLINE void store_key(const float* head, int head_size, float scale, E* tile, int token) {
  for (int d = 0; d < head_size; d += kWidth) {
    E rounded[kWidth];
    store(rounded, unscale(load(head + d), scale));
    for (int i = 0; i < kWidth; ++i) tile[(d + i) * kTile + token] = rounded[i];
  }
}

/// Stores one head as the value of one token of a tile.
template <class E>
BH_INLINE void store_value(const float* head, int head_size, float scale, E* tile, int token) {
  E* to = tile + kTile * head_size + token * kTile;
  for (int d = 0; d < head_size; d += kTile) {
    for (int v = 0; v < kTile; v += kWidth) {
      store(to + d * kTile + v, unscale(load(head + d + v), scale));
    }
  }
}

/// New tokens from `first` on whose slots follow one another within a tile.
BH_INLINE int run_in_tile(const int64_t* slots, int first, int end) {
  int last = first + 1;
  while (last < end && slots[last] == slots[last - 1] + 1 && slots[last] % kTile != 0) ++last;
  return last - first;
}

template <class T, class E>
static void update_tokens(const LayerView& layer, const Step& step, const CacheView& cache,
                          const StepRow& row, int first, int end, float* heads) {
  const int size = layer.head_size;
  const int64_t stride = int64_t{layer.num_kv_heads} * size;
  const int64_t* slots = step.slots + row.slots;
  for (int t = first, run; t < end; t += run) {
    run = run_in_tile(slots, t, end);
    if (slots[t] < 0) continue;
    const int64_t block = slots[t] / cache.block_size;
    const int offset = static_cast<int>(slots[t] % cache.block_size);
    for (int h = 0; h < layer.num_kv_heads; ++h) {
      E* tile = reinterpret_cast<E*>(cache.tile(block, h, offset / kTile));
      for (int i = 0; i < run; ++i) {
        float* head = heads + (run == kTile ? i : 0) * size;
        load_head<T>(layer, step, step.key, (row.key + t + i) * stride + h * size,
                     row.positions + t + i, head);
        if (run < kTile) store_key(head, size, layer.k_scale, tile, offset % kTile + i);
      }
      if (run == kTile) store_keys(heads, size, layer.k_scale, tile);
      for (int i = 0; i < run; ++i) {
        load_row(static_cast<const T*>(step.value) + (row.value + t + i) * stride + h * size, size,
                 heads);
        store_value(heads, size, layer.v_scale, tile, offset % kTile + i);
      }
    }
  }
}

static void update(const LayerView& layer, const Step& step, const CacheView& cache, int64_t row,
                   int first, int end, float* scratch) {
  with_tensor_dtype(layer.dtype, [&](auto t) {
    with_dtype(cache.dtype, [&](auto e) {
      update_tokens<decltype(t), decltype(e)>(layer, step, cache, step.rows[row], first, end,
                                              scratch);
    });
  });
}

}  // namespace broadhead::cpu::BH_TIER
