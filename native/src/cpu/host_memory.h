// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <optional>

#include "core/memory_pool.h"

namespace broadhead::cpu {

/// Huge pages, where the system has them.
struct HugePages {
  struct Memory {
    char* host;
  };
  static constexpr int kSmallest = 21;
  static constexpr int64_t kMostKept = int64_t{256} << 20;

  std::optional<Memory> allocate(int64_t bytes);
  void release(const Memory& memory);
};

/// Memory of tensors. The system clears pages one by one as they are first written, so that the
/// results of a prompt would take up to a third longer in memory that is new to each step: what
/// fills huge pages is reused. Any thread may use it.
class HostMemory {
 public:
  /// At a multiple of 64 bytes; NULL where the system refuses.
  void* allocate(int64_t bytes);
  void free(void* memory);

 private:
  MemoryPool<HugePages> pool_{HugePages()};
};

}  // namespace broadhead::cpu
