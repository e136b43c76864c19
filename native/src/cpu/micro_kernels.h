// SPDX-License-Identifier: Apache-2.0
// The two matrix products of attention on tiles. Decode and prefill differ only in how many query
// rows there are and in whether a tile is read where the cache has it or was widened to float
// beforehand. Included by kernel sources only (see vec.h).
#pragma once

#include "cpu/element.h"
#include "cpu/kernels.h"

namespace broadhead::cpu::BH_TIER {

constexpr int kVecsPerTile = kTile / kWidth;

/// The largest power of two up to `limit` for which kRows * n * vectors registers suffice.
constexpr int widest(int rows, int vectors, int limit) {
  int n = limit;
  while (n > 1 && rows * n * vectors > kAccumulators) n /= 2;
  return n;
}

/// Bytes that a prefetch brings.
constexpr int kLine = 64;

template <int kBytes>
BH_INLINE void prefetch_run(const void* from) {
#pragma GCC unroll 16
  for (int b = 0; b < kBytes; b += kLine) {
    __builtin_prefetch(static_cast<const char*>(from) + b, 0, 3);
  }
}

/// scores[r][t] = query[r] . key[t] for the tokens of kTiles tiles. With kAhead the values of the
/// same tiles, which follow their keys in memory, are fetched meanwhile.
template <class E, int kRows, int kTiles, bool kAhead>
BH_INLINE void score_tiles(const float* query, int head_size, const E* const* tiles, float* scores,
                           int score_stride) {
  constexpr int kVecs = kTiles * kVecsPerTile;
  constexpr int kStep = kLine / static_cast<int>(kTile * sizeof(E));  // dimensions in a line
  Vec sums[kRows][kVecs];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 16
    for (int v = 0; v < kVecs; ++v) sums[r][v] = Vec{};
  }
  for (int line = 0; line < head_size; line += kStep) {
    if constexpr (kAhead) {
#pragma GCC unroll 16
      for (int t = 0; t < kTiles; ++t) {
        prefetch_run<kLine>(tiles[t] + (head_size + line) * kTile);
      }
    }
#pragma GCC unroll 16
    for (int d = line; d < line + kStep; ++d) {
      Vec keys[kVecs];
#pragma GCC unroll 16
      for (int v = 0; v < kVecs; ++v) {
        keys[v] = load(tiles[v / kVecsPerTile] + d * kTile + v % kVecsPerTile * kWidth);
      }
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r) {
        const Vec q = broadcast(query[r * head_size + d]);
#pragma GCC unroll 16
        for (int v = 0; v < kVecs; ++v) sums[r][v] += q * keys[v];
      }
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 16
    for (int v = 0; v < kVecs; ++v) store(scores + r * score_stride + v * kWidth, sums[r][v]);
  }
}

/// scores[r][t] for `num_tiles` tiles.
template <class E, int kRows, bool kAhead>
BH_INLINE void score_rows(const float* query, int head_size, const E* const* tiles, int num_tiles,
                          float* scores, int score_stride) {
  constexpr int kWide = widest(kRows, kVecsPerTile, 4);
  int t = 0;
  for (; t + kWide <= num_tiles; t += kWide) {
    score_tiles<E, kRows, kWide, kAhead>(query, head_size, tiles + t, scores + t * kTile,
                                         score_stride);
  }
  if constexpr (kWide > 1) {
    for (; t < num_tiles; ++t) {
      score_tiles<E, kRows, 1, kAhead>(query, head_size, tiles + t, scores + t * kTile,
                                       score_stride);
    }
  }
}

/// Columns of a panel's slice: those of the micro-kernel for the most rows.
constexpr int kSlice = widest(kMaxRows, 1, 8) * kWidth;

/// Values of some tiles. In the cache's tiles a value row is contiguous; in a panel the kSlice
/// columns of a slice are, for all tokens, so that a slice fits the first-level cache.
template <class E>
struct Values {
  const E* const* tiles;
  int token_step;  ///< elements from a token to the next
  int slice_step;  ///< elements from a slice to the next

  [[gnu::always_inline]] int offset(int token, int column) const {
    return token * token_step + column / kSlice * slice_step + column % kSlice;
  }
};

/// sums[r] = sums[r] * factors[r] + weights[r][t] * value[t] over tokens first .. end - 1 of the
/// tiles, for kVecs vectors of the head. With kAhead the keys of `next` tiles are fetched
/// meanwhile.
template <class E, int kRows, int kVecs, bool kAhead>
BH_INLINE void accumulate_slice(const float* weights, int weight_stride, const Values<E>& values,
                                const E* const* next, int first, int end, int head_size, int column,
                                const float* factors, float* sums) {
  Vec acc[kRows][kVecs];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
    const Vec factor = broadcast(factors[r]);
#pragma GCC unroll 16
    for (int v = 0; v < kVecs; ++v) {
      acc[r][v] = load(sums + r * head_size + column + v * kWidth) * factor;
    }
  }
  for (int t = first; t < end;) {
    const int tile = t / kTile;
    const int tile_end = (tile + 1) * kTile < end ? (tile + 1) * kTile : end;
    const E* value = values.tiles[tile] + values.offset(t % kTile, column);
    for (; t < tile_end; ++t, value += values.token_step) {
      if constexpr (kAhead) {
        prefetch_run<kVecs * kWidth* static_cast<int>(sizeof(E))>(next[tile] + column * kTile +
                                                                  t % kTile * kVecs * kWidth);
      }
      Vec v_row[kVecs];
#pragma GCC unroll 16
      for (int v = 0; v < kVecs; ++v) v_row[v] = load(value + v * kWidth);
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r) {
        const Vec weight = broadcast(weights[r * weight_stride + t]);
#pragma GCC unroll 16
        for (int v = 0; v < kVecs; ++v) acc[r][v] += weight * v_row[v];
      }
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 16
    for (int v = 0; v < kVecs; ++v) store(sums + r * head_size + column + v * kWidth, acc[r][v]);
  }
}

/// accumulate_slice over columns column .. end_column - 1.
template <class E, int kRows, bool kAhead>
BH_INLINE void accumulate_rows(const float* weights, int weight_stride, const Values<E>& values,
                               const E* const* next, int first, int end, int head_size, int column,
                               int end_column, const float* factors, float* sums) {
  constexpr int kWide = widest(kRows, 1, 8);
  constexpr int kHalf = kWide > 1 ? kWide / 2 : 1;
  for (; column + kWide * kWidth <= end_column; column += kWide * kWidth) {
    accumulate_slice<E, kRows, kWide, kAhead>(weights, weight_stride, values, next, first, end,
                                              head_size, column, factors, sums);
  }
  for (; kHalf < kWide && column + kHalf * kWidth <= end_column; column += kHalf * kWidth) {
    accumulate_slice<E, kRows, kHalf, kAhead>(weights, weight_stride, values, next, first, end,
                                              head_size, column, factors, sums);
  }
  for (; kHalf > 1 && column < end_column; column += kWidth) {
    accumulate_slice<E, kRows, 1, kAhead>(weights, weight_stride, values, next, first, end,
                                          head_size, column, factors, sums);
  }
}

}  // namespace broadhead::cpu::BH_TIER
