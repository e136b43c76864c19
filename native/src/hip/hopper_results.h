// SPDX-License-Identifier: Apache-2.0
// The way out of prefill on Hopper: from a warpgroup's registers (hip/wgmma.h) to outputs or
// partial results.
#pragma once

#include <type_traits>

#include "hip/hopper_softmax.h"

namespace broadhead::gpu::hopper {

/// Two numbers as O, side by side.
template <class O>
BH_INLINE uint32_t pack_pair(float first, float second) {
  if constexpr (sizeof(O) == 2) return pack<O>(first, second);
  O a, b;
  narrow(first, a);
  narrow(second, b);
  return uint32_t{a.bits} | uint32_t{b.bits} << 8;
}
template <class O>
BH_INLINE void store_pairs(char* to, const uint32_t (&pairs)[4]) {
  if constexpr (sizeof(O) == 2) {
    *reinterpret_cast<Chunk*>(to) = {{pairs[0], pairs[1], pairs[2], pairs[3]}};
  } else {
    *reinterpret_cast<Words2*>(to) = {{pairs[0] | pairs[1] << 16, pairs[2] | pairs[3] << 16}};
  }
}
template <class O>
BH_INLINE void store_pairs(char* to, const uint32_t (&pair)[1]) {
  using Pair = std::conditional_t<sizeof(O) == 2, uint32_t, uint16_t>;
  *reinterpret_cast<Pair*>(to) = static_cast<Pair>(pair[0]);
}

/// Heads of an item's tokens before the head of a row, if the item's group is the first one.
BH_INLINE int32_t heads_before(const LayerArgs& layer, int row) {
  return row / layer.group_size * layer.num_heads + row % layer.group_size;
}

/// Writes outputs, as numbers of O, of a thread's two rows. The item's tokens are of one row of the
/// batch, so that their outputs follow one another. `heads`: heads_before of the rows.
template <class O, int kHead>
BH_INLINE void write_outputs(const LayerArgs& layer, const AttendItem& item, int group,
                             int first_row, const int32_t (&heads)[2], const RowStates& state,
                             const float (&results)[kHead / 2]) {
  Finish last[2];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int head =
        layer.sinks ? group * layer.group_size + (first_row + 8 * r) % layer.group_size : 0;
    last[r] = finish(layer, head, state.maximum[r], state.denominator[r]);
  }
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const bool is_used = first_row + 8 * r < item.num_tokens * layer.group_size;
    const int64_t head = heads[r] + group * layer.group_size;
    if (is_used && item.token.lse && lane_index() % 4 == 0) item.token.lse[head] = last[r].lse;
    char* output = item.token.output + head * kHead * int{sizeof(O)};
    auto pair_of = [&](int j) {
      const float* pair = results + 4 * j + 2 * r;
      return pack_pair<O>(pair[0] * last[r].factor, pair[1] * last[r].factor);
    };
    // Four threads have pairs of a row: of four times four pairs each gets four.
    constexpr int kPairBytes = 2 * sizeof(O);
    constexpr int kQuads = kHead / 32;
#pragma unroll
    for (int i = 0; i < kQuads; ++i) {
      uint32_t pairs[4];
#pragma unroll
      for (int k = 0; k < 4; ++k) pairs[k] = pair_of(4 * i + k);
      transpose_quad(pairs);
      const int first = 16 * i + lane_index() % 4 * 4;
      if (is_used) store_pairs<O>(output + first * kPairBytes, pairs);
    }
#pragma unroll
    for (int j = kQuads * 4; j < kHead / 8; ++j) {
      const uint32_t pair[1] = {pair_of(j)};
      if (is_used) store_pairs<O>(output + (4 * j + lane_index() % 4) * kPairBytes, pair);
    }
  }
}

/// Writes partial results of a thread's two rows, for whoever joins them. If one of an item's
/// tokens has partial results, all have.
template <int kHead>
BH_INLINE void write_parts(const LayerArgs& layer, const StepArgs& step, const AttendItem& item,
                           int group, int first_row, const RowStates& state,
                           const float (&results)[kHead / 2]) {
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int row = first_row + 8 * r;
    if (row >= item.num_tokens * layer.group_size) continue;
    const Token token = token_of(step, item, row / layer.group_size);
    const int head = group * layer.group_size + row % layer.group_size;
    const int64_t partial = int64_t{token.first_partial + item.piece} * layer.num_heads + head;
    if (lane_index() % 4 == 0) {
      step.partial_state[partial * 2] = state.maximum[r];
      step.partial_state[partial * 2 + 1] = state.denominator[r];
    }
#pragma unroll
    for (int j = 0; j < kHead / 8; ++j) {
      const int dimension = 8 * j + lane_index() % 4 * 2;
      store_numbers<Float32, 2>(step.partial_sums, partial * kHead + dimension,
                                results + 4 * j + 2 * r);
    }
  }
}

}  // namespace broadhead::gpu::hopper
