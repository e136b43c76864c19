// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <limits>
#include <optional>

#include "core/memory_pool.h"
#include "gpu/library.h"

namespace broadhead::gpu {

/// Pages that the driver pins and maps.
class PinnedPages {
 public:
  struct Memory {
    char* host;
    char* device;  ///< NULL if kernels do not reach it
  };
  static constexpr int kSmallest = 12;
  static constexpr int64_t kMostKept = std::numeric_limits<int64_t>::max();

  PinnedPages(const DeviceApi& api, int device) : api_(api), device_(device) {}

  std::optional<Memory> allocate(int64_t bytes);
  void release(const Memory& memory) { api_.release_host(memory.host); }

 private:
  const DeviceApi& api_;
  int device_;
};

/// Pinned host memory. Any thread may use it.
class PinnedPool {
 public:
  PinnedPool(const DeviceApi& api, int device) : pool_(PinnedPages(api, device)) {}

  /// NULL where the driver refuses.
  void* allocate(int64_t bytes) { return pool_.allocate(bytes); }
  void free(void* memory) { pool_.free(memory); }

  /// Where kernels reach memory that was given out, at its start or behind it; NULL for other
  /// memory. The driver takes several times as long to say so.
  void* device_address(const void* memory) const;

 private:
  MemoryPool<PinnedPages> pool_;
};

}  // namespace broadhead::gpu
