// SPDX-License-Identifier: Apache-2.0
// Running softmax over a wave's columns: what decode and prefill do between the two products.
#pragma once

#include "hip/attend.h"

namespace broadhead::gpu {

/// What a query row of an item, that is a token's head, sees. In shared memory.
struct alignas(16) RowMask {
  int32_t position;
  int32_t first;  ///< keys of the item that it sees: first .. end - 1
  int32_t end;
  float slope;
};

/// A row whose query is loaded later.
struct alignas(16) QueryRow : RowMask {
  const char* query;  ///< NULL past the item's last row
  float unit;         ///< what products of the query with keys are multiples of; see to_float16
};

/// Row r of an item.
BH_INLINE QueryRow describe_row(const LayerArgs& layer, const StepArgs& step,
                                const AttendItem& item, int group, int r) {
  QueryRow row = {};
  if (r >= item.num_tokens * layer.group_size) return row;
  const Token token = token_of(step, item, r / layer.group_size);
  const int head = group * layer.group_size + r % layer.group_size;
  row.position = token.position;
  row.first = token.first > item.first_seen ? token.first : item.first_seen;
  row.end = token.end < item.end_key ? token.end : item.end_key;
  row.slope = layer.alibi_slopes ? layer.alibi_slopes[head] : 0;
  row.query = token.query + int64_t{head} * layer.head_size * tensor_bytes(layer);
  row.unit = 1;
  return row;
}

/// Describes the item's query rows. Every thread of the block calls this.
BH_INLINE void describe_rows(const LayerArgs& layer, const StepArgs& step, const AttendItem& item,
                             int group, int count, QueryRow* rows) {
  for (int r = static_cast<int>(threadIdx.x); r < count; r += static_cast<int>(blockDim.x)) {
    rows[r] = describe_row(layer, step, item, group, r);
  }
}

/// A weight of zero does not undo an infinite value or a NaN. Where not all rows of an item see a
/// key kernels make such values zero, and call this once the results are written: it puts what the
/// rows that see them get in their place. The cache is of E; row_of(r) tells what row r sees.
template <class T, class E, class RowOf, class Team = WholeBlock>
BH_INLINE void write_unbounded(const LayerArgs& layer, const StepArgs& step, const AttendItem& item,
                               int group, RowOf&& row_of, const Team& team = {}) {
  const CacheView& cache = step.cache;
  const int32_t* blocks = step.blocks + item.blocks;
  team.synchronize();
  for (int i = team.index(); i < item.num_tokens * layer.group_size * layer.head_size;
       i += team.size()) {
    const int dimension = i % layer.head_size;
    const int r = i / layer.head_size;
    float sum = 0;
    const RowMask row = row_of(r);
    for (int key = row.first; key < row.end; ++key) {
      const char* values =
          keys_of(cache, blocks[key / cache.block_size], group / layer.groups_per_kv_head) +
          cache.half_bytes;
      const float value = widen(
          *reinterpret_cast<const E*>(values + half_offset(cache.row_bytes, key % cache.block_size,
                                                           dimension * int{sizeof(E)})));
      if (!(fabsf(value) < infinity())) sum += value;
    }
    if (sum == 0) continue;
    const Token token = token_of(step, item, r / layer.group_size);
    const int head = group * layer.group_size + r % layer.group_size;
    if (token.num_partials == 1) {
      // Where weights are NaN, of a key that is, what they multiply does not matter.
      const int64_t index = int64_t{head} * layer.head_size + dimension;
      if (is_nan_in_output<T>(layer, token.output, index)) continue;
      store_output<T, 1>(layer, token.output, head, dimension, 1, &sum);
    } else {
      const int64_t partial = int64_t{token.first_partial + item.piece} * layer.num_heads + head;
      step.partial_sums[partial * layer.head_size + dimension] = sum;
    }
  }
}

/// Keys that some of a wave's columns see, and keys that all of them see. Columns past an item's
/// last row do not count: what they compute is never used.
struct KeyRange {
  int32_t begin = INT32_MAX;
  int32_t end = 0;
  int32_t first_whole = 0;
  int32_t end_whole = INT32_MAX;

