// SPDX-License-Identifier: Apache-2.0
// The two matrix products of attention on tiles, for decode and prefill alike: they differ only in
// how many query rows there are. Included by kernel sources only (see vec.h).
#pragma once

#include "cpu/element.h"
#include "cpu/kernels.h"

namespace broadhead::cpu::BH_TIER {

/// Tiles that are read side by side: fewer streams get less of the memory.
constexpr int kStreams = 4;

/// Tiles that a micro-kernel for so many rows takes side by side, as registers allow: sums, the
/// vectors of a run or a query element of each row, one of the other, and one for the compiler.
constexpr int tiles_abreast(int rows) {
  for (int n = kStreams; n > 1; n /= 2) {
    const int vecs = n * kVecsPerRun;
    if (rows * vecs + (rows < vecs ? rows : vecs) + 2 <= kRegisters) return n;
  }
  return 1;
}

/// Fetches what is read after the tiles in hand: elements of kBytes each (0: nothing is fetched), a
/// line of each tile of a span in turns. The second-level cache is near enough, and the first one
/// has no room for it.
template <int kBytes>
class Ahead {
 public:
  /// Runs of a tile that fill a line.
  static constexpr int kRuns = kBytes == 0 ? 1 : kLine / (kTile * kBytes);

  Ahead() = default;
  /// `tiles` are a power of two; fetches from their element `offset` on.
  template <class E>
  [[gnu::always_inline]] Ahead(const E* const* tiles, int offset, int num_tiles)
      : tiles_(reinterpret_cast<const char* const*>(tiles)),
        offset_(int64_t{offset} * kBytes),
        mask_(static_cast<unsigned>(num_tiles) - 1),
        shift_(__builtin_ctz(static_cast<unsigned>(num_tiles))) {}

  /// Keeps pace with a kernel that reads run after run.
  [[gnu::always_inline]] void at_run(int run) {
    if constexpr (kBytes > 0) {
      if (run % kRuns == 0) fetch_line();
    }
  }

  /// Fetches the first lines of all tiles at once.
  [[gnu::always_inline]] void start() {
    if constexpr (kBytes > 0) {
      for (int i = 0; i < kLinesAtOnce; ++i) fetch_line();
    }
  }

 private:
  /// About as many as a core can have on their way from memory.
  static constexpr int kLinesAtOnce = 32;

  [[gnu::always_inline]] void fetch_line() {
    __builtin_prefetch(tiles_[next_ & mask_] + offset_ + (next_ >> shift_) * kLine, 0, 2);
    ++next_;
  }

  const char* const* tiles_ = nullptr;
  int64_t offset_ = 0;
  unsigned mask_ = 0;
  int shift_ = 0;
  unsigned next_ = 0;
};

/// Runs that loops over a tile take at a time: a line of it and of what is fetched, so that
/// at_run() is decided at compile time. Longer bodies would cost registers.
template <class E, int kBytes>
constexpr int kUnroll = kBytes == 1 || sizeof(E) == 1 ? 4 : 2;

/// Are lines of E widened by table for so many rows? With more of them, looking up would compete
/// with the multiply-adds, and widened lines with the sums for registers.
template <class E>
constexpr bool widens_by_table(int rows) {
  return kHasTable<E> && rows <= 2;
}

/// Some runs of each of kTiles tiles, from their element `first` on, as micro-kernels for kRows
/// rows read them.
template <class E, int kRows, int kTiles, int kRuns>
class Block {
 public:
  [[gnu::always_inline]] Block(const E* const* tiles, int64_t first) {
#pragma GCC unroll 4
    for (int t = 0; t < kTiles; ++t) from_[t] = tiles[t] + first;
  }
  [[gnu::always_inline]] void load(int tile, int run, Run& to) const {
    load_run(from_[tile] + run * kTile, to);
  }

