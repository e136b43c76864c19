// SPDX-License-Identifier: Apache-2.0
// Attention of one item: spans of tiles stream by once, for all query rows of a KV head's group,
// with a running softmax; only the scores of some rows for a span are ever in memory. Included by
// kernel sources only (see vec.h).
#pragma once

#include "cpu/micro_kernels.h"
#include "cpu/rotary.h"
#include "cpu/score.h"
#include "cpu/update.h"

namespace broadhead::cpu::BH_TIER {

/// Tiles of the longest span.
constexpr int kMaxSpan = 32;
constexpr int kScoreStride = kMaxSpan * kTile;

/// Bytes of a span that several chunks of query rows read: it stays in the second-level cache.
constexpr int64_t kSpanBytes = int64_t{256} << 10;

/// An item's scratch, carved from one run of floats.
struct AttendScratch {
  int rows;             ///< query rows of a KV head: tokens * group_size
  float* query;         ///< [heads][rows][head_size], scaled; or pairs, which take half of it
  float* sums;          ///< [heads][rows][head_size]
  float* maxima;        ///< [heads][rows]: of the running softmax, as are denominators
  float* denominators;  ///< [heads][rows]
  float* scores;        ///< [kMaxRows][kScoreStride]
  float* heads;         ///< a rotated query; or keys and values on their way into a tile
  float* panel;         ///< tiles of a span, widened
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

/// Bytes of a tile in the panel; 0 if tiles are read where the cache has them: those that take long
/// to widen are widened once where several chunks of rows read them.
BH_INLINE int64_t panel_tile_bytes(const LayerView& layer, const CacheView* cache, int rows) {
  const int64_t elements = int64_t{2} * kTile * layer.head_size;
  if (!cache) return elements * static_cast<int64_t>(sizeof(Float32));
  int64_t bytes = 0;
  with_dtype(cache->dtype, [&](auto e) {
    using E = decltype(e);
    if (!kReadsDirectly<E> && rows > kMaxRows) {
      bytes = elements * static_cast<int64_t>(sizeof(typename Widened<E>::Type));
    }
  });
  return bytes;
}

BH_INLINE int64_t carve(const LayerView& layer, const CacheView* cache, const AttendItem& item,
                        float* floats, AttendScratch* scratch) {
  const int64_t rows = int64_t{item.num_tokens} * layer.group_size;
  const int64_t all_rows = rows * item.num_heads;
  int64_t used = 0;
  auto take = [&](int64_t count) {
    float* at = floats + used;
    used += (count + kTile - 1) / kTile * kTile;  // whole cache lines
    return at;
  };
  AttendScratch carved;
  carved.rows = static_cast<int>(rows);
  carved.query = take(all_rows * layer.head_size);
  carved.sums = take(all_rows * layer.head_size);
  carved.maxima = take(all_rows + kWidth);  // whole vectors are read
  carved.denominators = take(all_rows + kWidth);
  carved.scores = take(kMaxRows * kScoreStride);
  carved.heads = take(cache ? layer.head_size : tile_scratch(layer.head_size));
  const int64_t panel_tile = panel_tile_bytes(layer, cache, carved.rows);
  carved.panel = take(panel_tile / 4 * tiles_of_span(panel_tile, carved.rows));
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

/// Calls visit(chunk) for chunks of the item's rows, as even as they can be, that see some key of
/// the span.
template <class Visit>
BH_INLINE void for_each_chunk(const AttendContext& context, const AttendItem& item, int all_rows,
                              const Span& span, Visit&& visit) {
  const int chunks = (all_rows + kMaxRows - 1) / kMaxRows;
  int row = 0;
  for (int c = 0; c < chunks; ++c) {
    const int rows = (all_rows - row) / (chunks - c);
    // Tokens of a row ascend in position, and so do both ends of what they see; tokens of several
    // rows see all of the span.
    const Range first = range_of(context, item, span, row);
    const Range last = range_of(context, item, span, row + rows - 1);
    if (first.first < last.end) {
      visit(Chunk{row, rows, {first.first, last.end}, {last.first, first.end}});
    }
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

/// A chunk of rows against the tiles of a span: scores, weights, sums of weighted values.
template <class E, int kRows, int kBytes>
[[gnu::noinline]] static void attend_rows(const AttendContext& context, const AttendItem& item,
                                          const AttendScratch& scratch, const Span& span,
                                          const Chunk& chunk, const E* const* tiles,
                                          Ahead<kBytes> during_scores, Ahead<kBytes> during_sums) {
  const LayerView& layer = *context.layer;
  const int size = layer.head_size;
  const int64_t first_row = int64_t{span.head} * scratch.rows + chunk.first_row;
  const int first_tile = chunk.seen.first / kTile;
  const int num_tiles = (chunk.seen.end + kTile - 1) / kTile - first_tile;
  const int count = num_tiles * kTile;
  float* scores = scratch.scores + first_tile * kTile;
  fetch_during<kRows>(during_scores, size, [&](auto pace) {
    score_rows<E, kRows>(scratch.query + first_row * size, size, tiles + first_tile, num_tiles,
                         layer.score_scale, scores, kScoreStride, pace);
  });

  // Of each row in a lane: one exponential rescales them all, and no branch waits for a maximum.
  constexpr int kLanes = (kRows + kWidth - 1) / kWidth * kWidth;
  float maxima[kLanes] = {};
  float totals[kLanes] = {};
  float factors[kLanes];
  for (int r = 0; r < kRows; ++r) {
    const int row = chunk.first_row + r;
    const int head = (item.first_head + span.head) * layer.group_size + row % layer.group_size;
    const ScoreTransform transform = {layer.logits_soft_cap,
                                      layer.alibi_slopes ? layer.alibi_slopes[head] : 0};
    maxima[r] = mask_scores(transform, context.token(item, row / layer.group_size),
                            span.begin + first_tile * kTile, count, scores + r * kScoreStride);
  }
  for (int r = 0; r < kLanes; r += kWidth) {
    const Vec before = load(scratch.maxima + first_row + r);
    const Vec maximum = max(load_lanes<kRows>(maxima, r), before);
    store(factors + r, rescale(before, maximum));
    store(maxima + r, maximum);
  }
  for (int r = 0; r < kRows; ++r) {
    totals[r] = weigh(scores + r * kScoreStride, count, maxima[r]);
  }
  for (int r = 0; r < kLanes; r += kWidth) {
    const Vec before = load(scratch.denominators + first_row + r);
    store(totals + r, before * load(factors + r) + load_lanes<kRows>(totals, r));
  }
  __builtin_memcpy(scratch.maxima + first_row, maxima, kRows * sizeof(float));
  __builtin_memcpy(scratch.denominators + first_row, totals, kRows * sizeof(float));

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

/// Calls visit(span) for every span of the item: every head of some keys, then the next keys, so
/// that blocks stream by whole.
template <class Visit>
BH_INLINE void for_each_span(const AttendItem& item, int span_tiles, Visit&& visit) {
  const int keys = span_tiles * kTile;
  for (int begin = item.first_key; begin < item.end_key; begin += keys) {
    const int end = min_int(begin + keys, item.end_key);
    for (int head = 0; head < item.num_heads; ++head) visit(Span{begin, end, head});
  }
}

/// The tiles of spans in the cache, found through the row's block table.
template <class E>
class CachedSpans {
 public:
  CachedSpans(const AttendContext& context, const AttendItem& item, int span_tiles)
      : cache_(*context.cache),
        blocks_(context.step->blocks(context.step->rows[item.row])),
        item_(item),
        span_tiles_(span_tiles) {
    if (item.first_key < item.end_key) find(item.first_key, 0, tiles_[0]);
  }

  const E* const* tiles() const { return tiles_[now_]; }
  const E* const* next() const { return tiles_[1 - now_]; }

  /// Finds the tiles of the span after this one.
  void find_next(const Span& span) {
    const bool last_head = span.head + 1 == item_.num_heads;
    find(last_head ? span.begin + span_tiles_ * kTile : span.begin, last_head ? 0 : span.head + 1,
         tiles_[1 - now_]);
  }
  void advance() { now_ = 1 - now_; }

 private:
  void find(int begin, int head, const E** found) {
    const int last_tile = (item_.end_key - 1) / kTile * kTile;
    for (int i = 0; i < span_tiles_; ++i) {
      const int key = min_int(begin + i * kTile, last_tile);
      found[i] = reinterpret_cast<const E*>(cache_.tile(blocks_[key / cache_.block_size],
                                                        item_.first_head + head,
                                                        key % cache_.block_size / kTile));
    }
  }

  const CacheView& cache_;
  const int32_t* blocks_;
  const AttendItem& item_;
  int span_tiles_;
  int now_ = 0;
  const E* tiles_[2][kMaxSpan];
};

/// The tiles of a panel.
template <class E>
struct Panel {
  E* tiles[kMaxSpan];

  Panel(const AttendScratch& scratch, int64_t tile_elements, int span_tiles) {
    for (int i = 0; i < span_tiles; ++i) {
      tiles[i] = reinterpret_cast<E*>(scratch.panel) + i * tile_elements;
    }
  }
};

/// The item's attention to keys and values that are read where the cache has them.
template <class E>
static void attend_direct(const AttendContext& context, const AttendItem& item,
                          const AttendScratch& scratch) {
  const int span_tiles =
      kReadsDirectly<E> ? tiles_of_span(context.cache->tile_bytes(), scratch.rows) : kWidenedSpan;
  CachedSpans<E> spans(context, item, span_tiles);
  for_each_span(item, span_tiles, [&](const Span& span) {
    spans.find_next(span);
    constexpr int kBytes = sizeof(E);
    const Ahead<kBytes> values(spans.tiles(), kTile * context.layer->head_size, span_tiles);
    const Ahead<kBytes> next_keys(spans.next(), 0, span_tiles);
    attend_span(context, item, scratch, span, spans.tiles(), values, next_keys);
    spans.advance();
  });
}

/// The item's attention to keys and values in the cache, widened on their way into a panel.
template <class E>
static void attend_widened(const AttendContext& context, const AttendItem& item,
                           const AttendScratch& scratch) {
  using W = typename Widened<E>::Type;
  const int64_t elements = int64_t{2} * kTile * context.layer->head_size;
  const int span_tiles = tiles_of_span(elements * static_cast<int64_t>(sizeof(W)), scratch.rows);
  CachedSpans<E> spans(context, item, span_tiles);
  const Panel<W> panel(scratch, elements, span_tiles);
  for_each_span(item, span_tiles, [&](const Span& span) {
    spans.find_next(span);
    const int num_tiles = (span.end - span.begin + kTile - 1) / kTile;
    for (int i = 0; i < num_tiles; ++i) {
      for (int64_t at = 0; at < elements; at += kRunsPerLine<E> * kTile) {
        widen_line(spans.tiles()[i] + at, panel.tiles[i] + at);
      }
    }
    constexpr int kBytes = sizeof(E);
    const Ahead<kBytes> next_keys(spans.next(), 0, span_tiles);
    const Ahead<kBytes> next_values(spans.next(), kTile * context.layer->head_size, span_tiles);
    attend_span(context, item, scratch, span, panel.tiles, next_keys, next_values);
    spans.advance();
  });
}

/// Makes a tile of the row's own keys and values, of `count` tokens from `key` on and zeros.
template <class T>
BH_INLINE void make_tile(const LayerView& layer, const StepPart& part, const StepRow& row,
                         int kv_head, int key, int count, float* heads, Float32* tile) {
  const int size = layer.head_size;
  const int64_t stride = int64_t{layer.num_kv_heads} * size;
  const int64_t head = key * stride + kv_head * size;
  Heads<T> keys{static_cast<const T*>(part.key) + row.key * stride + head, stride};
  const Heads<T> values{static_cast<const T*>(part.value) + row.value * stride + head, stride};
  T* rotated = reinterpret_cast<T*>(heads);
  Float32* widened = reinterpret_cast<Float32*>(heads + kTile * size);
  if (layer.rotary_dim > 0) {
    for (int t = 0; t < count; ++t) {
      rotate(layer, part, keys[t], row.positions + key + t, rotated + t * size);
    }
    keys = {rotated, size};
  }
  const Heads<Float32> wide_keys = unscale(keys, count, size, 1, widened);
  if (count == kTile) {
    store_keys(wide_keys, size, tile);
  } else {
    __builtin_memset(tile, 0, sizeof(Float32) * 2 * kTile * size);
    for (int t = 0; t < count; ++t) store_key(wide_keys[t], size, tile, t);
  }
  store_values(unscale(values, count, size, 1, widened), count, size, tile, 0);
}

/// The item's attention to its row's own keys and values.
template <class T>
static void attend_own(const AttendContext& context, const AttendItem& item,
                       const AttendScratch& scratch) {
  const LayerView& layer = *context.layer;
  const StepRow& row = context.step->rows[item.row];
  const int64_t elements = int64_t{2} * kTile * layer.head_size;
  const int span_tiles = tiles_of_span(elements * 4, scratch.rows);
  const Panel<Float32> panel(scratch, elements, span_tiles);
  for_each_span(item, span_tiles, [&](const Span& span) {
    for (int key = span.begin; key < span.end; key += kTile) {
      make_tile<T>(layer, context.step->part(row), row, item.first_head + span.head, key,
                   min_int(row.num_keys - key, kTile), scratch.heads,
                   panel.tiles[(key - span.begin) / kTile]);
    }
    attend_span(context, item, scratch, span, panel.tiles, Ahead<0>(), Ahead<0>());
  });
}

/// Tokens whose queries are fetched before they are needed.
constexpr int kTokensAhead = 8;

/// The first of a token's query heads for KV head `head` of the item.
template <class T>
BH_INLINE const T* query_heads(const AttendContext& context, const AttendItem& item,
                               const QueryToken& token, int head) {
  const LayerView& layer = *context.layer;
  const StepRow& row = context.step->rows[token.row];
  const int64_t first = (row.query + token.index) * layer.num_heads +
                        int64_t{item.first_head + head} * layer.group_size;
  return static_cast<const T*>(context.step->part(row).query) + first * layer.head_size;
}

/// Do kernels multiply pairs of the query and of keys in the cache?
BH_INLINE bool multiplies_pairs(const AttendContext& context) {
  return kHasPairs && context.cache && context.cache->dtype == BH_BFLOAT16 &&
         context.layer->dtype == BH_BFLOAT16;
}

/// Calls `visit` with a value of the type that kernels read the cache as.
template <class Visit>
BH_INLINE void with_cache_dtype(const AttendContext& context, Visit&& visit) {
#if defined(__AVX512BF16__)
  if (multiplies_pairs(context)) return visit(BFloat16Pairs{});
#endif
  with_dtype(context.cache->dtype, visit);
}

/// Loads the item's queries, rotated, and scales them unless they become pairs.
template <class T>
static void load_queries(const AttendContext& context, const AttendItem& item,
                         const AttendScratch& scratch) {
  const LayerView& layer = *context.layer;
  const Step& step = *context.step;
  const int size = layer.head_size;
  const Vec scale = broadcast(layer.score_scale);
  const bool pairs = multiplies_pairs(context);
  T* rotated = reinterpret_cast<T*>(scratch.heads);
  float* to = scratch.query;
  for (int h = 0; h < item.num_heads; ++h) {
    for (int t = 0; t < item.num_tokens; ++t) {
      // Heads of other KV heads lie between those of two tokens: more than hardware looks ahead.
      if (t + kTokensAhead < item.num_tokens) {
        fetch(query_heads<T>(context, item, context.token(item, t + kTokensAhead), h),
              layer.group_size * size);
      }
      const QueryToken& token = context.token(item, t);
      const StepRow& row = step.rows[token.row];
      const T* query = query_heads<T>(context, item, token, h);
      for (int g = 0; g < layer.group_size; ++g, query += size, to += size) {
        auto keep = [&](int d, Vec v) {
          if (pairs) {
            store(reinterpret_cast<BFloat16*>(to) + d, v);
          } else {
            store(to + d, v * scale);
          }
        };
        if (layer.rotary_dim == 0) {
          for (int d = 0; d < size; d += kWidth) keep(d, load(query + d));
        } else {
          rotate(layer, step.part(row), query, row.positions + token.index, rotated);
          for (int d = 0; d < size; d += kWidth) keep(d, load(rotated + d));
        }
      }
    }
  }
}

/// Writes one head of a query token's output: normalised, with its sink, rounded once.
BH_INLINE void write_output(const AttendContext& context, const QueryToken& token, int head,
                            SoftmaxState state, float* sums) {
  const LayerView& layer = *context.layer;
  const StepRow& row = context.step->rows[token.row];
  const StepPart& part = context.step->part(row);
  float keep = 1;
  if (layer.sinks) {
    const float sink = layer.sinks[head];
    const float maximum = sink > state.maximum ? sink : state.maximum;
    if (maximum > -kInfinity) {
      keep = __builtin_expf(state.maximum - maximum);
      state.denominator = state.denominator * keep + __builtin_expf(sink - maximum);
      state.maximum = maximum;
    }
  }
  const int64_t out = (row.output + token.index) * layer.num_heads + head;
  if (part.lse) {
    part.lse[out] =
        state.denominator == 0 ? -kInfinity : state.maximum + __builtin_logf(state.denominator);
  }
  const float factor = state.denominator == 0 ? 0 : keep * layer.value_scale / state.denominator;
  if (layer.output_scale > 0) {
    for (int d = 0; d < layer.head_size; d += kWidth) {
      store(sums + d, load(sums + d) / broadcast(layer.output_scale));
    }
  }
  with_dtype(layer.output_dtype, [&](auto element) {
    auto* to = static_cast<decltype(element)*>(part.output) + out * layer.head_size;
    for (int d = 0; d < layer.head_size; d += kWidth) {
      store(to + d, load(sums + d) * broadcast(factor));
    }
  });
}

static void attend(const AttendContext& context, const AttendItem& item, float* floats) {
  const LayerView& layer = *context.layer;
  AttendScratch scratch;
  carve(layer, context.cache, item, floats, &scratch);
  with_tensor_dtype(layer.dtype,
                    [&](auto t) { load_queries<decltype(t)>(context, item, scratch); });
  const int64_t all_rows = int64_t{item.num_heads} * scratch.rows;
  for (int64_t i = 0; i < all_rows * layer.head_size; ++i) scratch.sums[i] = 0;
  for (int64_t i = 0; i < all_rows; ++i) scratch.maxima[i] = -kInfinity;
  for (int64_t i = 0; i < all_rows; ++i) scratch.denominators[i] = 0;

  if (context.cache) {
    with_cache_dtype(context, [&](auto e) {
      using E = decltype(e);
      if constexpr (!kReadsDirectly<E>) {
        if (scratch.rows > kMaxRows) return attend_widened<E>(context, item, scratch);
      }
      attend_direct<E>(context, item, scratch);
    });
  } else {
    with_tensor_dtype(layer.dtype,
                      [&](auto t) { attend_own<decltype(t)>(context, item, scratch); });
  }

  for (int h = 0; h < item.num_heads; ++h) {
    for (int r = 0; r < scratch.rows; ++r) {
      const QueryToken& token = context.token(item, r / layer.group_size);
      const int head = (item.first_head + h) * layer.group_size + r % layer.group_size;
      const int64_t i = int64_t{h} * scratch.rows + r;
      const SoftmaxState state = {scratch.maxima[i], scratch.denominators[i]};
      float* sums = scratch.sums + i * layer.head_size;
      if (token.num_partials == 1) {
        write_output(context, token, head, state, sums);
      } else {
        const int64_t partial = (token.first_partial + item.piece) * layer.num_heads + head;
        __builtin_memcpy(context.partial_sums + partial * layer.head_size, sums,
                         sizeof(float) * static_cast<unsigned>(layer.head_size));
        context.partial_state[partial * 2] = state.maximum;
        context.partial_state[partial * 2 + 1] = state.denominator;
      }
    }
  }
}

}  // namespace broadhead::cpu::BH_TIER
