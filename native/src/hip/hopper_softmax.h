// SPDX-License-Identifier: Apache-2.0
// Running softmax of a warpgroup: a thread has parts of two rows, 8 apart. Of what a product leaves
// in its registers (hip/wgmma.h) numbers 4j and 4j + 1 are of its first row, 4j + 2 and 4j + 3 of
// its second.
#pragma once

#include "hip/softmax.h"

namespace broadhead::gpu::hopper {

struct RowStates {
  float maximum[2] = {-infinity(), -infinity()};  ///< what weights are relative to, base 2
  float denominator[2] = {0, 0};                  ///< of the keys that this thread holds

  /// Sums the denominators of the four threads that share rows.
  BH_INLINE void end() {
#pragma unroll
    for (float& part : denominator) {
      part += shuffle_xor(part, 1);
      part += shuffle_xor(part, 2);
    }
  }
};

/// Turns the scores of kKeys keys from `tile_key` on into weights. `rows` describes the thread's
/// first row and those after it; `range`: what both see.
template <int kKeys>
BH_INLINE void weigh(const LayerArgs& layer, const RowMask* rows, const KeyRange& range,
                     int tile_key, float (&scores)[kKeys / 2], RowStates& state) {
  const bool whole = tile_key >= range.first_whole && tile_key + kKeys <= range.end_whole;
  const float factor = exponent_factor(layer);
  const int key = tile_key + lane_index() % 4 * 2;  // the thread's first one
  auto for_each_score = [&](int r, auto&& body) {
#pragma unroll
    for (int i = 0; i < kKeys / 4; ++i) {
      body(i / 2 * 8 + i % 2, scores[i / 2 * 4 + 2 * r + i % 2]);
    }
  };
  if (!is_plain(layer)) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const RowMask row = rows[8 * r];
      const auto distance = static_cast<float>(key - row.position);
      for_each_score(r, [&](int at, float& score) {
        score = transform_score(layer, row.slope, score, distance + static_cast<float>(at));
      });
    }
  }
  if (!whole) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const RowMask row = rows[8 * r];
      const int first = row.first - key;
      const int end = row.end - key;
      for_each_score(r, [&](int at, float& score) {
        if (at < first || at >= end) score = -infinity();
      });
    }
  }
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    float highest = scores[2 * r];
    for_each_score(r, [&](int, float score) { highest = fmaxf(highest, score); });
    highest = fmaxf(highest, shuffle_xor(highest, 1));
    highest = fmaxf(highest, shuffle_xor(highest, 2)) * factor;
    if (highest > state.maximum[r] + kSlack) {
      const float raised = highest;
      state.denominator[r] *= exp2_fast(state.maximum[r] - raised);
      state.maximum[r] = raised;
    }
    const float subtract = state.maximum[r] == -infinity() ? 0.0f : state.maximum[r];
    float sum = 0;
    for_each_score(r, [&](int, float& score) {
      score = exp2_fast(fmaf(score, factor, -subtract));
      sum += score;
    });
    state.denominator[r] += sum;
  }
}

/// Multiplies sums where the maximum has risen since `before`.
template <int kCount>
BH_INLINE void rescale(const RowStates& before, const RowStates& state, float (&results)[kCount]) {
  if (!any(before.maximum[0] != state.maximum[0] || before.maximum[1] != state.maximum[1])) return;
  float factors[2];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    factors[r] = before.maximum[r] == state.maximum[r]
                     ? 1.0f
                     : exp2_fast(before.maximum[r] - state.maximum[r]);
  }
#pragma unroll
  for (int i = 0; i < kCount; ++i) results[i] *= factors[i / 2 % 2];
}

/// Weights as the next product takes them from registers.
template <class T, int kCount>
BH_INLINE void round_weights(const float (&scores)[kCount], uint32_t (&weights)[kCount / 2]) {
#pragma unroll
  for (int i = 0; i < kCount / 2; ++i) {
    weights[i] = pack<T>(scores[2 * i], scores[2 * i + 1]);
  }
}

}  // namespace broadhead::gpu::hopper
