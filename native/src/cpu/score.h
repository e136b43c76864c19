// SPDX-License-Identifier: Apache-2.0
// From raw scores to softmax weights: the score transforms in the order of the step format (scale,
// which is folded into the query, then soft cap, ALiBi, mask) and the running softmax. A new score
// transform goes into transform_score. Included by kernel sources only (see vec.h).
#pragma once

#include "cpu/kernels.h"
#include "cpu/vec.h"

namespace broadhead::cpu::BH_TIER {

struct ScoreTransform {
  float soft_cap;
  float slope;
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

/// Turns the scores of key positions base .. base + count - 1 (count a multiple of kTile) into
/// weights, 0 where the token does not see the key, and returns the factor by which what was
/// summed before must be multiplied.
BH_INLINE float softmax_update(const ScoreTransform& transform, const QueryToken& token, int base,
                               int count, float* scores, SoftmaxState& state) {
  const bool plain = transform.soft_cap == 0 && transform.slope == 0;
  const bool masked = token.first > base || token.end < base + count;
  Vec best = broadcast(-kInfinity);
  for (int t = 0; t < count; t += kWidth) {
    Vec score = load(scores + t);
    const IntVec key = iota_int() + (base + t);
    if (!plain) score = transform_score(transform, score, key - token.position);
    if (masked) {
      const IntVec seen = (key >= token.first) & (key < token.end);
      score = seen ? score : broadcast(-kInfinity);
    }
    if (!plain || masked) store(scores + t, score);
    best = max(score, best);
  }
  const float highest = reduce_max(best);
  const float maximum = highest > state.maximum ? highest : state.maximum;
  if (maximum == -kInfinity) {
    // Nothing seen so far, or NaN: weights of 0, or NaN that must not be lost.
    Vec sum = Vec{};
    for (int t = 0; t < count; t += kWidth) {
      const Vec score = load(scores + t);
      const Vec weight = score == score ? Vec{} : score;
      store(scores + t, weight);
      sum += weight;
    }
    state.denominator += reduce_add(sum);
    return 1;
  }
  float factor = 1;
  if (maximum > state.maximum) {
    factor = __builtin_expf(state.maximum - maximum);
    state.maximum = maximum;
  }
  const Vec subtract = broadcast(maximum);
  Vec sum = Vec{};
  for (int t = 0; t < count; t += kWidth) {
    const Vec weight = exp(load(scores + t) - subtract);
    store(scores + t, weight);
    sum += weight;
  }
  state.denominator = state.denominator * factor + reduce_add(sum);
  return factor;
}

}  // namespace broadhead::cpu::BH_TIER
