// SPDX-License-Identifier: Apache-2.0
// Attention of one item: spans of tiles stream by once, for all query rows of a KV head's group.
// Here is where the tiles of spans come from, and how queries come in and results go out. Included
// by kernel sources only (see vec.h).
#pragma once

#include "cpu/attend_matrix.h"
#include "cpu/attend_span.h"
#include "cpu/queries.h"
#include "cpu/spans.h"
#include "cpu/update.h"

namespace broadhead::cpu::BH_TIER {

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

/// `count` heads as float32: as they lie if they are it, or else in `scratch`.
template <class T>
BH_INLINE Heads<Float32> widen(Heads<T> heads, int count, int head_size, Float32* scratch) {
  if constexpr (__is_same(T, Float32)) {
    return heads;
  } else {
    for (int t = 0; t < count; ++t) unscale(heads[t], head_size, 1, scratch + t * head_size);
    return {scratch, head_size};
  }
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
  const Heads<Float32> wide_keys = widen(keys, count, size, widened);
  if (count == kTile) {
    store_keys(wide_keys, size, tile);
  } else {
    __builtin_memset(tile, 0, sizeof(Float32) * 2 * kTile * size);
    for (int t = 0; t < count; ++t) store_key(wide_keys[t], size, tile, t);
  }
  store_values(widen(values, count, size, widened), count, size, tile, 0);
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
  const bool matrices = uses_matrices(layer, context.cache, scratch.rows);
  if (multiplies_pairs(context)) {
    load_query_pairs(context, item, scratch);
  } else if (!matrices) {
    with_tensor_dtype(layer.dtype,
                      [&](auto t) { load_queries<decltype(t)>(context, item, scratch); });
  }
  const int64_t all_rows = int64_t{item.num_heads} * scratch.padded_rows;
  for (int64_t i = 0; i < all_rows * layer.head_size; ++i) scratch.sums[i] = 0;
  for (int64_t i = 0; i < all_rows; ++i) scratch.maxima[i] = -kInfinity;
  for (int64_t i = 0; i < all_rows; ++i) scratch.denominators[i] = 0;

  if (matrices) {
    with_tensor_dtype(layer.dtype, [&](auto t) {
      with_dtype(context.cache->dtype, [&](auto e) {
        using T = decltype(t);
        using E = decltype(e);
        if constexpr (kGoesToMatrices<T> && kGoesToMatrices<E>) {
          attend_matrices<T, E>(context, item, scratch);
        }
      });
    });
  } else if (context.cache) {
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
      const int64_t i = int64_t{h} * scratch.padded_rows + r;
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
