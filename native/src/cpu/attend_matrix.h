// SPDX-License-Identifier: Apache-2.0
// An item's query rows against spans of keys by matrix registers: both sides sums of bfloat16
// terms, which have all values of what is multiplied, sums float32. Included by kernel sources only
// (see vec.h).
#pragma once

#include "cpu/attend_span.h"
#include "cpu/queries.h"
#include "cpu/spans.h"

namespace broadhead::cpu::BH_TIER {

/// Fills the panel with a span's tiles, and returns whether matrix registers can multiply them
/// (fill_tile). Whatever is not among the keys that some token of the item sees is left out.
template <class E>
BH_INLINE bool fill_panel(const AttendContext& context, const AttendItem& item, const Span& span,
                          const E* const* tiles, const MatrixPanel<kTerms<E>>& panel) {
  // Tokens ascend in position, or see the same.
  const int first = max_int(context.token(item, 0).first - span.begin, 0);
  const int end = span.end - span.begin;
  const int num_tiles = (end + kTile - 1) / kTile;
  bool exact = true;
  for (int t = 0; t < num_tiles; ++t) {
    exact &= fill_tile(panel, t, tiles[t], first - t * kTile, end - t * kTile);
  }
  if (num_tiles % 2 != 0) clear_tile(panel, num_tiles);
  return exact;
}

/// A chunk of up to 16 kRows rows against the panel: scores, weights, sums of weighted values.
template <int kRows, int kQueryTerms, int kCacheTerms>
static void attend_chunk(const AttendContext& context, const AttendItem& item,
                         const AttendScratch& scratch, const Span& span, const Chunk& chunk,
                         const MatrixPanel<kCacheTerms>& panel) {
  const LayerView& layer = *context.layer;
  const int size = layer.head_size;
  const int64_t first_row = int64_t{span.head} * scratch.padded_rows + chunk.first_row;
  const int first = chunk.seen.first / kMatrixDepth * kMatrixDepth;
  const int count = (chunk.seen.end - first + kTile - 1) / kTile * kTile;
  const int padded_count = round_to_depth(count);

  const int64_t padded_size = round_to_depth(size);
  const MatrixRows queries = {
      reinterpret_cast<const char*>(scratch.query + first_row * padded_size), 4 * padded_size,
      2 * padded_size};
  for (int t = 0; t < padded_count; t += kMatrixDepth) {
    multiply<kRows, 2, kQueryTerms, kCacheTerms, false>(queries, panel.keys((first + t) / kTile),
                                                        round_to_depth(size) / kMatrixDepth,
                                                        {scratch.scores + t, kMatrixStride});
  }
  for (int r = 0; r < chunk.rows; ++r) {
    float* scores = scratch.scores + r * kMatrixStride;
    for (int t = count; t < padded_count; t += kWidth) store(scores + t, broadcast(-kInfinity));
  }

  float factors[round_to_width(kRows * kMatrixRows)];
  weigh_rows<kRows * kMatrixRows, kMatrixDepth, true>(
      context, item, scratch, span, chunk, chunk.rows, first, count, scratch.scores, kMatrixStride,
      factors, [&](int r, int t, const auto& weights) {
        split_weights(weights, scratch.matrix_weights + r * kWeightTerms * kMatrixStride + t,
                      kMatrixStride);
      });
  float* sums = scratch.sums + first_row * size;
  for (int r = 0; r < chunk.rows; ++r) {
    const Vec factor = broadcast(factors[r]);
    for (int d = 0; d < size; d += kWidth) {
      store(sums + r * size + d, load(sums + r * size + d) * factor);
    }
  }

  constexpr int64_t kTermBytes = int64_t{2} * kMatrixStride;
  const MatrixRows weights = {reinterpret_cast<const char*>(scratch.matrix_weights),
                              kWeightTerms * kTermBytes, kTermBytes};
  const int depth = padded_count / kMatrixDepth;
  for (int column = 0; column < size; column += kMatrixDepth) {
    const char* values = panel.values(first / kTile, column);
    if (column + kTile < size) {
      multiply<kRows, 2, kWeightTerms, kCacheTerms, true>(weights, values, depth,
                                                          {sums + column, size});
    } else {
      multiply<kRows, 1, kWeightTerms, kCacheTerms, true>(weights, values, depth,
                                                          {sums + column, size});
    }
  }
}

/// The item's attention to keys and values in the cache, by matrix registers as long as those
/// multiply what is there exactly.
template <class T, class E>
static void attend_matrices(const AttendContext& context, const AttendItem& item,
                            const AttendScratch& scratch) {
  const int size = context.layer->head_size;
  const int span_tiles = tiles_of_span(matrix_tile_bytes(size, kTerms<E>), scratch.rows);
  const MatrixPanel<kTerms<E>> panel = {reinterpret_cast<char*>(scratch.panel), size, span_tiles};
  const MatrixUse use;
  bool exact = load_query_terms<T>(context, item, scratch);
  if (!exact) load_queries<T>(context, item, scratch);
  CachedSpans<E> spans(context, item, span_tiles);
  for_each_span(item, span_tiles, [&](const Span& span) {
    spans.find_next(span);
    if (exact && !fill_panel(context, item, span, spans.tiles(), panel)) {
      exact = false;
      load_queries<T>(context, item, scratch);
    }
    if (exact) {
      for (int row = 0; row < scratch.rows; row += kMatrixChunk) {
        const int rows = min_int(scratch.rows - row, kMatrixChunk);
        const Chunk chunk = chunk_of(context, item, span, row, rows);
        if (chunk.seen.first >= chunk.seen.end) continue;
        if (rows > kMatrixRows) {
          attend_chunk<2, kTerms<T>>(context, item, scratch, span, chunk, panel);
        } else {
          attend_chunk<1, kTerms<T>>(context, item, scratch, span, chunk, panel);
        }
      }
    } else {
      attend_span(context, item, scratch, span, spans.tiles(), Ahead<0>(), Ahead<0>());
    }
    spans.advance();
  });
}

}  // namespace broadhead::cpu::BH_TIER
