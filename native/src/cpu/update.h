// SPDX-License-Identifier: Apache-2.0
// Cache update: new keys and values go to their slots. Included by kernel sources only (see vec.h).
#pragma once

#include "cpu/rotary.h"

namespace broadhead::cpu::BH_TIER {

/// Rounds one head to the cache's dtype, saturating for the fp8 types: stored = x / scale.
template <class E>
BH_INLINE void round_head(const float* head, int size, float scale, E* to) {
  const Vec divisor = broadcast(scale);
  for (int d = 0; d < size; d += kWidth) store(to + d, load(head + d) / divisor);
}

template <class T, class E>
static void update_tokens(const LayerView& layer, const Step& step, const CacheView& cache,
                          const StepRow& row, int first, int end, float* head) {
  const int size = layer.head_size;
  const int64_t stride = int64_t{layer.num_kv_heads} * size;
  E* rounded = reinterpret_cast<E*>(head + size);
  for (int t = first; t < end; ++t) {
    const int64_t slot = step.slots[row.slots + t];
    if (slot < 0) continue;
    const int64_t block = slot / cache.block_size;
    const int offset = static_cast<int>(slot % cache.block_size);
    for (int h = 0; h < layer.num_kv_heads; ++h) {
      E* tile = reinterpret_cast<E*>(cache.tile(block, h, offset / kTile));
      load_head<T>(layer, step, step.key, (row.key + t) * stride + h * size, row.positions + t,
                   head);
      round_head(head, size, layer.k_scale, rounded);
      for (int d = 0; d < size; ++d) tile[d * kTile + offset % kTile] = rounded[d];
      load_row(static_cast<const T*>(step.value) + (row.value + t) * stride + h * size, size, head);
      round_head(head, size, layer.v_scale, tile + (kTile + offset % kTile) * size);
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
