// SPDX-License-Identifier: Apache-2.0
// How an item's queries come into its scratch. Included by kernel sources only (see vec.h).
#pragma once

#include "cpu/attend_span.h"
#include "cpu/rotary.h"

namespace broadhead::cpu::BH_TIER {

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

/// Calls keep(to, d, v) with dimensions from `d` on of each of the item's queries, rotated: their
/// place in the scratch, `stride` floats from one to the next, is `to`.
template <class T, class Keep>
BH_INLINE void for_each_query(const AttendContext& context, const AttendItem& item,
                              const AttendScratch& scratch, int stride, Keep&& keep) {
  const LayerView& layer = *context.layer;
  const Step& step = *context.step;
  const int size = layer.head_size;
  T* rotated = reinterpret_cast<T*>(scratch.heads);
  for (int h = 0; h < item.num_heads; ++h) {
    float* to = scratch.query + int64_t{h} * scratch.padded_rows * stride;
    for (int t = 0; t < item.num_tokens; ++t) {
      // Heads of other KV heads lie between those of two tokens: more than hardware looks ahead.
      if (t + kTokensAhead < item.num_tokens) {
        fetch(query_heads<T>(context, item, context.token(item, t + kTokensAhead), h),
              layer.group_size * size);
      }
      const QueryToken& token = context.token(item, t);
      const StepRow& row = step.rows[token.row];
      const T* query = query_heads<T>(context, item, token, h);
      for (int g = 0; g < layer.group_size; ++g, query += size, to += stride) {
        const T* from = query;
        if (layer.rotary_dim > 0) {
          rotate(layer, step.part(row), query, row.positions + token.index, rotated);
          from = rotated;
        }
        for (int d = 0; d < size; d += kWidth) keep(to, d, load(from + d));
      }
    }
  }
}

/// Loads the item's queries and scales them.
template <class T>
static void load_queries(const AttendContext& context, const AttendItem& item,
                         const AttendScratch& scratch) {
  const Vec scale = broadcast(context.layer->score_scale);
  for_each_query<T>(context, item, scratch, context.layer->head_size,
                    [&](float* to, int d, Vec v) { store(to + d, v * scale); });
}

/// Loads the item's queries as they are, for products of pairs.
BH_INLINE void load_query_pairs(const AttendContext& context, const AttendItem& item,
                                const AttendScratch& scratch) {
  for_each_query<BFloat16>(
      context, item, scratch, context.layer->head_size,
      [&](float* to, int d, Vec v) { store(reinterpret_cast<BFloat16*>(to) + d, v); });
}

/// Loads the item's queries as terms, [rows][terms][dimensions, and zeros up to what matrix
/// registers take], and returns whether their sums are the queries: an infinity is not to be split.
template <class T>
static bool load_query_terms(const AttendContext& context, const AttendItem& item,
                             const AttendScratch& scratch) {
  const int size = context.layer->head_size;
  const int padded_size = round_to_depth(size);
  constexpr int kCount = kTerms<T>;
  Vec sum = {};
  for_each_query<T>(context, item, scratch, padded_size, [&](float* to, int d, Vec v) {
    BFloat16* terms = reinterpret_cast<BFloat16*>(to);
    if constexpr (kCount > 1) sum += v * Vec{};
    for (int term = 0; term < kCount; ++term, terms += padded_size) {
      store(terms + d, v);
      v -= load(terms + d);
      if (d + kWidth == size) {
        for (int i = size; i < padded_size; i += kWidth) store(terms + i, Vec{});
      }
    }
  });
  return reduce_add(sum) == 0;
}

}  // namespace broadhead::cpu::BH_TIER
