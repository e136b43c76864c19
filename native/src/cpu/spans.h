// SPDX-License-Identifier: Apache-2.0
// The spans of keys that an item takes one after another, and where their tiles are. Included by
// kernel sources only (see vec.h).
#pragma once

#include "cpu/attend_span.h"

namespace broadhead::cpu::BH_TIER {

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

}  // namespace broadhead::cpu::BH_TIER