  BH_INLINE void add(const RowMask& row) {
    if (row.first < row.end) {
      begin = row.first < begin ? row.first : begin;
      end = row.end > end ? row.end : end;
    }
    first_whole = row.first > first_whole ? row.first : first_whole;
    end_whole = row.end < end_whole ? row.end : end_whole;
  }
  /// Makes it the range of all lanes.
  BH_INLINE void share() {
#pragma unroll
    for (int mask = 1; mask < kWave; mask *= 2) {
      const int32_t first = shuffle_xor(first_whole, mask);
      const int32_t last = shuffle_xor(end_whole, mask);
      first_whole = first > first_whole ? first : first_whole;
      end_whole = last < end_whole ? last : end_whole;
    }
  }
  BH_INLINE bool touches(int tile) const { return tile < end && tile + kTile > begin; }
  BH_INLINE bool contains(int tile) const {
    return tile >= first_whole && tile + kTile <= end_whole;
  }
};

/// The columns of one tile of a wave.
struct ColumnState {
  float maximum[kLaneColumns];      ///< what weights are relative to, base 2
  float denominator[kLaneColumns];  ///< of the keys that this lane holds

  BH_INLINE void begin() {
#pragma unroll
    for (int c = 0; c < kLaneColumns; ++c) {
      maximum[c] = -infinity();
      denominator[c] = 0;
    }
  }

  /// Turns products of 16 keys from `first_key` on into weights. `rows` describes column 0 and
  /// those after it; `whole`: they all see every key. Multiplies `results` where the maximum rises.
  template <int kTiles>
  BH_INLINE void weigh(const LayerArgs& layer, const QueryRow* rows, int first_key, bool whole,
                       Sums& scores, Sums* results) {
    const bool plain = is_plain(layer);
    const float factor = exponent_factor(layer);
    if (!plain || !whole) {
#pragma unroll
      for (int c = 0; c < kLaneColumns; ++c) {
        const QueryRow row = rows[sum_column(c)];
#pragma unroll
        for (int i = c; i < kSumWords; i += kLaneColumns) {
          const int key = first_key + sum_row(i);
          float& score = scores.values[i];
          if (!plain) {
            score =
                transform_score(layer, row.slope, score, static_cast<float>(key - row.position));
          }
          if (key < row.first || key >= row.end) score = -infinity();
        }
      }
    }
    float highest[kLaneColumns];
#pragma unroll
    for (int c = 0; c < kLaneColumns; ++c) {
      highest[c] = scores.values[c];
#pragma unroll
      for (int i = c + kLaneColumns; i < kSumWords; i += kLaneColumns) {
        highest[c] = fmaxf(highest[c], scores.values[i]);
      }
      highest[c] *= factor;
    }
    bool rises = false;
#pragma unroll
    for (int c = 0; c < kLaneColumns; ++c) rises |= highest[c] > maximum[c] + kSlack;
    if (any(rises)) raise<kTiles>(highest, results);
#pragma unroll
    for (int c = 0; c < kLaneColumns; ++c) {
      const float subtract = maximum[c] == -infinity() ? 0.0f : maximum[c];
#pragma unroll
      for (int i = c; i < kSumWords; i += kLaneColumns) {
        scores.values[i] = exp2_fast(fmaf(scores.values[i], factor, -subtract));
        denominator[c] += scores.values[i];
      }
    }
  }

  /// Sums the denominators of all lanes; every lane of a column then has the same.
  BH_INLINE void end() {
#pragma unroll
    for (int c = 0; c < kLaneColumns; ++c) denominator[c] = sum_over_rows(denominator[c]);
  }

 private:
  template <int kTiles>
  BH_INLINE void raise(const float* highest, Sums* results) {
    float factors[kLaneColumns];
#pragma unroll
    for (int c = 0; c < kLaneColumns; ++c) {
      const float raised = fmaxf(maximum[c], max_over_rows(highest[c]));
      factors[c] = raised == maximum[c] ? 1.0f : exp2_fast(maximum[c] - raised);
      maximum[c] = raised;
      denominator[c] *= factors[c];
    }
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
#pragma unroll
      for (int i = 0; i < kSumWords; ++i) results[t].values[i] *= factors[lane_column(i)];
    }
  }
};

}  // namespace broadhead::gpu
