// SPDX-License-Identifier: Apache-2.0
// Attention of one item: spans of tiles stream by once, for all query rows of a KV head's group,
// with a running softmax; the scores of a span are the only ones in memory. Included by kernel
// sources only (see vec.h).
#pragma once

#include "cpu/micro_kernels.h"
#include "cpu/rotary.h"
#include "cpu/score.h"
#include "cpu/update.h"

namespace broadhead::cpu::BH_TIER {

/// Tiles that are worked on together: where they are read from the cache itself, several streams
/// of memory at once; where they were widened beforehand, a panel for the second-level cache.
constexpr int kDirectSpan = 4;
constexpr int kPanelSpan = 8;
constexpr int kMaxSpan = kPanelSpan;

/// Tiles of a panel whose keys stay in the first-level cache while all query rows pass.
constexpr int kKeyGroup = 2;

/// Query rows of a micro-kernel that reads the cache itself. More would repay the widening of a
/// tile, and every combination of element type and rows is code.
constexpr int kDirectRows = kMaxRows < 8 ? kMaxRows : 8;

/// Above this many query rows it pays to widen a tile once instead of in every micro-kernel.
constexpr int kPackRows = 2 * kMaxRows;

/// An item's scratch, carved from one run of floats.
struct AttendScratch {
  int rows;              ///< query rows of a KV head: tokens * group_size
  float* query;          ///< [heads][rows][head_size], scaled
  float* sums;           ///< [heads][rows][head_size]
  SoftmaxState* states;  ///< [heads][rows]
  float* scores;         ///< [rows][kMaxSpan * kTile]
  float* factors;        ///< [rows]
  float* heads;          ///< [kTile][head_size]: keys on their way into a tile
  float* tile;           ///< a tile on its way into the panel
  float* panel;          ///< keys, [kPanelSpan] tiles, then values in slices
};

BH_INLINE bool packs(const LayerView& layer, const CacheView* cache, const AttendItem& item) {
  if (!cache) return true;
  return item.num_tokens * layer.group_size > kPackRows;
}

BH_INLINE int64_t carve(const LayerView& layer, const CacheView* cache, const AttendItem& item,
                        float* floats, AttendScratch* scratch) {
  const int64_t rows = int64_t{item.num_tokens} * layer.group_size;
  const int64_t all_rows = rows * item.num_heads;
  const int64_t tile = int64_t{2} * kTile * layer.head_size;
  const bool panel = packs(layer, cache, item);
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
  carved.states = reinterpret_cast<SoftmaxState*>(take(all_rows * 2));
  carved.scores = take(rows * kMaxSpan * kTile);
  carved.factors = take(rows);
  carved.heads = take(cache ? 0 : kTile * layer.head_size);
  carved.tile = take(cache ? 0 : tile);
  const int64_t slices = (layer.head_size + kSlice - 1) / kSlice;
  carved.panel =
      take(panel ? kPanelSpan * int64_t{kTile} * (layer.head_size + slices * kSlice) : 0);
  if (scratch) *scratch = carved;
  return used;
}

/// Tiles in the cache, found through the row's block table.
template <class E>
BH_INLINE const E* cached_tile(const CacheView& cache, const int32_t* blocks, int head, int key) {
  const int block = key / cache.block_size;
  const int tile = key % cache.block_size / kTile;
  return reinterpret_cast<const E*>(cache.tile(blocks[block], head, tile));
}

/// A range of key positions for one KV head.
struct Span {
  int begin;
  int end;
  int head;         ///< KV head, counted within the item
  int max_rows;     ///< query rows that a micro-kernel takes at most
  int key_group;    ///< tiles that all rows pass before the next ones
  int value_slice;  ///< columns likewise
};

/// Keys and values of a span.
template <class E>
struct SpanTiles {
  const E* const* keys;
  Values<E> values;
  const E* const* next;  ///< keys of the span to come, for prefetching
};

/// Some query rows that one micro-kernel takes, and which keys of a span they see.
struct RowChunk {
  int first_row;
  int rows;
  int first;  ///< keys, counted from the span's begin
  int end;

