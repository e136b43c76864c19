// SPDX-License-Identifier: Apache-2.0
#include "cpu/plan.h"

#include <algorithm>
#include <limits>

#include "core/visible_keys.h"

namespace broadhead::cpu {
namespace {

/// Up to so many query rows of a KV head a row of the batch counts as decode: its items take all
/// KV heads, so that whole blocks stream by in order.
constexpr int kDecodeRows = 16;

/// Query rows of a prefill item: enough to repay the widening of a span, few enough for its scores
/// and sums to stay in the second-level cache.
constexpr int kPrefillRows = 96;

/// Items per thread that the work is divided into, so that threads end together.
constexpr int kItemsPerThread = 4;

/// Keys below which an item is not divided further.
constexpr int kLeastKeys = 256;

/// New tokens of an update item.
constexpr int kLeastUpdate = 16;

/// What reading a key costs, in query rows that use it.
constexpr double kReadCost = 4;

int round_down(int x) { return x / kTile * kTile; }

QueryToken query_token(const LayerSpec& spec, const StepRow& row, int64_t row_index, int index) {
  const VisibleKeys keys = visible_keys(spec.is_causal(), spec.window(), row.seq_len,
                                        row.num_queries, static_cast<int32_t>(index));
  QueryToken token{};
  token.row = static_cast<int32_t>(row_index);
  token.index = index;
  token.position = keys.position;
  token.first = keys.first;
  token.end = keys.end;
  return token;
}

bool is_decode(const LayerSpec& spec, int num_tokens) {
  return int64_t{num_tokens} * spec.group_size() <= kDecodeRows;
}

/// Calls visit(begin, count) for the runs of `num_tokens` tokens that items take, the last first:
/// later tokens see more keys, so that the last items are small ones.
template <class Visit>
void for_each_run(const LayerSpec& spec, int num_tokens, Visit&& visit) {
  const int run =
      is_decode(spec, num_tokens) ? num_tokens : std::max(1, kPrefillRows / spec.group_size());
  for (int end = num_tokens; end > 0; end -= run) {
    const int begin = std::max(0, end - run);
    visit(begin, end - begin);
  }
}

}  // namespace

void Plan::plan_update(const Step& step, int threads) {
  updates_.clear();
  new_tokens_ = 0;
  for (int64_t r = 0; r < step.num_rows; ++r) new_tokens_ += step.rows[r].num_keys;
  const int64_t share = (new_tokens_ + threads * kItemsPerThread - 1) / (threads * kItemsPerThread);
  const int64_t run =
      std::max<int64_t>(kLeastUpdate, (share + kLeastUpdate - 1) / kLeastUpdate * kLeastUpdate);
  for (int64_t r = 0; r < step.num_rows; ++r) {
    const int64_t count = step.rows[r].num_keys;
    for (int64_t first = 0; first < count; first += run) {
      updates_.push_back(
          {r, static_cast<int>(first), static_cast<int>(std::min(first + run, count))});
    }
  }
}

void Plan::plan_attention(const LayerSpec& spec, const Step& step, int block_size, int threads) {
  items_of_row_.assign(static_cast<size_t>(step.num_rows), 0);
  shared_keys_.assign(static_cast<size_t>(step.num_rows), 0);
  units_.clear();
  find_tokens(spec, step);
  if (spec.uses_cache()) share_prefixes(spec, step, block_size);
  add_rows(spec, step);
  divide(spec, threads);
}

void Plan::find_tokens(const LayerSpec& spec, const Step& step) {
  tokens_.clear();
  order_.clear();
  first_token_of_row_.clear();
  keys_seen_ = 0;
  for (int64_t r = 0; r < step.num_rows; ++r) {
    const StepRow& row = step.rows[r];
    first_token_of_row_.push_back(static_cast<int64_t>(tokens_.size()));
    for (int i = 0; i < row.num_queries; ++i) {
      order_.push_back(static_cast<int32_t>(tokens_.size()));
      tokens_.push_back(query_token(spec, row, r, i));
      keys_seen_ += tokens_.back().end - tokens_.back().first;
    }
  }
  first_token_of_row_.push_back(static_cast<int64_t>(tokens_.size()));
}

/// Makes one unit of what decode rows share whose block tables begin alike.
void Plan::share_prefixes(const LayerSpec& spec, const Step& step, int block_size) {
  prefixes_.clear();
  for (int64_t r = 0; r < step.num_rows; ++r) {
    const StepRow& row = step.rows[r];
    if (row.num_queries == 0 || !is_decode(spec, row.num_queries)) continue;
    const int64_t first = first_token_of_row_[static_cast<size_t>(r)];
    const int64_t end = first_token_of_row_[static_cast<size_t>(r) + 1];
    if (tokens_[static_cast<size_t>(end - 1)].first > 0) continue;
    prefixes_.add(step, r, tokens_[static_cast<size_t>(first)].end);
  }
  prefixes_.for_each(step, block_size, [&](const auto* group, int64_t count, int keys) {
    const auto first = static_cast<int64_t>(order_.size());
    for (int64_t i = 0; i < count; ++i) {
      const auto row = static_cast<size_t>(group[i].row);
      shared_keys_[row] = keys;
      for (int64_t t = first_token_of_row_[row]; t < first_token_of_row_[row + 1]; ++t) {
        order_.push_back(static_cast<int32_t>(t));
      }
    }
    const auto num_tokens = static_cast<int>(static_cast<int64_t>(order_.size()) - first);
    for_each_run(spec, num_tokens, [&](int begin, int run) {
      units_.push_back({first + begin, run, static_cast<int32_t>(group[0].row), 0, keys,
                        is_decode(spec, num_tokens) ? spec.num_kv_heads : 1, true});
    });
  });
}

/// Adds what each row's tokens see beyond a shared prefix.
void Plan::add_rows(const LayerSpec& spec, const Step& step) {
  for (int64_t r = 0; r < step.num_rows; ++r) {
    const int num_queries = step.rows[r].num_queries;
    const int64_t first_token = first_token_of_row_[static_cast<size_t>(r)];
    for_each_run(spec, num_queries, [&](int begin, int run) {
      const QueryToken* tokens = tokens_.data() + first_token + begin;
      const int first_key =
          std::max(round_down(tokens[0].first), shared_keys_[static_cast<size_t>(r)]);
      units_.push_back({first_token + begin, run, static_cast<int32_t>(r), first_key,
                        tokens[run - 1].end, is_decode(spec, num_queries) ? spec.num_kv_heads : 1,
                        false});
    });
  }
}

QueryToken& Plan::token_of(const Unit& unit, int i) {
  return tokens_[static_cast<size_t>(order_[static_cast<size_t>(unit.first_token + i)])];
}

/// Divides the keys of units so that every item costs about the same. Heads are divided already
/// where there are many query rows.
void Plan::divide(const LayerSpec& spec, int threads) {
  auto cost = [&spec](const Unit& unit) {
    return (unit.num_tokens * spec.group_size() + kReadCost) * (unit.end_key - unit.first_key) *
           unit.heads_per_item;
  };
  double total = 0;
  keys_read_ = 0;
  for (const Unit& unit : units_) {
    total += cost(unit) * spec.num_kv_heads / unit.heads_per_item;
    keys_read_ += unit.end_key - unit.first_key;
  }
  const double budget =
      threads > 1 ? total / (threads * kItemsPerThread) : std::numeric_limits<double>::infinity();
  auto pieces_of = [&](const Unit& unit) {
    const double wanted = std::min(1e6, cost(unit) / budget + 0.5);  // 1e6 if it is 0 / 0
    return std::max(
        1, std::min(static_cast<int>(wanted), (unit.end_key - unit.first_key) / kLeastKeys));
  };
  // A token's partial results lie side by side, those of a shared prefix first.
  for (const Unit& unit : units_) {
    for (int t = 0; t < unit.num_tokens; ++t) {
      token_of(unit, t).num_partials += pieces_of(unit);
    }
  }
  num_partials_ = 0;
  for (QueryToken& token : tokens_) {
    token.first_partial = num_partials_;
    if (token.num_partials > 1) num_partials_ += token.num_partials;
  }
  items_.clear();
  // A head's keys and values stay in the caches while all units of a row attend to them.
  for (auto begin = units_.begin(), end = begin; begin != units_.end(); begin = end) {
    end = std::find_if(begin, units_.end(), [&](const Unit& unit) {
      return unit.row != begin->row || unit.heads_per_item != begin->heads_per_item;
    });
    for (int head = 0; head < spec.num_kv_heads; head += begin->heads_per_item) {
      for (auto unit = begin; unit != end; ++unit) add_items(*unit, head, pieces_of(*unit));
    }
  }
}

/// Adds an item for each piece of the unit's keys.
void Plan::add_items(const Unit& unit, int first_head, int pieces) {
  const int keys = unit.end_key - unit.first_key;
  const int keys_per_piece = round_down((keys + pieces - 1) / pieces + kTile - 1);
  const int first_piece = unit.shared ? 0 : token_of(unit, 0).num_partials - pieces;
  AttendItem item{};
  item.first_token = unit.first_token;
  item.num_tokens = unit.num_tokens;
  item.row = unit.row;
  item.first_head = first_head;
  item.num_heads = unit.heads_per_item;
  for (int piece = 0; piece < pieces; ++piece) {
    item.piece = first_piece + piece;
    // Pieces are whole tiles, so that nothing may be left for the last ones.
    item.first_key = std::min(unit.first_key + piece * keys_per_piece, unit.end_key);
    item.end_key = std::min(item.first_key + keys_per_piece, unit.end_key);
    items_.push_back(item);
    int32_t last_row = -1;
    for (int t = 0; t < unit.num_tokens; ++t) {
      const int32_t row = token_of(unit, t).row;
      if (row != last_row) ++items_of_row_[static_cast<size_t>(row)];
      last_row = row;
    }
  }
}

}  // namespace broadhead::cpu
