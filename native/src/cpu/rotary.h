// SPDX-License-Identifier: Apache-2.0
// Rotary embedding of query and key rows on their way in. Included by kernel sources only (see
// vec.h).
#pragma once

#include "cpu/element.h"
#include "cpu/kernels.h"

namespace broadhead::cpu::BH_TIER {

/// x, rounded once to T.
template <class T>
BH_INLINE Vec round_to(Vec x) {
  T rounded[kWidth];
  store(rounded, x);
  return load(rounded);
}

/// A vector of pairs j .. j + kWidth - 1 that lie half a rotary_dim apart.
template <class T>
BH_INLINE void rotate_halves(const T* from, const float* cosines, const float* sines, int half,
                             int j, float* to) {
  const Vec x = load(from + j);
  const Vec y = load(from + half + j);
  const Vec c = load(cosines + j);
  const Vec s = load(sines + j);
  store(to + j, round_to<T>(x * c - y * s));
  store(to + half + j, round_to<T>(y * c + x * s));
}

/// A vector of pairs j .. j + kWidth / 2 - 1 of neighbours.
template <class T>
BH_INLINE void rotate_neighbours(const T* from, const float* cosines, const float* sines, int j,
                                 float* to) {
  IntVec twice;
  IntVec partner;
  Vec sign;
  for (int i = 0; i < kWidth; ++i) {
    twice[i] = i / 2;
    partner[i] = i ^ 1;
    sign[i] = i % 2 == 0 ? -1.0f : 1.0f;
  }
  Vec c = {};
  Vec s = {};
  __builtin_memcpy(&c, cosines + j, sizeof c / 2);
  __builtin_memcpy(&s, sines + j, sizeof s / 2);
  c = __builtin_shuffle(c, twice);
  s = __builtin_shuffle(s, twice) * sign;
  const Vec x = load(from + 2 * j);
  store(to + 2 * j, round_to<T>(x * c + __builtin_shuffle(x, partner) * s));
}

/// Loads one head of the step's dtype, rotated and rounded once: each pair (a, b) becomes
/// (a cos - b sin, b cos + a sin). Dimensions past rotary_dim stay as they are. `token` is the
/// index of its position.
template <class T>
BH_INLINE void load_rotated(const LayerView& layer, const StepPart& part, const T* from,
                            int64_t token, float* to) {
  const int half = layer.rotary_dim / 2;
  const int pairs = layer.is_neox ? kWidth : kWidth / 2;  // of a vector
  const float* cosines = layer.cos_sin + part.positions[token] * layer.rotary_dim;
  const float* sines = cosines + half;
  if (layer.rotary_dim < layer.head_size || half % pairs != 0) {
    load_row(from, layer.head_size, to);
  }
  int j = 0;
  for (; j + pairs <= half; j += pairs) {
    if (layer.is_neox) {
      rotate_halves(from, cosines, sines, half, j, to);
    } else {
      rotate_neighbours(from, cosines, sines, j, to);
    }
  }
  for (; j < half; ++j) {
    float& a = to[layer.is_neox ? j : 2 * j];
    float& b = to[layer.is_neox ? j + half : 2 * j + 1];
    const float x = a;
    const float y = b;
    a = round_to<T>(broadcast(x * cosines[j] - y * sines[j]))[0];
    b = round_to<T>(broadcast(y * cosines[j] + x * sines[j]))[0];
  }
}

}  // namespace broadhead::cpu::BH_TIER
