// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <map>
#include <mutex>
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

  /// Where kernels reach memory that was given out, at its start or behind it; NULL for other
  /// memory. The driver takes several times as long to say so.
  void* device_address(const void* memory) const;

 private:
  static constexpr int kSmallest = 12;  ///< a page

  struct Memory {
    char* host;
    char* device;
  };
  struct Used {
    Memory memory;
    int power;
  };

  const DeviceApi& api_;
  mutable std::mutex mutex_;
  std::vector<Memory> free_[64];      ///< by power of two
  std::map<const char*, Used> used_;  ///< by host address
};

}  // namespace broadhead::gpu
