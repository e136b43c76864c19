// SPDX-License-Identifier: Apache-2.0
// From raw scores to softmax weights: the score transforms in the order of the step format (scale,
// which is folded into the query, then soft cap, ALiBi, mask) and the running softmax. A new score
// transform goes into transform_score. Included by kernel sources only (see vec.h).
#pragma once

#include "cpu/kernels.h"
#include "cpu/vec.h"

namespace broadhead::cpu::BH_TIER {

struct ScoreTransform {
  float scale;  ///< for scores that have it yet to come
  float soft_cap;
  float slope;

  [[gnu::always_inline]] bool is_none() const { return soft_cap == 0 && slope == 0; }
};

/// `distance` is key position minus query position.
BH_INLINE Vec transform_score(const ScoreTransform& transform, Vec score, IntVec distance) {
  if (transform.soft_cap != 0) {
    const Vec cap = broadcast(transform.soft_cap);
    score = cap * tanh(score / cap);
  }
  if (transform.slope != 0) {
    score += broadcast(transform.slope) * __builtin_convertvector(distance, Vec);
  }
  return score;
}

/// Running softmax of one query row: the weights seen so far are e^(score - maximum).
struct SoftmaxState {
  float maximum;
  float denominator;
};

/// Transforms and masks the scores of key positions base .. base + count - 1 (count a multiple of
/// kTile) where there is anything to do, and returns the highest. Scales them if kScales.
template <bool kScales>
BH_INLINE float mask_scores(const ScoreTransform& transform, const QueryToken& token, int base,
                            int count, float* scores) {
  Vec best[2] = {broadcast(-kInfinity), broadcast(-kInfinity)};
  auto scaled = [&](int t) {
    const Vec score = load(scores + t);
    return kScales ? score * broadcast(transform.scale) : score;
  };
  auto mask = [&](int begin, int end) {
    for (int t = begin; t < end; t += kWidth) {
      Vec score = scaled(t);
      const IntVec key = iota_int() + (base + t);
      if (!transform.is_none()) score = transform_score(transform, score, key - token.position);
      const IntVec seen = (key >= token.first) & (key < token.end);
      score = seen ? score : broadcast(-kInfinity);
      store(scores + t, score);
      best[0] = max(score, best[0]);
    }
  };
  // Tiles that stay as they are: all of their keys are seen.
  int begin = count;
  int end = count;
  if (transform.is_none()) {
    begin = min_int(max_int(token.first - base + kTile - 1, 0) / kTile * kTile, count);
    end = max_int(min_int(token.end - base, count) / kTile * kTile, begin);
  }
  mask(0, begin);
  for (int t = begin; t < end; t += kTile) {
#pragma GCC unroll 4
    for (int v = 0; v < kTile / kWidth; ++v) {
      const Vec score = scaled(t + v * kWidth);
      if constexpr (kScales) store(scores + t + v * kWidth, score);
      best[v % 2] = max(score, best[v % 2]);
    }
  }
  mask(end, count);
  return reduce_max(max(best[0], best[1]));
}

/// Calls keep(t, weights) for the weights of scores t .. t + kStep - 1, 0 where scores are -inf,
/// and returns the sum of all. `count` is a multiple of kStep.
template <int kStep, class Keep>
BH_INLINE float weigh(const float* scores, int count, float maximum, Keep&& keep) {
  constexpr int kVecs = kStep / kWidth;
  Vec sum[2] = {};
  if (maximum == -kInfinity) {
    // Nothing seen so far, or NaN: weights of 0, or NaN that must not be lost.
    for (int t = 0; t < count; t += kStep) {
      Vec weights[kVecs];
      for (int v = 0; v < kVecs; ++v) {
        const Vec score = load(scores + t + v * kWidth);
        weights[v] = score == score ? Vec{} : score;
        sum[0] += weights[v];
      }
      keep(t, weights);
    }
  } else {
    const Vec subtract = broadcast(maximum);
    for (int t = 0; t < count; t += kStep) {
      Vec weights[kVecs];
#pragma GCC unroll 4
      for (int v = 0; v < kVecs; ++v) {
        weights[v] = exp(load(scores + t + v * kWidth) - subtract);
        sum[v % 2] += weights[v];
      }
      keep(t, weights);
    }
  }
  return reduce_add(sum[0] + sum[1]);
}

/// The factors by which what was summed under `maximum` is multiplied under `next`.
BH_INLINE Vec rescale(Vec maximum, Vec next) {
  return next > maximum ? exp(maximum - next) : broadcast(1);
}

}  // namespace broadhead::cpu::BH_TIER
