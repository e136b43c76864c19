// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <vector>

#include "core/layer_spec.h"
#include "core/shared_prefix.h"
#include "core/step.h"
#include "cpu/kernels.h"

namespace broadhead::cpu {

/// A run of one row's new tokens to write to the cache.
struct UpdateItem {
  int64_t row;
  int first;
  int end;
};

/// How a step is divided: which tokens see what, and pieces of work of about equal size that
/// threads take one by one. Keeps its memory between steps.
class Plan {
 public:
  /// Plans the writes of the step's new keys and values.
  void plan_update(const Step& step, int threads);

  /// Plans its attention. `block_size` is 0 without a cache.
  void plan_attention(const LayerSpec& spec, const Step& step, int block_size, int threads);

  const std::vector<UpdateItem>& updates() const { return updates_; }
  int64_t new_tokens() const { return new_tokens_; }
  const std::vector<QueryToken>& tokens() const { return tokens_; }
  /// What AttendItem::first_token counts: indices into tokens().
  const std::vector<int32_t>& order() const { return order_; }
  const std::vector<AttendItem>& items() const { return items_; }
  int64_t num_partials() const { return num_partials_; }

  /// Items of each row; a row whose tokens have partial results is merged after its last one.
  const std::vector<int32_t>& items_of_row() const { return items_of_row_; }
  const std::vector<int64_t>& first_token_of_row() const { return first_token_of_row_; }

  int64_t keys_seen() const { return keys_seen_; }
  int64_t keys_read() const { return keys_read_; }

 private:
  /// A run of tokens in order() against a range of the keys of a row, not yet divided.
  struct Unit {
    int64_t first_token;
    int num_tokens;
    int32_t row;
    int first_key;
    int end_key;
    int heads_per_item;
    bool shared;  ///< its tokens are of several rows
  };

  void find_tokens(const LayerSpec& spec, const Step& step);
  void share_prefixes(const LayerSpec& spec, const Step& step, int block_size);
  void add_rows(const LayerSpec& spec, const Step& step);
  void divide(const LayerSpec& spec, int threads);
  void add_items(const Unit& unit, int first_head, int pieces);
  QueryToken& token_of(const Unit& unit, int i);

  std::vector<UpdateItem> updates_;
  std::vector<QueryToken> tokens_;
  std::vector<int32_t> order_;
  std::vector<int32_t> shared_keys_;  ///< of each row: leading keys that a shared unit attends to
  SharedPrefixes prefixes_;
  std::vector<Unit> units_;
  std::vector<AttendItem> items_;
  std::vector<int32_t> items_of_row_;
  std::vector<int64_t> first_token_of_row_;
  int64_t new_tokens_ = 0;
  int64_t num_partials_ = 0;
  int64_t keys_seen_ = 0;
  int64_t keys_read_ = 0;
};

}  // namespace broadhead::cpu
