// SPDX-License-Identifier: Apache-2.0
// The matrix products of attention on matrix registers, for many query rows: numbers as exact sums
// of bfloat16, keys and values of a span in the order that the registers want, and the product.
// Included by kernel sources only (see vec.h).
#pragma once

#include "cpu/element.h"
#include "cpu/kernels.h"
#include "cpu/matrix_registers.h"

namespace broadhead::cpu::BH_TIER {

/// Inner dimensions of one product of registers: of the head for scores, tokens for sums.
constexpr int kMatrixDepth = 2 * kMatrixRows;

/// Query rows that two registers take.
constexpr int kMatrixChunk = 2 * kMatrixRows;

/// bfloat16 numbers whose sum is any number of T: a bfloat16 has 8 bits of the 24 of a float32, of
/// the 11 of a float16, and of at most 4 of an fp8.
template <class T>
constexpr int kTerms = 1;
template <>
constexpr int kTerms<Float16> = 2;
constexpr int kWeightTerms = 3;  ///< those of a float32

constexpr int round_to_depth(int size) {
  return (size + kMatrixDepth - 1) / kMatrixDepth * kMatrixDepth;
}

/// Bytes of the right sides of two products, for which the left side is loaded once.
constexpr int kMatrixStep = 2 * kMatrixBytes;

/// Bytes of a tile of keys and values, of that many terms, in a panel.
constexpr int64_t matrix_tile_bytes(int head_size, int terms) {
  return int64_t{terms} * 2 * 2 * kTile * round_to_depth(head_size);
}

/// A run, whatever the tier's vectors.
typedef float Floats __attribute__((vector_size(kLine)));
static_assert(sizeof(Floats) == sizeof(Run));

/// The upper halves of floats, which are bfloat16.
BH_INLINE Line upper_halves(const Floats (&runs)[2]) {
  Line places;
#pragma GCC unroll 32
  for (int i = 0; i < kMatrixDepth; ++i) places[i] = static_cast<uint16_t>(2 * i + 1);
  return __builtin_shuffle((Line)runs[0], (Line)runs[1], places);
}

/// Splits floats, of which nothing is left after kCount terms.
template <int kCount>
BH_INLINE void split(Floats (&rest)[2], Line (&terms)[kCount]) {
  typedef uint32_t Bits __attribute__((vector_size(kLine)));
#pragma GCC unroll 3
  for (int term = 0; term < kCount; ++term) {
    terms[term] = upper_halves(rest);
#pragma GCC unroll 2
    for (Floats& r : rest) r -= (Floats)((Bits)r & 0xffff0000u);
  }
}

/// Two runs of a cache, in its unit, as terms.
BH_INLINE void load_terms(const BFloat16* from, Line (&terms)[1]) {
  __builtin_memcpy(terms, from, sizeof terms);
}
template <class E>
BH_INLINE void load_terms(const E* from, Line (&terms)[kTerms<E>]) {
  Run runs[2];
  read_run(from, runs[0]);
  read_run(from + kTile, runs[1]);
  Floats floats[2];
  __builtin_memcpy(floats, runs, sizeof floats);
  split(floats, terms);
}

/// The largest magnitudes of the bfloat16 numbers that it was given.
class Magnitudes {
 public:
  [[gnu::always_inline]] void add(Line numbers) {
    const Line magnitude = numbers & uint16_t{0x7fff};
    largest_ = magnitude > largest_ ? magnitude : largest_;
  }

  [[gnu::always_inline]] bool are_finite() const {
    bool finite = true;
    for (int i = 0; i < 2 * kTile; ++i) finite &= largest_[i] < 0x7f80;
    return finite;
  }

 private:
  Line largest_ = {};
};

/// Keys and values of a span as the right sides of products: registers [depth][terms][2 of
/// columns]. Of keys, for each two tiles of the cache, pairs of dimensions by tokens; dimensions
/// that a head lacks are zero. Of values, for each 32 columns, pairs of tokens by columns.
template <int kCount>
struct MatrixPanel {
  /// Bytes from a depth to the next.
  static constexpr int kStep = kCount * kMatrixStep;

