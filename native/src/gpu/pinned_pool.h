// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <mutex>
#include <unordered_map>
#include <vector>

#include "gpu/library.h"

namespace broadhead::gpu {

/// Pinned host memory in sizes of powers of two, kept for reuse: the driver takes as long to pin as
/// a step takes to run. Any thread may use it.
class PinnedPool {
 public:
  explicit PinnedPool(const DeviceApi& api) : api_(api) {}
  ~PinnedPool();
  PinnedPool(const PinnedPool&) = delete;
  PinnedPool& operator=(const PinnedPool&) = delete;

  /// NULL where the driver refuses.
  void* allocate(int64_t bytes);
  void free(void* memory);

 private:
  static constexpr int kSmallest = 12;  ///< a page

  const DeviceApi& api_;
  std::mutex mutex_;
  std::vector<void*> free_[64];  ///< by power of two
  std::unordered_map<void*, int> power_of_used_;
};

}  // namespace broadhead::gpu
