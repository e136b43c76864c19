// SPDX-License-Identifier: Apache-2.0
// Rotary embedding of heads of queries and keys. Included by kernel sources only (see vec.h).
#pragma once

#include "cpu/element.h"
#include "cpu/kernels.h"

namespace broadhead::cpu::BH_TIER {

/// A vector of pairs j .. j + kWidth - 1 that lie half a rotary_dim apart.
template <class T>
BH_INLINE void rotate_halves(const T* from, const float* cosines, const float* sines, int half,
                             int j, T* to) {
  const Vec x = load(from + j);
  const Vec y = load(from + half + j);
  const Vec c = load(cosines + j);
  const Vec s = load(sines + j);
  store(to + j, x * c - y * s);
  store(to + half + j, y * c + x * s);
}

/// A vector of pairs j .. j + kWidth / 2 - 1 of neighbours.
template <class T>
BH_INLINE void rotate_neighbours(const T* from, const float* cosines, const float* sines, int j,
                                 T* to) {
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
  store(to + 2 * j, x * c + __builtin_shuffle(x, partner) * s);
}

/// A vector whose first lane is x.
template <class T>
BH_INLINE Vec load_one(T x) {
  T lanes[kWidth] = {x};
  return load(lanes);
}

template <class T>
BH_INLINE T round_one(Vec v) {
  T lanes[kWidth];
  store(lanes, v);
  return lanes[0];
}

/// Rotates one head, rounded once: each pair (a, b) becomes (a cos - b sin, b cos + a sin).
/// Dimensions past rotary_dim stay as they are. `token` is where its position lies.
template <class T>
BH_INLINE void rotate(const LayerView& layer, const StepPart& part, const T* from, int64_t token,
                      T* to) {
  const int half = layer.rotary_dim / 2;
  const int pairs = layer.is_neox ? kWidth : kWidth / 2;  // of a vector
  const float* cosines = layer.cos_sin + part.positions[token] * layer.rotary_dim;
  const float* sines = cosines + half;
  int j = 0;
  for (; j + pairs <= half; j += pairs) {
    if (layer.is_neox) {
      rotate_halves(from, cosines, sines, half, j, to);
    } else {
      rotate_neighbours(from, cosines, sines, j, to);
    }
  }
  for (; j < half; ++j) {
    const int a = layer.is_neox ? j : 2 * j;
    const int b = layer.is_neox ? j + half : 2 * j + 1;
    const Vec x = load_one(from[a]);
    const Vec y = load_one(from[b]);
    const Vec c = broadcast(cosines[j]);
    const Vec s = broadcast(sines[j]);
    to[a] = round_one<T>(x * c - y * s);
    to[b] = round_one<T>(y * c + x * s);
  }
  for (int d = layer.rotary_dim; d < layer.head_size; ++d) to[d] = from[d];
}

}  // namespace broadhead::cpu::BH_TIER
