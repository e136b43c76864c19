// SPDX-License-Identifier: Apache-2.0
// Which keys a query sees. Plain arithmetic: planning and device code include this.
#pragma once

#include <cstdint>

#include "core/host_device.h"

namespace broadhead {

/// A window that hides nothing.
constexpr int32_t kNoWindow = INT32_MAX;

/// Key positions first .. end - 1, seen from `position`.
struct VisibleKeys {
  int32_t position;
  int32_t first;
  int32_t end;
};

/// What query token `index` of `num_queries` sees of `seq_len` keys; `window` counts the token
/// itself, to the past and, where the layer is not causal, to the future.
BH_HOST_DEVICE constexpr VisibleKeys visible_keys(bool causal, int32_t window, int32_t seq_len,
                                                  int32_t num_queries, int32_t index) {
  const int32_t position = causal ? seq_len - num_queries + index : index;
  const int64_t past = int64_t{position} - window + 1;
  const int64_t future = causal ? int64_t{position} + 1 : int64_t{position} + window;
  const auto end = static_cast<int32_t>(future < 0 ? 0 : future < seq_len ? future : seq_len);
  const auto first = static_cast<int32_t>(past < 0 ? 0 : past < end ? past : end);
  return {position, first, end};
}

}  // namespace broadhead