  char* memory;
  int head_size;
  int span_tiles;

  [[gnu::always_inline]] char* keys(int tile) const {
    return memory + tile / 2 * (round_to_depth(head_size) / kMatrixDepth * kStep) +
           tile % 2 * kMatrixBytes;
  }
  [[gnu::always_inline]] char* values(int tile, int column) const {
    return memory + span_tiles * (matrix_tile_bytes(head_size, kCount) / 2) +
           (column / kMatrixDepth * (span_tiles / 2) + tile / 2) * kStep +
           column % kMatrixDepth / kTile * kMatrixBytes + tile % 2 * (kMatrixBytes / 2);
  }
};

/// Fills in a tile, of which tokens first .. end - 1 are seen, and returns whether products
/// will be right: an infinity is not to be split, and a weight of 0 does not keep it out. The
/// values of others become zero.
template <class E>
BH_KERNEL bool fill_tile(const MatrixPanel<kTerms<E>>& panel, int tile, const E* from, int first,
                         int end) {
  constexpr int kCount = kTerms<E>;
  auto put = [](char* to, const Line(&terms)[kCount]) {
#pragma GCC unroll 2
    for (int term = 0; term < kCount; ++term) {
      const Line pairs = pair_runs(terms[term]);
      __builtin_memcpy(to + term * kMatrixStep, &pairs, sizeof pairs);
    }
  };
  typedef int16_t Places __attribute__((vector_size(kLine)));
  Places place;
#pragma GCC unroll 32
  for (int i = 0; i < 2 * kTile; ++i) place[i] = static_cast<int16_t>(i);
  // Of two runs, what is seen: each place's token counts from the tile's begin.
  auto seen = [&](Places token) {
    const Places before = Places{} + static_cast<int16_t>(max_int(first, 0));
    const Places beyond = Places{} + static_cast<int16_t>(min_int(end, kTile));
    return (Line)(token >= before) & (Line)(token < beyond);
  };
  Magnitudes magnitudes;
  const int size = panel.head_size;
  const int padded_size = round_to_depth(size);
  const Line seen_keys = seen(place % int16_t{kTile});
  char* keys = panel.keys(tile);
  for (int depth = 0; depth < padded_size; depth += kMatrixDepth, keys += panel.kStep) {
    for (int d = 0; d < kMatrixDepth; d += 2) {
      Line terms[kCount] = {};
      if (depth + d < size) load_terms(from + (depth + d) * kTile, terms);
      if constexpr (kCount > 1) magnitudes.add(terms[0] & seen_keys);
      put(keys + d / 2 * kLine, terms);
    }
  }

  from += kTile * size;
  const bool all_seen = first <= 0 && end >= kTile;
  for (int column = 0; column < size; column += kTile) {
    char* values = panel.values(tile, column);
    for (int t = 0; t < kTile; t += 2, values += kLine, from += 2 * kTile) {
      Line terms[kCount];
      load_terms(from, terms);
      if (!all_seen) {
        const Line kept = seen(place / int16_t{kTile} + static_cast<int16_t>(t));
        for (Line& term : terms) term &= kept;
      }
      magnitudes.add(terms[0]);
      put(values, terms);
    }
  }
  return magnitudes.are_finite();
}

/// Makes a tile one that has no tokens.
template <int kCount>
BH_INLINE void clear_tile(const MatrixPanel<kCount>& panel, int tile) {
  for (int term = 0; term < kCount; ++term) {
    const int at = term * kMatrixStep;
    for (int d = 0; d < panel.head_size; d += kMatrixDepth) {
      __builtin_memset(panel.keys(tile) + d / kMatrixDepth * panel.kStep + at, 0, kMatrixBytes);
    }
    for (int column = 0; column < panel.head_size; column += kTile) {
      __builtin_memset(panel.values(tile, column) + at, 0, kMatrixBytes / 2);
    }
  }
}

/// kMatrixDepth weights as left sides of products, exactly. Terms are `term_stride` elements apart.
BH_INLINE void split_weights(const Vec (&weights)[kMatrixDepth / kWidth], uint16_t* to,
                             int64_t term_stride) {
  Floats rest[2];
  static_assert(sizeof rest == sizeof weights);
  __builtin_memcpy(rest, weights, sizeof rest);
  Line terms[kWeightTerms];
  split(rest, terms);
#pragma GCC unroll 3
  for (int term = 0; term < kWeightTerms; ++term) {
    __builtin_memcpy(to + term * term_stride, &terms[term], sizeof terms[term]);
  }
}

/// Left sides of products, terms after one another: registers' rows of kMatrixDepth elements.
struct MatrixRows {
  const char* at;
  int64_t stride;       ///< bytes from a row to the next
  int64_t term_stride;  ///< bytes
};

/// Floats, kRows by kColumns registers of them.
struct MatrixSums {
  float* at;
  int64_t stride;  ///< floats from a row to the next
};

/// sums = left * right, or sums += left * right if kAdds: kRows by kColumns registers, `depth` of
/// them deep, of all terms of both sides; the right side as in a panel. Registers 0 to 3 have the
/// sums, row by row, 4 and 5 the left side, 6 and 7 the right side.
template <int kRows, int kColumns, int kLeftTerms, int kRightTerms, bool kAdds>
BH_KERNEL void multiply(MatrixRows left, const char* right, int depth, MatrixSums sums) {
  float* lower = sums.at + kMatrixRows * sums.stride;
  const int64_t sum_stride = sums.stride * static_cast<int64_t>(sizeof(float));
  if constexpr (kAdds) {
    load_matrix<0>(sums.at, sum_stride);
    if constexpr (kColumns > 1) load_matrix<1>(sums.at + kMatrixRows, sum_stride);
    if constexpr (kRows > 1) load_matrix<2>(lower, sum_stride);
    if constexpr (kRows > 1 && kColumns > 1) load_matrix<3>(lower + kMatrixRows, sum_stride);
  } else {
    clear_matrix<0>();
    clear_matrix<1>();
    clear_matrix<2>();
    clear_matrix<3>();
  }
  for (int d = 0; d < depth; ++d) {
#pragma GCC unroll 2
    for (int right_term = 0; right_term < kRightTerms; ++right_term, right += kMatrixStep) {
      load_matrix<6>(right, kMatrixRowBytes);
      if constexpr (kColumns > 1) load_matrix<7>(right + kMatrixBytes, kMatrixRowBytes);
#pragma GCC unroll 3
      for (int term = 0; term < kLeftTerms; ++term) {
        const char* row = left.at + term * left.term_stride;
        load_matrix<4>(row, left.stride);
        multiply_matrices<0, 4, 6>();
        if constexpr (kColumns > 1) multiply_matrices<1, 4, 7>();
        if constexpr (kRows > 1) {
          load_matrix<5>(row + kMatrixRows * left.stride, left.stride);
          multiply_matrices<2, 5, 6>();
          if constexpr (kColumns > 1) multiply_matrices<3, 5, 7>();
        }
      }
    }
    left.at += kMatrixRowBytes;
  }
  store_matrix<0>(sums.at, sum_stride);
  if constexpr (kColumns > 1) store_matrix<1>(sums.at + kMatrixRows, sum_stride);
  if constexpr (kRows > 1) store_matrix<2>(lower, sum_stride);
  if constexpr (kRows > 1 && kColumns > 1) store_matrix<3>(lower + kMatrixRows, sum_stride);
}

}  // namespace broadhead::cpu::BH_TIER
