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
constexpr int kPackedSpan = 8;
constexpr int kMaxSpan = kPackedSpan;

/// Above this many query rows it pays to widen a tile once instead of in every micro-kernel.
constexpr int kPackRows = 2 * kMaxRows;

/// An item's scratch, carved from one run of floats.
struct AttendScratch {
  int rows;        ///< query rows of a KV head: tokens * group_size
  float* query;    ///< [heads][rows][head_size], scaled
  float* sums;     ///< [heads][rows][head_size]
  SoftmaxState* states;  ///< [heads][rows]
  float* scores;   ///< [kMaxRows][kMaxSpan * kTile]
  float* heads;    ///< [kTile][head_size]: keys on their way into a panel
  Float32* panel;  ///< [kPackedSpan] tiles
};

BH_INLINE bool packs(const LayerView& layer, const CacheView* cache, const AttendItem& item) {
  if (!cache) return true;
  return cache->dtype != BH_FLOAT32 && item.num_tokens * layer.group_size > kPackRows;
}

BH_INLINE int64_t carve(const LayerView& layer, const CacheView* cache, const AttendItem& item,
                        float* floats, AttendScratch* scratch) {
  const int64_t rows = int64_t{item.num_tokens} * layer.group_size;
  const int64_t all_rows = rows * item.num_heads;
  const int64_t tile = int64_t{2} * kTile * layer.head_size;
  const int64_t sizes[] = {all_rows * layer.head_size, all_rows * layer.head_size,
                           int64_t{kMaxRows} * kMaxSpan * kTile,
                           packs(layer, cache, item) ? kPackedSpan * tile : 0,
                           cache ? 0 : kTile * layer.head_size, all_rows * 2};
  float* at[6];
  int64_t used = 0;
  for (int i = 0; i < 6; ++i) {
    at[i] = floats + used;
    used += (sizes[i] + kTile - 1) / kTile * kTile;  // whole cache lines
  }
  if (scratch) {
    *scratch = {static_cast<int>(rows),
                at[0],
                at[1],
                reinterpret_cast<SoftmaxState*>(at[5]),
                at[2],
                at[4],
                reinterpret_cast<Float32*>(at[3])};
  }
  return used;
}

/// Tiles in the cache, found through the row's block table.
template <class E>
BH_INLINE const E* cached_tile(const CacheView& cache, const int32_t* blocks, int head, int key) {
  const int block = key / cache.block_size;
  const int tile = key % cache.block_size / kTile;
  return reinterpret_cast<const E*>(cache.tile(blocks[block], head, tile));
}

template <class E>
BH_INLINE void widen_tile(const E* tile, int head_size, Float32* panel) {
  load_row(tile, 2 * kTile * head_size, &panel->value);
}

/// Makes a tile of the row's own keys and values; positions from `count` on are zero.
template <class T>
BH_INLINE void pack_new_tokens(const LayerView& layer, const Step& step, const StepRow& row,
                               int kv_head, int key, int count, float* heads, Float32* panel) {
  const int size = layer.head_size;
  const int64_t stride = int64_t{layer.num_kv_heads} * size;
  for (int t = 0; t < kTile; ++t) {
    float* head = heads + t * size;
    float* value = &panel[(kTile + t) * size].value;
    if (t < count) {
      const int64_t token = key + t;
      load_head<T>(layer, step, step.key, (row.key + token) * stride + kv_head * size,
                   row.positions + token, head);
      load_row(static_cast<const T*>(step.value) + (row.value + token) * stride + kv_head * size,
               size, value);
    } else {
      for (int d = 0; d < size; ++d) head[d] = value[d] = 0;
    }
  }
  store_keys(heads, size, 1, panel);
}

/// Tiles of a span for one KV head, and of the one to come, for prefetching.
template <class E>
struct Span {
  const E* const* tiles;
  const E* const* next;
  int begin;  ///< key positions
  int end;
  int head;  ///< KV head, counted within the item
};

/// One span for kRows query rows from `first_row` on.
template <class E, int kRows, bool kAhead>
BH_INLINE void attend_rows(const AttendContext& context, const AttendItem& item,
                           const AttendScratch& scratch, const Span<E>& span, int first_row) {
  const LayerView& layer = *context.layer;
  const int size = layer.head_size;
  const int group = layer.group_size;
  // Tokens of a row ascend in position, and so do both ends of what they see; tokens of several
  // rows see all of the span.
  const int first = max_int(context.token(item, first_row / group).first, span.begin);
  const int end = min_int(context.token(item, (first_row + kRows - 1) / group).end, span.end);
  if (first >= end) return;

  const int first_tile = (first - span.begin) / kTile;
  const int num_tiles = (end - span.begin + kTile - 1) / kTile - first_tile;
  const int base = span.begin + first_tile * kTile;
  const E* const* tiles = span.tiles + first_tile;
  constexpr int kStride = kMaxSpan * kTile;
  const int64_t row = int64_t{span.head} * scratch.rows + first_row;
  score_rows<E, kRows, kAhead>(scratch.query + row * size, size, tiles, num_tiles, scratch.scores,
                               kStride);
  float factors[kRows];
  for (int r = 0; r < kRows; ++r) {
    const int head = (item.first_head + span.head) * group + (first_row + r) % group;
    const ScoreTransform transform = {layer.logits_soft_cap,
                                      layer.alibi_slopes ? layer.alibi_slopes[head] : 0};
    factors[r] = softmax_update(transform, context.token(item, (first_row + r) / group), base, num_tiles * kTile,
                                scratch.scores + r * kStride, scratch.states[row + r]);
  }
  accumulate_rows<E, kRows, kAhead>(scratch.scores, kStride, tiles, span.next + first_tile,
                                    first - base, end - base, size, factors,
                                    scratch.sums + row * size);
}

