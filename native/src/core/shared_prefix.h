// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "core/step.h"

namespace broadhead {

/// Finds rows whose block tables begin alike, so that what they share is read once. Keeps its
/// memory between steps.
class SharedPrefixes {
 public:
  /// A common prefix shorter than this is not worth a merge of its partial results.
  static constexpr int kLeastKeys = 128;

  void clear() { candidates_.clear(); }

  /// `keys`: every token of the row sees the row's first so many keys.
  void add(const Step& step, int64_t row, int32_t keys) {
    if (keys >= kLeastKeys) candidates_.push_back({row, keys, step.blocks(step.rows[row])[0]});
  }

  /// Calls visit(candidates, count, keys) for each group of rows that share their first `keys`
  /// keys, whole blocks.
  template <class Visit>
  void for_each(const Step& step, int block_size, Visit&& visit) {
    std::sort(candidates_.begin(), candidates_.end(), [](const Candidate& a, const Candidate& b) {
      return a.first_block != b.first_block ? a.first_block < b.first_block : a.row < b.row;
    });
    const auto count = static_cast<int64_t>(candidates_.size());
    const Candidate* all = candidates_.data();
    for (int64_t begin = 0, end; begin < count; begin = end) {
      for (end = begin + 1; end < count && all[end].first_block == all[begin].first_block;) ++end;
      if (end - begin == 1) continue;
      const int keys = shared_keys(step, block_size, all + begin, end - begin);
      if (keys >= kLeastKeys) visit(all + begin, end - begin, keys);
    }
  }

  struct Candidate {
    int64_t row;
    int32_t keys;
    int32_t first_block;
  };

 private:
  static int shared_keys(const Step& step, int block_size, const Candidate* group, int64_t count) {
    const int32_t* blocks = step.blocks(step.rows[group[0].row]);
    int64_t shared = group[0].keys / block_size;
    for (int64_t i = 1; i < count; ++i) {
      shared = std::min<int64_t>(shared, group[i].keys / block_size);
      const int32_t* others = step.blocks(step.rows[group[i].row]);
      shared = std::mismatch(blocks, blocks + shared, others).first - blocks;
    }
    return static_cast<int>(shared * block_size);
  }

  std::vector<Candidate> candidates_;
};

}  // namespace broadhead