 private:
  const E* from_[kTiles];
};

/// A line of each tile, widened by way of memory.
template <class E, int kRows, int kTiles, int kRuns>
requires(!kReadsDirectly<E> && !widens_by_table<E>(kRows)) class Block<E, kRows, kTiles, kRuns> {
 public:
  [[gnu::always_inline]] Block(const E* const* tiles, int64_t first) {
#pragma GCC unroll 4
    for (int t = 0; t < kTiles; ++t) {
#pragma GCC unroll 4
      for (int run = 0; run < kRuns; run += kRunsPerLine<E>) {
        widen_line(tiles[t] + first + run * kTile, widened_[t] + run * kTile);
      }
    }
    // Halves are widened faster from memory than from registers.
    asm volatile("" : : "r"(widened_) : "memory");
  }
  [[gnu::always_inline]] void load(int tile, int run, Run& to) const {
    load_run(widened_[tile] + run * kTile, to);
  }

 private:
  alignas(kLine) typename Widened<E>::Type widened_[kTiles][kRuns * kTile];
};

/// A line of each tile, widened in registers.
template <class E, int kRows, int kTiles, int kRuns>
requires(widens_by_table<E>(kRows)) class Block<E, kRows, kTiles, kRuns> {
 public:
  [[gnu::always_inline]] Block(const E* const* tiles, int64_t first) {
#pragma GCC unroll 4
    for (int t = 0; t < kTiles; ++t) widen_line(tiles[t] + first, widened_[t]);
  }
  [[gnu::always_inline]] void load(int tile, int run, Run& to) const {
    to[0] = widened_[tile][run];
  }

 private:
  Vec widened_[kTiles][kRuns];
};

/// sums[r] += element(r) * run for every row.
template <int kRows, class Element>
BH_INLINE void multiply_run(const Run& run, const Element& element,
                            Vec (&sums)[kRows][kVecsPerRun]) {
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
    const float& e = element(r);
#pragma GCC unroll 4
    for (int v = 0; v < kVecsPerRun; ++v) add_product(sums[r][v], e, run[v]);
  }
}

/// sums[t][r] += query[r] . key for the tokens of tile t, whose runs are a dimension of all tokens
/// each.
template <int kRows, class E, int kTiles, int kBytes>
BH_INLINE void multiply_keys(const float* query, int head_size, const E* const* tiles,
                             Ahead<kBytes>& ahead, Vec (&sums)[kTiles][kRows][kVecsPerRun]) {
  constexpr int kRuns = kUnroll<E, kBytes>;
  for (int first = 0; first < head_size; first += kRuns) {
    const Block<E, kRows, kTiles, kRuns> block(tiles, first * kTile);
#pragma GCC unroll 4
    for (int i = 0; i < kRuns; ++i) {
      const int d = first + i;
#pragma GCC unroll 4
      for (int t = 0; t < kTiles; ++t) {
        ahead.at_run(i);
        Run keys;
        block.load(t, i, keys);
        multiply_run<kRows>(
            keys, [&](int r) -> const float& { return query[r * head_size + d]; }, sums[t]);
      }
    }
  }
}

#if defined(__AVX512BF16__)
/// The same for queries that are pairs of bfloat16, two dimensions at a time.
template <int kRows, int kTiles, int kBytes>
BH_INLINE void multiply_keys(const float* query, int head_size, const BFloat16Pairs* const* tiles,
                             Ahead<kBytes>& ahead, Vec (&sums)[kTiles][kRows][1]) {
  for (int d = 0; d < head_size; d += 2) {
#pragma GCC unroll 4
    for (int t = 0; t < kTiles; ++t) {
      ahead.at_run(0);
      const UintVec keys = load_pairs(tiles[t] + d * kTile);
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r) {
        add_pair_products(sums[t][r][0], query[r * head_size + d / 2], keys);
      }
    }
  }
}
#endif

/// scores[r][t] for the tokens of kTiles tiles; see score_rows.
template <class E, int kRows, int kTiles, int kBytes>
BH_INLINE void score_tiles(const float* query, int head_size, const E* const* tiles, float scale,
                           float* scores, int score_stride, Ahead<kBytes>& ahead) {
  Vec sums[kTiles][kRows][kVecsPerRun] = {};
  multiply_keys<kRows>(query, head_size, tiles, ahead, sums);
#pragma GCC unroll 4
  for (int t = 0; t < kTiles; ++t) {
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      if constexpr (kMultipliesPairs<E>) {
        for (Vec& sum : sums[t][r]) sum *= broadcast(scale);
      }
      store_run(sums[t][r], scores + r * score_stride + t * kTile);
    }
  }
}

