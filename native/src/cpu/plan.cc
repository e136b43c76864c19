// SPDX-License-Identifier: Apache-2.0
#include "cpu/plan.h"

#include <algorithm>
#include <limits>

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

QueryToken visible_keys(const LayerSpec& spec, const StepRow& row, int64_t row_index, int index) {
  QueryToken token{};
  token.row = static_cast<int32_t>(row_index);
  token.index = index;
  token.position = spec.is_causal() ? row.seq_len - row.num_queries + index : index;
  const int64_t window =
      spec.sliding_window > 0 ? spec.sliding_window : std::numeric_limits<int32_t>::max();
  const int64_t first = int64_t{token.position} - window + 1;
  const int64_t end = spec.is_causal() ? int64_t{token.position} + 1 : token.position + window;
  token.first = static_cast<int32_t>(std::max<int64_t>(first, 0));
  token.end = static_cast<int32_t>(std::min<int64_t>(end, row.seq_len));
  token.first = std::min(token.first, token.end);
  token.num_partials = 1;
  return token;
}

/// Tokens of a row that one item takes.
int tokens_per_item(const LayerSpec& spec, const StepRow& row) {
  if (row.num_queries * spec.group_size() <= kDecodeRows) return row.num_queries;
  return std::max(1, kPrefillRows / spec.group_size());
}

double cost(const LayerSpec& spec, int tokens, int keys) {
  return (tokens * spec.group_size() + kReadCost) * keys;
}

}  // namespace

void Plan::plan_update(const Step& step, int threads) {
  updates_.clear();
  int64_t total = 0;
  for (int64_t r = 0; r < step.num_rows; ++r) total += step.rows[r].num_keys;
  const int64_t share = (total + threads * kItemsPerThread - 1) / (threads * kItemsPerThread);
  const int run = static_cast<int>(
      std::max<int64_t>(kLeastUpdate, (share + kLeastUpdate - 1) / kLeastUpdate * kLeastUpdate));
  for (int64_t r = 0; r < step.num_rows; ++r) {
    const int count = step.rows[r].num_keys;
    for (int first = 0; first < count; first += run) {
      updates_.push_back({r, first, std::min(first + run, count)});
    }
  }
}

void Plan::plan_attention(const LayerSpec& spec, const Step& step, int threads) {
  tokens_.clear();
  items_.clear();
  items_of_row_.assign(static_cast<size_t>(step.num_rows), 0);
  first_token_of_row_.clear();
  num_partials_ = 0;
  double total = 0;
  for (int64_t r = 0; r < step.num_rows; ++r) {
    const StepRow& row = step.rows[r];
    first_token_of_row_.push_back(static_cast<int64_t>(tokens_.size()));
    for (int i = 0; i < row.num_queries; ++i) {
      tokens_.push_back(visible_keys(spec, row, r, i));
      total += cost(spec, 1, tokens_.back().end - tokens_.back().first) * spec.num_kv_heads;
    }
  }
  first_token_of_row_.push_back(static_cast<int64_t>(tokens_.size()));
  const double budget = threads > 1 ? total / (threads * kItemsPerThread)
                                    : std::numeric_limits<double>::infinity();
  for (int64_t r = 0; r < step.num_rows; ++r) divide_row(spec, step, r, budget);
}

void Plan::divide_row(const LayerSpec& spec, const Step& step, int64_t r, double budget) {
  const StepRow& row = step.rows[r];
  if (row.num_queries == 0) return;
  const int run = tokens_per_item(spec, row);
  const bool decode = run == row.num_queries && run * spec.group_size() <= kDecodeRows;
  const int heads_per_item = decode ? spec.num_kv_heads : 1;
  const int64_t first_token = first_token_of_row_[static_cast<size_t>(r)];
  // Later tokens see more keys: they go first, so that the last items are small ones.
  for (int end = row.num_queries; end > 0; end -= run) {
    const int begin = std::max(0, end - run);
    QueryToken* tokens = tokens_.data() + first_token + begin;
    const int count = end - begin;
    const int first_key = round_down(tokens[0].first);
    const int end_key = std::max(tokens[count - 1].end, first_key);
    const int keys = end_key - first_key;
    const double pieces_wanted = cost(spec, count, keys) * heads_per_item / budget;
    const int pieces = std::max(
        1, std::min(static_cast<int>(std::min(pieces_wanted + 0.5, 1e6)), keys / kLeastKeys));
    const int keys_per_piece = round_down((keys + pieces - 1) / pieces + kTile - 1);
    for (int t = 0; t < count; ++t) {
      tokens[t].num_partials = pieces;
      tokens[t].first_partial = num_partials_ + int64_t{t} * pieces;
    }
    if (pieces > 1) num_partials_ += int64_t{count} * pieces;
    for (int piece = 0; piece < pieces; ++piece) {
      AttendItem item{};
      item.first_token = first_token + begin;
      item.num_tokens = count;
      item.row = static_cast<int32_t>(r);
      item.first_key = std::min(first_key + piece * keys_per_piece, round_down(end_key));
      item.end_key = piece + 1 == pieces ? end_key
                                         : std::min(item.first_key + keys_per_piece, end_key);
      item.num_heads = heads_per_item;
      item.piece = piece;
      for (int head = 0; head < spec.num_kv_heads; head += heads_per_item) {
        item.first_head = head;
        items_.push_back(item);
        ++items_of_row_[static_cast<size_t>(r)];
      }
    }
  }
}

}  // namespace broadhead::cpu