template <class E, int kRows, bool kAhead>
BH_INLINE void attend_chunk(int rows, const AttendContext& context, const AttendItem& item,
                            const AttendScratch& scratch, const Span<E>& span, int first_row) {
  if (rows == kRows) {
    attend_rows<E, kRows, kAhead>(context, item, scratch, span, first_row);
  } else if constexpr (kRows > 1) {
    attend_chunk<E, kRows - 1, kAhead>(rows, context, item, scratch, span, first_row);
  }
}

/// One span for all query rows of its KV head, in chunks as even as they can be.
template <class E, bool kAhead>
static void attend_span(const AttendContext& context, const AttendItem& item,
                        const AttendScratch& scratch, const Span<E>& span) {
  const int chunks = (scratch.rows + kMaxRows - 1) / kMaxRows;
  int row = 0;
  for (int c = 0; c < chunks; ++c) {
    const int rows = (scratch.rows - row) / (chunks - c);
    attend_chunk<E, kMaxRows, kAhead>(rows, context, item, scratch, span, row);
    row += rows;
  }
}

/// All spans of the item, read where the cache has them: every head of a span, then the next span,
/// so that blocks stream by whole.
template <class E>
static void attend_direct(const AttendContext& context, const AttendItem& item,
                          const AttendScratch& scratch) {
  const int32_t* blocks = context.step->blocks + context.step->rows[item.row].blocks;
  const int last_tile = (item.end_key - 1) / kTile * kTile;
  auto find_tiles = [&](int begin, int head, const E** tiles) {
    for (int i = 0; i < kDirectSpan; ++i) {
      tiles[i] = cached_tile<E>(*context.cache, blocks, item.first_head + head,
                                min_int(begin + i * kTile, last_tile));
    }
  };
  const E* tiles[2][kDirectSpan];
  int now = 0;
  if (item.first_key < item.end_key) find_tiles(item.first_key, 0, tiles[now]);
  for (int begin = item.first_key; begin < item.end_key; begin += kDirectSpan * kTile) {
    const int end = min_int(begin + kDirectSpan * kTile, item.end_key);
    for (int head = 0; head < item.num_heads; ++head, now = 1 - now) {
      const bool last_head = head + 1 == item.num_heads;
      find_tiles(last_head ? begin + kDirectSpan * kTile : begin, last_head ? 0 : head + 1,
                 tiles[1 - now]);
      attend_span<E, true>(context, item, scratch, {tiles[now], tiles[1 - now], begin, end, head});
    }
  }
}

/// All spans of the item, widened to float first; `fill(head, key, panel)` makes one tile.
template <class Fill>
BH_INLINE void attend_packed(const AttendContext& context, const AttendItem& item,
                             const AttendScratch& scratch, Fill&& fill) {
  const int tile_floats = 2 * kTile * context.layer->head_size;
  const Float32* tiles[kPackedSpan];
  for (int i = 0; i < kPackedSpan; ++i) {
    tiles[i] = scratch.panel + i * tile_floats;
  }
  for (int begin = item.first_key; begin < item.end_key; begin += kPackedSpan * kTile) {
    const int end = min_int(begin + kPackedSpan * kTile, item.end_key);
    for (int head = 0; head < item.num_heads; ++head) {
      for (int key = begin; key < end; key += kTile) {
        fill(item.first_head + head, key, scratch.panel + (key - begin) / kTile * tile_floats);
      }
      attend_span<Float32, false>(context, item, scratch, {tiles, tiles, begin, end, head});
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
      for (int g = 0; g < layer.group_size; ++g, to += size) {
        const int64_t head = (item.first_head + h) * layer.group_size + g;
        load_head<T>(layer, *context.step, context.step->query,
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
  const Step& step = *context.step;
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
  const int64_t out = (step.rows[token.row].output + token.index) * layer.num_heads + head;
  if (step.lse) {
    step.lse[out] = state.denominator == 0 ? -kInfinity
                                           : state.maximum + __builtin_logf(state.denominator);
  }
  const float factor = state.denominator == 0 ? 0 : keep * layer.v_scale / state.denominator;
  const Vec divisor = broadcast(layer.output_scale > 0 ? layer.output_scale : 1);
  with_dtype(layer.output_dtype, [&](auto element) {
    auto* to = static_cast<decltype(element)*>(step.output) + out * layer.head_size;
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
    with_tensor_dtype(layer.dtype, [&](auto t) {
      attend_packed(context, item, scratch, [&](int head, int key, Float32* panel) {
        pack_new_tokens<decltype(t)>(layer, *context.step, row, head, key,
                                     min_int(row.num_keys - key, kTile), scratch.heads, panel);
      });
    });
  } else if (packs(layer, context.cache, item)) {
    const int32_t* blocks = context.step->blocks + row.blocks;
    with_dtype(context.cache->dtype, [&](auto e) {
      attend_packed(context, item, scratch, [&](int head, int key, Float32* panel) {
        widen_tile(cached_tile<decltype(e)>(*context.cache, blocks, head, key), layer.head_size,
                   panel);
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