/// scores[r][t] = query[r] . key[t] for the tokens of `num_tiles` tiles. `scale` is applied to the
/// sums where queries are pairs; elsewhere it was applied to the query.
template <class E, int kRows, int kBytes>
BH_KERNEL void score_rows(const float* query, int head_size, const E* const* tiles, int num_tiles,
                          float scale, float* scores, int score_stride, Ahead<kBytes> ahead) {
  constexpr int kAbreast = tiles_abreast(kRows);
  int t = 0;
  for (; t + kAbreast <= num_tiles; t += kAbreast) {
    score_tiles<E, kRows, kAbreast>(query, head_size, tiles + t, scale, scores + t * kTile,
                                    score_stride, ahead);
  }
  if constexpr (kAbreast > 1) {
    for (; t < num_tiles; ++t) {
      score_tiles<E, kRows, 1>(query, head_size, tiles + t, scale, scores + t * kTile, score_stride,
                               ahead);
    }
  }
}

/// sums[r] = sums[r] * factors[r] + weights[r][t] * value[t] over tokens first .. end - 1 of the
/// tiles. A tile's values are its second half: for each kTile columns, a run of each token.
template <class E, int kRows, int kBytes>
BH_KERNEL void accumulate_rows(const float* weights, int weight_stride, const E* const* tiles,
                               int first, int end, int head_size, const float* factors, float* sums,
                               Ahead<kBytes> ahead) {
  constexpr int kAbreast = tiles_abreast(kRows);
  constexpr int kRuns = kUnroll<E, kBytes>;
  for (int column = 0; column < head_size; column += kTile) {
    Vec acc[kAbreast][kRows][kVecsPerRun] = {};
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
      for (int v = 0; v < kVecsPerRun; ++v) {
        acc[0][r][v] = load(sums + r * head_size + column + v * kWidth) * broadcast(factors[r]);
      }
    }
    const int64_t offset = int64_t{kTile} * (head_size + column);
    int t = first;
    while (t < end) {
      const int tile = t / kTile;
      const int in_tile = t % kTile;
      const float* w = weights + tile * kTile;
      if (in_tile == 0 && t + kAbreast * kTile <= end) {
        for (int first_run = 0; first_run < kTile; first_run += kRuns) {
          const Block<E, kRows, kAbreast, kRuns> block(tiles + tile, offset + first_run * kTile);
#pragma GCC unroll 4
          for (int i = 0; i < kRuns; ++i) {
#pragma GCC unroll 4
            for (int a = 0; a < kAbreast; ++a) {
              ahead.at_run(i);
              Run value;
              block.load(a, i, value);
              multiply_run<kRows>(
                  value,
                  [&](int r) -> const float& {
                    return w[r * weight_stride + a * kTile + first_run + i];
                  },
                  acc[a]);
            }
          }
        }
        t += kAbreast * kTile;
      } else {
        const E* value = tiles[tile] + offset;
        const int stop = in_tile + end - t < kTile ? in_tile + end - t : kTile;
        for (int i = in_tile; i < stop; ++i) {
          ahead.at_run(i);
          Run run;
          read_run(value + i * kTile, run);
          multiply_run<kRows>(
              run, [&](int r) -> const float& { return w[r * weight_stride + i]; }, acc[0]);
        }
        t += stop - in_tile;
      }
    }
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
      for (int a = 1; a < kAbreast; ++a) {
#pragma GCC unroll 4
        for (int v = 0; v < kVecsPerRun; ++v) acc[0][r][v] += acc[a][r][v];
      }
      store_run(acc[0][r], sums + r * head_size + column);
    }
  }
}

}  // namespace broadhead::cpu::BH_TIER
