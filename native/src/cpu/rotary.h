// SPDX-License-Identifier: Apache-2.0
// Rows of query and key on their way in: widened to float, rotated, rounded once to their dtype.
// Included by kernel sources only (see vec.h).
#pragma once

#include "cpu/element.h"
#include "cpu/kernels.h"

namespace broadhead::cpu::BH_TIER {

/// Rotary embedding of one head: each pair (a, b) becomes (a cos - b sin, b cos + a sin); pairs are
/// (j, j + rotary_dim / 2), or (2j, 2j + 1) without NeoX pairing. Dimensions past rotary_dim stay.
BH_INLINE void rotate(const LayerView& layer, int64_t position, float* head) {
  const int half = layer.rotary_dim / 2;
  const float* cosines = layer.cos_sin + position * layer.rotary_dim;
  const float* sines = cosines + half;
  const int stride = layer.is_neox ? 1 : 2;
  const int partner = layer.is_neox ? half : 1;
  for (int j = 0; j < half; ++j) {
    float& a = head[j * stride];
    float& b = head[j * stride + partner];
    const float x = a;
    const float y = b;
    a = x * cosines[j] - y * sines[j];
    b = y * cosines[j] + x * sines[j];
  }
}

/// Loads one head of the step's dtype, rotated where the layer has rotary embedding. `element` is
/// the index of its first element in `tensor`, which is of `part`, `token` that of its position.
template <class T>
BH_INLINE void load_head(const LayerView& layer, const StepPart& part, const void* tensor,
                         int64_t element, int64_t token, float* head) {
  load_row(static_cast<const T*>(tensor) + element, layer.head_size, head);
  if (layer.rotary_dim == 0) return;
  rotate(layer, part.positions[token], head);
  for (int i = 0; i < layer.head_size; i += kWidth) {
    T rounded[kWidth];
    store(rounded, load(head + i));
    store(head + i, load(rounded));
  }
}

}  // namespace broadhead::cpu::BH_TIER
