// SPDX-License-Identifier: Apache-2.0
// The matrix products of attention on matrix registers, for many query rows of bfloat16: keys and
// values of a span in the order that the registers want, weights as exact sums of bfloat16, and the
// product. Included by kernel sources only (see vec.h).
#pragma once

#include "cpu/element.h"
#include "cpu/kernels.h"
#include "cpu/matrix_registers.h"

namespace broadhead::cpu::BH_TIER {

/// Inner dimensions of one product of registers: of the head for scores, tokens for sums.
constexpr int kMatrixDepth = 2 * kMatrixRows;

/// Query rows that two registers take.
constexpr int kMatrixChunk = 2 * kMatrixRows;

/// The terms of a float32 weight, which has three times the bits of a bfloat16.
constexpr int kTerms = 3;

constexpr int round_to_depth(int size) {
  return (size + kMatrixDepth - 1) / kMatrixDepth * kMatrixDepth;
}

typedef uint16_t Words __attribute__((vector_size(kLine)));

/// Two runs as pairs of an element of each.
BH_INLINE Words pair_runs(Words runs) {
  Words places;
#pragma GCC unroll 32
  for (int i = 0; i < 2 * kTile; ++i) places[i] = static_cast<uint16_t>(i / 2 + i % 2 * kTile);
  return __builtin_shuffle(runs, places);
}

BH_INLINE Words load_words(const BFloat16* from) {
  Words words;
  __builtin_memcpy(&words, from, sizeof words);
  return words;
}

/// Keys and values of a span as the right sides of products. Keys: for each tile of the cache and
/// kMatrixDepth dimensions a register, pairs of dimensions by tokens; dimensions that a head lacks
/// are zero. Values: for each two tiles and 16 columns a register, pairs of tokens by columns.
struct MatrixPanel {
  char* memory;
  int head_size;
  int span_tiles;