  [[gnu::always_inline]] int first_tile() const { return first / kTile; }
  [[gnu::always_inline]] int end_tile() const { return (end + kTile - 1) / kTile; }
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

/// Calls visit(chunk) for chunks of the item's rows, as even as they can be, that see some key of
/// the span.
template <class Visit>
BH_INLINE void for_each_chunk(const AttendContext& context, const AttendItem& item,
                              const AttendScratch& scratch, const Span& span, Visit&& visit) {
  const int group = context.layer->group_size;
  const int chunks = (scratch.rows + span.max_rows - 1) / span.max_rows;
  int row = 0;
  for (int c = 0; c < chunks; ++c) {
    const int rows = (scratch.rows - row) / (chunks - c);
    // Tokens of a row ascend in position, and so do both ends of what they see; tokens of several
    // rows see all of the span.
    const int first = max_int(context.token(item, row / group).first, span.begin);
    const int end = min_int(context.token(item, (row + rows - 1) / group).end, span.end);
    if (first < end) visit(RowChunk{row, rows, first - span.begin, end - span.begin});
    row += rows;
  }
}

template <class E, int kRows, bool kAhead>
static void score_span(const AttendContext& context, const AttendItem& item,
                       const AttendScratch& scratch, const Span& span, const E* const* keys) {
  const int size = context.layer->head_size;
  constexpr int kStride = kMaxSpan * kTile;
  const float* query = scratch.query + int64_t{span.head} * scratch.rows * size;
  const int num_tiles = (span.end - span.begin + kTile - 1) / kTile;
  for (int group = 0; group < num_tiles; group += span.key_group) {
    for_each_chunk(context, item, scratch, span, [&](const RowChunk& chunk) {
      const int first = max_int(group, chunk.first_tile());
      const int count = min_int(group + span.key_group, chunk.end_tile()) - first;
      with_rows<kRows>(chunk.rows, [&](auto rows) {
        score_rows<E, decltype(rows)::kCount, kAhead>(
            query + chunk.first_row * size, size, keys + first, count,
            scratch.scores + chunk.first_row * kStride + first * kTile, kStride);
      });
    });
  }
}

static void weigh_span(const AttendContext& context, const AttendItem& item,
                       const AttendScratch& scratch, const Span& span) {
  const LayerView& layer = *context.layer;
  const int group = layer.group_size;
  for_each_chunk(context, item, scratch, span, [&](const RowChunk& chunk) {
    const int first = chunk.first_tile() * kTile;
    const int count = chunk.end_tile() * kTile - first;
    for (int row = chunk.first_row; row < chunk.first_row + chunk.rows; ++row) {
      const int head = (item.first_head + span.head) * group + row % group;
      const ScoreTransform transform = {layer.logits_soft_cap,
                                        layer.alibi_slopes ? layer.alibi_slopes[head] : 0};
      scratch.factors[row] =
          softmax_update(transform, context.token(item, row / group), span.begin + first, count,
                         scratch.scores + row * kMaxSpan * kTile + first,
                         scratch.states[int64_t{span.head} * scratch.rows + row]);
    }
  });
}

template <class E, int kRows, bool kAhead>
static void accumulate_span(const AttendContext& context, const AttendItem& item,
                            const AttendScratch& scratch, const Span& span,
                            const SpanTiles<E>& tiles) {
  const int size = context.layer->head_size;
  constexpr int kStride = kMaxSpan * kTile;
  float* sums = scratch.sums + int64_t{span.head} * scratch.rows * size;
  for (int column = 0; column < size; column += span.value_slice) {
    const int end_column = min_int(column + span.value_slice, size);
    for_each_chunk(context, item, scratch, span, [&](const RowChunk& chunk) {
      with_rows<kRows>(chunk.rows, [&](auto rows) {
        accumulate_rows<E, decltype(rows)::kCount, kAhead>(
            scratch.scores + chunk.first_row * kStride, kStride, tiles.values, tiles.next,
            chunk.first, chunk.end, size, column, end_column, scratch.factors + chunk.first_row,
            sums + chunk.first_row * size);
      });
    });
  }
}

template <class E, int kRows, bool kAhead>
BH_INLINE void attend_span(const AttendContext& context, const AttendItem& item,
                           const AttendScratch& scratch, const Span& span,
                           const SpanTiles<E>& tiles) {
  score_span<E, kRows, kAhead>(context, item, scratch, span, tiles.keys);
  weigh_span(context, item, scratch, span);
  accumulate_span<E, kRows, kAhead>(context, item, scratch, span, tiles);
}

/// All spans of the item, read where the cache has them: every head of a span, then the next span,
/// so that blocks stream by whole.
template <class E>
static void attend_direct(const AttendContext& context, const AttendItem& item,
                          const AttendScratch& scratch) {
  const int size = context.layer->head_size;
  const int32_t* blocks = context.step->blocks(context.step->rows[item.row]);
  const int last_tile = (item.end_key - 1) / kTile * kTile;
  const E* tiles[2][kDirectSpan];
  const E* values[kDirectSpan];
  auto find_tiles = [&](int begin, int head, const E** found) {
    for (int i = 0; i < kDirectSpan; ++i) {
      found[i] = cached_tile<E>(*context.cache, blocks, item.first_head + head,
                                min_int(begin + i * kTile, last_tile));
    }
  };
  int now = 0;
  if (item.first_key < item.end_key) find_tiles(item.first_key, 0, tiles[now]);
  for (int begin = item.first_key; begin < item.end_key; begin += kDirectSpan * kTile) {
    const int end = min_int(begin + kDirectSpan * kTile, item.end_key);
    for (int head = 0; head < item.num_heads; ++head, now = 1 - now) {
      const bool last_head = head + 1 == item.num_heads;
      find_tiles(last_head ? begin + kDirectSpan * kTile : begin, last_head ? 0 : head + 1,
                 tiles[1 - now]);
      for (int i = 0; i < kDirectSpan; ++i) values[i] = tiles[now][i] + kTile * size;
      attend_span<E, kDirectRows, true>(context, item, scratch,
                                        {begin, end, head, kDirectRows, kDirectSpan, size},
                                        {tiles[now], {values, size, kSlice}, tiles[1 - now]});
    }
  }
}

/// Widens a tile into place `index` of the panel.
template <class E>
BH_INLINE void pack_tile(const E* tile, int head_size, int index, const AttendScratch& scratch) {
  load_row(tile, kTile * head_size, scratch.panel + index * kTile * head_size);
  float* values = scratch.panel + kPanelSpan * kTile * head_size;
  for (int t = 0; t < kTile; ++t) {
    const E* value = tile + (kTile + t) * head_size;
    for (int column = 0; column < head_size; column += kSlice) {
      load_row(value + column, min_int(kSlice, head_size - column),
               values + column * kPanelSpan * kTile + (index * kTile + t) * kSlice);
    }
  }
}

/// Makes a tile of the row's own keys and values; positions from `count` on are zero.
template <class T>
BH_INLINE void make_tile(const LayerView& layer, const StepPart& part, const StepRow& row,
                         int kv_head, int key, int count, float* heads, Float32* tile) {
  const int size = layer.head_size;
  const int64_t stride = int64_t{layer.num_kv_heads} * size;
  for (int t = 0; t < kTile; ++t) {
    float* head = heads + t * size;
    float* value = &tile[(kTile + t) * size].value;
    if (t < count) {
      const int64_t token = key + t;
      load_head<T>(layer, part, part.key, (row.key + token) * stride + kv_head * size,
                   row.positions + token, head);
      load_row(static_cast<const T*>(part.value) + (row.value + token) * stride + kv_head * size,
               size, value);
    } else {
      for (int d = 0; d < size; ++d) head[d] = value[d] = 0;
    }
  }
  store_keys(heads, size, 1, tile);
}

/// All spans of the item, widened to float first; `pack(head, key, index)` fills the panel.
template <class Pack>
BH_INLINE void attend_packed(const AttendContext& context, const AttendItem& item,
                             const AttendScratch& scratch, Pack&& pack) {
  const int size = context.layer->head_size;
  auto* panel = reinterpret_cast<const Float32*>(scratch.panel);
  const Float32* keys[kPanelSpan];
  const Float32* values[kPanelSpan];
  for (int i = 0; i < kPanelSpan; ++i) {
    keys[i] = panel + i * kTile * size;
    values[i] = panel + kPanelSpan * kTile * size + i * kTile * kSlice;
  }
  for (int begin = item.first_key; begin < item.end_key; begin += kPanelSpan * kTile) {
    const int end = min_int(begin + kPanelSpan * kTile, item.end_key);
    for (int head = 0; head < item.num_heads; ++head) {
      for (int key = begin; key < end; key += kTile) {
        pack(item.first_head + head, key, (key - begin) / kTile);
      }
      attend_span<Float32, kMaxRows, false>(
          context, item, scratch, {begin, end, head, kMaxRows, kKeyGroup, kSlice},
          {keys, {values, kSlice, kSlice * kPanelSpan * kTile}, keys});
    }
  }
}

template <class T>
static void load_queries(const AttendContext& context, const AttendItem& item,
                         const AttendScratch& scratch) {
  const LayerView& layer = *context.layer;
  const int size = layer.head_size;
  float* to = scratch.query;
  for (int h = 0; h < item.num_heads; ++h) {
    for (int t = 0; t < item.num_tokens; ++t) {
      const QueryToken& token = context.token(item, t);
      const StepRow& row = context.step->rows[token.row];
      const StepPart& part = context.step->part(row);
      for (int g = 0; g < layer.group_size; ++g, to += size) {
        const int64_t head = (item.first_head + h) * layer.group_size + g;
        load_head<T>(layer, part, part.query,
                     ((row.query + token.index) * layer.num_heads + head) * size,
                     row.positions + token.index, to);
        for (int d = 0; d < size; d += kWidth) {
          store(to + d, load(to + d) * broadcast(layer.query_scale));
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
  const float factor = state.denominator == 0 ? 0 : keep * layer.v_scale / state.denominator;
  const Vec divisor = broadcast(layer.output_scale > 0 ? layer.output_scale : 1);
  with_dtype(layer.output_dtype, [&](auto element) {
    auto* to = static_cast<decltype(element)*>(part.output) + out * layer.head_size;
    for (int d = 0; d < layer.head_size; d += kWidth) {
      store(to + d, load(sums + d) * broadcast(factor) / divisor);
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
  for (int64_t i = 0; i < all_rows; ++i) scratch.states[i] = {-kInfinity, 0};

  const StepRow& row = context.step->rows[item.row];
  if (!context.cache) {
    auto* tile = reinterpret_cast<Float32*>(scratch.tile);
    with_tensor_dtype(layer.dtype, [&](auto t) {
      attend_packed(context, item, scratch, [&](int head, int key, int index) {
        make_tile<decltype(t)>(layer, context.step->part(row), row, head, key,
                               min_int(row.num_keys - key, kTile), scratch.heads, tile);
        pack_tile(tile, layer.head_size, index, scratch);
      });
    });
  } else if (packs(layer, context.cache, item)) {
    const int32_t* blocks = context.step->blocks(row);
    with_dtype(context.cache->dtype, [&](auto e) {
      attend_packed(context, item, scratch, [&](int head, int key, int index) {
        pack_tile(cached_tile<decltype(e)>(*context.cache, blocks, head, key), layer.head_size,
                  index, scratch);
      });
    });
  } else {
    with_dtype(context.cache->dtype,
               [&](auto e) { attend_direct<decltype(e)>(context, item, scratch); });
  }

  for (int h = 0; h < item.num_heads; ++h) {
    for (int r = 0; r < scratch.rows; ++r) {
      const QueryToken& token = context.token(item, r / layer.group_size);
      const int head = (item.first_head + h) * layer.group_size + r % layer.group_size;
      const int64_t i = int64_t{h} * scratch.rows + r;
      float* sums = scratch.sums + i * layer.head_size;
      if (token.num_partials == 1) {
        write_output(context, token, head, scratch.states[i], sums);
      } else {
        const int64_t partial = (token.first_partial + item.piece) * layer.num_heads + head;
        __builtin_memcpy(context.partial_sums + partial * layer.head_size, sums,
                         sizeof(float) * static_cast<unsigned>(layer.head_size));
        context.partial_state[partial * 2] = scratch.states[i].maximum;
        context.partial_state[partial * 2 + 1] = scratch.states[i].denominator;
      }
    }
  }
}

}  // namespace broadhead::cpu::BH_TIER
