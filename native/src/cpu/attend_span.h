// SPDX-License-Identifier: Apache-2.0
// An item's query rows against one span of keys: scores, the running softmax, sums of weighted
// values; only the scores of some rows for a span are ever in memory. Included by kernel sources
// only (see vec.h).
#pragma once

#include <cstddef>

#include "cpu/matrix_kernels.h"
#include "cpu/micro_kernels.h"
#include "cpu/score.h"

namespace broadhead::cpu::BH_TIER {

/// Tiles of the longest span.
constexpr int kMaxSpan = 32;
constexpr int kScoreStride = kMaxSpan * kTile;
/// Rows a power of two apart would compete for the same few sets of the caches.
constexpr int kMatrixStride = kScoreStride + kMatrixDepth;

/// Bytes of a span that several chunks of query rows read: it stays in the second-level cache.
constexpr int64_t kSpanBytes = int64_t{256} << 10;

/// An item's scratch, carved from one run of floats.
struct AttendScratch {
  int rows;                  ///< query rows of a KV head: tokens * group_size
  int padded_rows;           ///< those that there is room for
  float* query;              ///< [heads][padded_rows][head_size], scaled; or pairs; or terms
  float* sums;               ///< [heads][padded_rows][head_size]
  float* maxima;             ///< [heads][padded_rows]: of the running softmax, as are denominators
  float* denominators;       ///< [heads][padded_rows]
  float* scores;             ///< [kMaxRows][kScoreStride]; or [kMatrixChunk][kMatrixStride]
  float* heads;              ///< a rotated query; or keys and values on their way into a tile
  float* panel;              ///< tiles of a span, widened
  uint16_t* matrix_weights;  ///< [kMatrixChunk][kWeightTerms][kMatrixStride]
};

/// Tiles of a span, a power of two: where one chunk of query rows reads it, as many as memory
/// streams well in; else as many as the second-level cache keeps.
BH_INLINE int tiles_of_span(int64_t tile_bytes, int rows) {
  int tiles = kStreams;
  if (rows <= kMaxRows) return tiles;
  while (tiles < kMaxSpan && 2 * tiles * tile_bytes <= kSpanBytes) tiles *= 2;
  return tiles;
}

/// The same for elements that are widened as one chunk reads them. That is slower than memory, and
/// longer spans pay less for what lies between their products.
constexpr int kWidenedSpan = 16;

/// Do matrix registers multiply numbers of T? float32 would take as long as without them.
template <class T>
constexpr bool kGoesToMatrices = !__is_same(T, Float32);

/// Do the item's rows go through matrix registers?
BH_INLINE bool uses_matrices(const LayerView& layer, const CacheView* cache, int rows) {
  return kHasMatrices && cache && rows > kMaxRows && layer.dtype != BH_FLOAT32 &&
         cache->dtype != BH_FLOAT32;
}

/// Bytes of a tile in the panel; 0 if tiles are read where the cache has them: those that take long
/// to widen are widened once where several chunks of rows read them.
BH_INLINE int64_t panel_tile_bytes(const LayerView& layer, const CacheView* cache, int rows) {
  const int64_t elements = int64_t{2} * kTile * layer.head_size;
  if (!cache) return elements * static_cast<int64_t>(sizeof(Float32));
  const bool matrices = uses_matrices(layer, cache, rows);
  int64_t bytes = 0;
  with_dtype(cache->dtype, [&](auto e) {
    using E = decltype(e);
    if (matrices) {
      bytes = matrix_tile_bytes(layer.head_size, kTerms<E>);
    } else if (!kReadsDirectly<E> && rows > kMaxRows) {
      bytes = elements * static_cast<int64_t>(sizeof(typename Widened<E>::Type));
    }
  });
  return bytes;
}

BH_INLINE int64_t carve(const LayerView& layer, const CacheView* cache, const AttendItem& item,
                        float* floats, AttendScratch* scratch) {
  const int rows = item.num_tokens * layer.group_size;
  const bool matrices = uses_matrices(layer, cache, rows);
  const int padded_rows = matrices ? (rows + kMatrixRows - 1) / kMatrixRows * kMatrixRows : rows;
  const int64_t all_rows = int64_t{padded_rows} * item.num_heads;
  int64_t used = 0;
  auto take = [&](int64_t count) {
    float* at = floats + used;
    used += (count + kTile - 1) / kTile * kTile;  // whole cache lines
    return at;
  };
  AttendScratch carved;
  carved.rows = rows;
  carved.padded_rows = padded_rows;
  carved.query = take(all_rows * (matrices ? round_to_depth(layer.head_size) : layer.head_size));
  carved.sums = take(all_rows * layer.head_size);
  const int beyond = matrices ? kMatrixRows : kWidth;  // whole vectors are read
  carved.maxima = take(all_rows + beyond);
  carved.denominators = take(all_rows + beyond);
  carved.scores = take(matrices ? kMatrixChunk * kMatrixStride : kMaxRows * kScoreStride);
  carved.heads = take(cache ? layer.head_size : tile_scratch(layer.head_size));
  const int64_t panel_tile = panel_tile_bytes(layer, cache, carved.rows);
  carved.panel = take(panel_tile / 4 * tiles_of_span(panel_tile, carved.rows));
  if (matrices) {
    carved.matrix_weights =
        reinterpret_cast<uint16_t*>(take(kMatrixChunk * kWeightTerms * kMatrixStride / 2));
  }
  if (scratch) *scratch = carved;
  return used;
}

/// Keys begin .. end - 1 of the item for one KV head.
struct Span {
  int begin;
  int end;
  int head;  ///< counted within the item
};

/// Keys from `first` on and before `end`, counted from the begin of a span.
struct Range {
  int first;
  int end;
};

/// Some query rows that pass a span together.
struct Chunk {
  int first_row;
  int rows;
  Range seen;    ///< by any of them
  Range common;  ///< by all of them
};

template <int kRows>
struct Rows {
  static constexpr int kCount = kRows;
};

/// Calls visit(Rows<rows>).
template <int kRows, class Visit>
BH_INLINE void with_rows(int rows, Visit&& visit) {
  if constexpr (kRows == 1) {
    visit(Rows<1>{});
  } else if (rows == kRows) {
    visit(Rows<kRows>{});
  } else {
    with_rows<kRows - 1>(rows, visit);
  }
}

/// What a row's token sees of a span.
BH_INLINE Range range_of(const AttendContext& context, const AttendItem& item, const Span& span,
                         int row) {
  const QueryToken& token = context.token(item, row / context.layer->group_size);
  return {max_int(token.first, span.begin) - span.begin, min_int(token.end, span.end) - span.begin};
}

BH_INLINE Chunk chunk_of(const AttendContext& context, const AttendItem& item, const Span& span,
                         int row, int rows) {
  // Tokens of a row ascend in position, and so do both ends of what they see; tokens of several
  // rows see all of the span.
  const Range first = range_of(context, item, span, row);
  const Range last = range_of(context, item, span, row + rows - 1);
  return {row, rows, {first.first, last.end}, {last.first, first.end}};
}

/// Calls visit(chunk) for chunks of the item's rows, as even as they can be, that see some key of
/// the span.
template <class Visit>
BH_INLINE void for_each_chunk(const AttendContext& context, const AttendItem& item, int all_rows,
                              const Span& span, Visit&& visit) {
  const int chunks = (all_rows + kMaxRows - 1) / kMaxRows;
  int row = 0;
  for (int c = 0; c < chunks; ++c) {
    const int rows = (all_rows - row) / (chunks - c);
    const Chunk chunk = chunk_of(context, item, span, row, rows);
    if (chunk.seen.first < chunk.seen.end) visit(chunk);
    row += rows;
  }
}

/// Is every value of the range finite? Where it is not, a weight of 0 does not keep it out of a
/// sum.
template <class E>
BH_INLINE bool is_finite(const E* const* tiles, int head_size, Range range) {
  Vec sum = {};
  for (int t = range.first; t < range.end; ++t) {
    const E* value = tiles[t / kTile] + kTile * head_size + t % kTile * kTile;
    for (int column = 0; column < head_size; column += kTile) {
      Run run;
      read_run(value + column * kTile, run);
      for (const Vec& v : run) sum += v * Vec{};
    }
  }
  return reduce_add(sum) == 0;
}

/// Keys, or values, of a tile that hardware prefetchers fetch well by themselves; of shorter ones
/// they miss too much of the begin.
constexpr int64_t kLongStream = int64_t{4} << 10;

/// Calls product(pace), which fetches what `ahead` says. One row reads long streams side by side,
/// which hardware prefetchers like better left alone, unless widening fp8 slows it down; but where
/// it turns to the next ones they need a start, and memory is idle.
template <int kRows, int kBytes, class Product>
BH_INLINE void fetch_during(Ahead<kBytes> ahead, int head_size, Product&& product) {
  if constexpr (kRows == 1 && kBytes > 1) {
    if (int64_t{kTile} * head_size * kBytes >= kLongStream) {
      product(Ahead<0>());
      ahead.start();
      return;
    }
  }
  product(ahead);
}

constexpr int round_to_width(int rows) { return (rows + kWidth - 1) / kWidth * kWidth; }

/// From scores of a chunk's rows, for `count` keys from the span's `first` on, to weights, the
/// running softmax, and the factors by which sums of the rows are multiplied. Calls keep(row, t,
/// weights) for kStep weights at a time. Of each row in a lane: one exponential rescales them all,
/// and no branch waits for a maximum.
template <int kRows, int kStep, bool kScales, class Keep>
BH_INLINE void weigh_rows(const AttendContext& context, const AttendItem& item,
                          const AttendScratch& scratch, const Span& span, const Chunk& chunk,
                          int rows, int first, int count, float* scores, int stride,
                          float (&factors)[round_to_width(kRows)], Keep&& keep) {
  const LayerView& layer = *context.layer;
  const int64_t first_row = int64_t{span.head} * scratch.padded_rows + chunk.first_row;
  float maxima[round_to_width(kRows)] = {};
  float totals[round_to_width(kRows)] = {};
  for (int r = 0; r < rows; ++r) {
    const int row = chunk.first_row + r;
    const int head = (item.first_head + span.head) * layer.group_size + row % layer.group_size;
    const ScoreTransform transform = {layer.score_scale, layer.logits_soft_cap,
                                      layer.alibi_slopes ? layer.alibi_slopes[head] : 0};
    maxima[r] = mask_scores<kScales>(transform, context.token(item, row / layer.group_size),
                                     span.begin + first, count, scores + r * stride);
  }
  for (int r = 0; r < round_to_width(kRows); r += kWidth) {
    const Vec before = load(scratch.maxima + first_row + r);
    const Vec maximum = max(load_lanes<kRows>(maxima, r), before);
    store(factors + r, rescale(before, maximum));
    store(maxima + r, maximum);
  }
  for (int r = 0; r < rows; ++r) {
    const int steps = (count + kStep - 1) / kStep * kStep;
    totals[r] = weigh<kStep>(scores + r * stride, steps, maxima[r],
                             [&](int t, const auto& weights) { keep(r, t, weights); });
  }
  for (int r = 0; r < round_to_width(kRows); r += kWidth) {
    const Vec before = load(scratch.denominators + first_row + r);
    store(totals + r, before * load(factors + r) + load_lanes<kRows>(totals, r));
  }
  __builtin_memcpy(scratch.maxima + first_row, maxima, static_cast<size_t>(rows) * sizeof(float));
  __builtin_memcpy(scratch.denominators + first_row, totals,
                   static_cast<size_t>(rows) * sizeof(float));
}

/// A chunk of rows against the tiles of a span: scores, weights, sums of weighted values.
template <class E, int kRows, int kBytes>
[[gnu::noinline]] static void attend_rows(const AttendContext& context, const AttendItem& item,
                                          const AttendScratch& scratch, const Span& span,
                                          const Chunk& chunk, const E* const* tiles,
                                          Ahead<kBytes> during_scores, Ahead<kBytes> during_sums) {
  const LayerView& layer = *context.layer;
  const int size = layer.head_size;
  const int64_t first_row = int64_t{span.head} * scratch.padded_rows + chunk.first_row;
  const int first_tile = chunk.seen.first / kTile;
  const int num_tiles = (chunk.seen.end + kTile - 1) / kTile - first_tile;
  const int count = num_tiles * kTile;
  float* scores = scratch.scores + first_tile * kTile;
  fetch_during<kRows>(during_scores, size, [&](auto pace) {
    score_rows<E, kRows>(scratch.query + first_row * size, size, tiles + first_tile, num_tiles,
                         layer.score_scale, scores, kScoreStride, pace);
  });

  float factors[round_to_width(kRows)];
  weigh_rows<kRows, kTile, false>(
      context, item, scratch, span, chunk, kRows, first_tile * kTile, count, scores, kScoreStride,
      factors,
      [&](int r, int t, const Run& weights) { store_run(weights, scores + r * kScoreStride + t); });

  float* sums = scratch.sums + first_row * size;
  const Range before = {chunk.seen.first, min_int(chunk.common.first, chunk.seen.end)};
  const Range after = {max_int(chunk.common.end, chunk.seen.first), chunk.seen.end};
  if (kRows == 1 || (is_finite(tiles, size, before) && is_finite(tiles, size, after))) {
    fetch_during<kRows>(during_sums, size, [&](auto pace) {
      accumulate_rows<E, kRows>(scratch.scores, kScoreStride, tiles, chunk.seen.first,
                                chunk.seen.end, size, factors, sums, pace);
    });
    return;
  }
  for (int r = 0; r < kRows; ++r) {
    const Range seen = range_of(context, item, span, chunk.first_row + r);
    accumulate_rows<E, 1>(scratch.scores + r * kScoreStride, kScoreStride, tiles, seen.first,
                          seen.end, size, factors + r, sums + r * size, Ahead<0>());
  }
}

/// All chunks of a span; what is read next is fetched meanwhile, once.
template <class E, int kBytes>
BH_INLINE void attend_span(const AttendContext& context, const AttendItem& item,
                           const AttendScratch& scratch, const Span& span, const E* const* tiles,
                           Ahead<kBytes> during_scores, Ahead<kBytes> during_sums) {
  for_each_chunk(context, item, scratch.rows, span, [&](const Chunk& chunk) {
    with_rows<kMaxRows>(chunk.rows, [&](auto rows) {
      constexpr int kRows = decltype(rows)::kCount;
      if constexpr (kBytes > 0) {
        if (chunk.first_row == 0) {
          attend_rows<E, kRows>(context, item, scratch, span, chunk, tiles, during_scores,
                                during_sums);
          return;
        }
      }
      attend_rows<E, kRows>(context, item, scratch, span, chunk, tiles, Ahead<0>(), Ahead<0>());
    });
  });
}

}  // namespace broadhead::cpu::BH_TIER