  /// Bytes from a tile's keys to the next one's.
  [[gnu::always_inline]] int64_t key_stride() const {
    return int64_t{round_to_depth(head_size)} * 2 * kTile;
  }
  /// Bytes from the values of two tiles to those of the next two.
  [[gnu::always_inline]] int64_t value_stride() const {
    return int64_t{head_size} / kTile * kMatrixBytes;
  }
  [[gnu::always_inline]] char* keys(int tile) const { return memory + tile * key_stride(); }
  [[gnu::always_inline]] char* values(int tile) const {
    return memory + span_tiles * key_stride() + tile / 2 * value_stride() +
           tile % 2 * (kMatrixBytes / 2);
  }
};

/// Bytes of a tile in a panel.
constexpr int64_t matrix_tile_bytes(int head_size) {
  return int64_t{2} * kTile * (round_to_depth(head_size) + head_size);
}

/// Fills in a tile, of which tokens first .. end - 1 are seen, and returns whether their values are
/// finite. The values of others become zero.
BH_KERNEL bool fill_tile(const MatrixPanel& panel, int tile, const BFloat16* from, int first,
                         int end) {
  auto put = [](char* to, Words runs) {
    const Words pairs = pair_runs(runs);
    __builtin_memcpy(to, &pairs, sizeof pairs);
  };
  const int size = panel.head_size;
  char* keys = panel.keys(tile);
  for (int d = 0; d < size; d += 2) put(keys + d / 2 * kLine, load_words(from + d * kTile));
  for (int d = size; d < round_to_depth(size); d += 2) put(keys + d / 2 * kLine, Words{});

  const BFloat16* value = from + kTile * size;
  char* values = panel.values(tile);
  Words largest = {};
  for (int t = 0; t < kTile; t += 2, values += kLine) {
    Words seen;
#pragma GCC unroll 32
    for (int i = 0; i < 2 * kTile; ++i) {
      const int token = t + i / kTile;
      seen[i] = first <= token && token < end ? 0xffff : 0;
    }
    for (int column = 0; column < size; column += kTile) {
      const Words runs = load_words(value + (column + t) * kTile) & seen;
      const Words magnitude = runs & uint16_t{0x7fff};
      largest = magnitude > largest ? magnitude : largest;
      put(values + column / kTile * kMatrixBytes, runs);
    }
  }
  bool is_finite = true;
  for (int i = 0; i < 2 * kTile; ++i) is_finite &= largest[i] < 0x7f80;
  return is_finite;
}

/// Makes a tile one that has no tokens.
BH_INLINE void clear_tile(const MatrixPanel& panel, int tile) {
  __builtin_memset(panel.keys(tile), 0, static_cast<size_t>(panel.key_stride()));
  for (int64_t at = 0; at < panel.value_stride(); at += kMatrixBytes) {
    __builtin_memset(panel.values(tile) + at, 0, kMatrixBytes / 2);
  }
}

/// Weights as the left sides of products: terms[term][t], whose sum is weights[t] to the last bit,
/// for the upper half of a float is a bfloat16. `count` is a multiple of kMatrixDepth.
BH_INLINE void split_weights(const float* weights, int count, uint16_t* terms,
                             int64_t term_stride) {
  constexpr int kHalf = kMatrixDepth / 2;
  typedef float Floats __attribute__((vector_size(kLine)));
  typedef uint32_t Bits __attribute__((vector_size(kLine)));
  Words upper;
#pragma GCC unroll 32
  for (int i = 0; i < kMatrixDepth; ++i) upper[i] = static_cast<uint16_t>(2 * i + 1);
  for (int t = 0; t < count; t += kMatrixDepth) {
    Floats rest[2];
    __builtin_memcpy(rest, weights + t, sizeof rest);
    static_assert(sizeof rest == 2 * kHalf * sizeof(float));
#pragma GCC unroll 3
    for (int term = 0; term < kTerms; ++term) {
      const Words both = __builtin_shuffle((Words)rest[0], (Words)rest[1], upper);
      __builtin_memcpy(terms + term * term_stride + t, &both, sizeof both);
#pragma GCC unroll 2
      for (Floats& r : rest) r -= (Floats)((Bits)r & 0xffff0000u);
    }
  }
}

/// Left sides of products, terms after one another: registers' rows of kMatrixDepth elements.
struct MatrixRows {
  const char* at;
  int64_t stride;       ///< bytes from a row to the next
  int64_t term_stride;  ///< bytes
};

/// Right sides: registers, one after another in depth.
struct MatrixColumns {
  const char* at;
  int64_t stride;         ///< bytes from a register to the next in depth
  int64_t column_stride;  ///< bytes to the registers of the next 16 columns
};

/// Floats, kRows by kColumns registers of them.
struct MatrixSums {
  float* at;
  int64_t stride;  ///< floats from a row to the next
};

/// sums = left * right, or sums += left * right if kAdds: kRows by kColumns registers, `depth` of
/// them deep, of all terms of the left side. Registers 0 to 3 have the sums, row by row, 4 and 5
/// the left side, 6 and 7 the right side.
template <int kRows, int kColumns, int kLeftTerms, bool kAdds>
BH_KERNEL void multiply(const MatrixRows& left, const MatrixColumns& right, int depth,
                        const MatrixSums& sums) {
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
    const char* column = right.at + d * right.stride;
    load_matrix<6>(column, kMatrixRowBytes);
    if constexpr (kColumns > 1) load_matrix<7>(column + right.column_stride, kMatrixRowBytes);
#pragma GCC unroll 3
    for (int term = 0; term < kLeftTerms; ++term) {
      const char* row = left.at + term * left.term_stride + d * kMatrixRowBytes;
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
  store_matrix<0>(sums.at, sum_stride);
  if constexpr (kColumns > 1) store_matrix<1>(sums.at + kMatrixRows, sum_stride);
  if constexpr (kRows > 1) store_matrix<2>(lower, sum_stride);
  if constexpr (kRows > 1 && kColumns > 1) store_matrix<3>(lower + kMatrixRows, sum_stride);
}

}  // namespace broadhead::cpu::BH_TIER
