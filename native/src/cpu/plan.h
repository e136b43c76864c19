// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <vector>

#include "core/layer_spec.h"
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

  /// Plans its attention.
  void plan_attention(const LayerSpec& spec, const Step& step, int threads);

  const std::vector<UpdateItem>& updates() const { return updates_; }
  const std::vector<QueryToken>& tokens() const { return tokens_; }
  const std::vector<AttendItem>& items() const { return items_; }
  int64_t num_partials() const { return num_partials_; }

  /// Items of each row; a row whose tokens have partial results is merged after its last one.
  const std::vector<int32_t>& items_of_row() const { return items_of_row_; }
  const std::vector<int64_t>& first_token_of_row() const { return first_token_of_row_; }

 private:
  void divide_row(const LayerSpec& spec, const Step& step, int64_t row, double budget);

  std::vector<UpdateItem> updates_;
  std::vector<QueryToken> tokens_;
  std::vector<AttendItem> items_;
  std::vector<int32_t> items_of_row_;
  std::vector<int64_t> first_token_of_row_;
  int64_t num_partials_ = 0;
};

}  // namespace broadhead::cpu
