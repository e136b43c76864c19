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

/// Loads the item's queries, rotated, and scales them; or leaves them bfloat16, exact, with zeros
/// up to what matrix registers take.
template <class T>
static void load_queries(const AttendContext& context, const AttendItem& item,
                         const AttendScratch& scratch, bool exact) {
  const LayerView& layer = *context.layer;
  const Step& step = *context.step;
  const int size = layer.head_size;
  const Vec scale = broadcast(layer.score_scale);
  T* rotated = reinterpret_cast<T*>(scratch.heads);
  for (int h = 0; h < item.num_heads; ++h) {
    float* to = scratch.query + int64_t{h} * scratch.padded_rows * size;
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
          if (exact) {
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
        if (exact) {
          for (int d = size; d < round_to_depth(size); d += kWidth) keep(d, Vec{});
        }
      }
    }
  }
}

}  // namespace broadhead::cpu::BH_TIER
