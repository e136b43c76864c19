// SPDX-License-Identifier: Apache-2.0
#include "gpu/pinned_pool.h"

#include <algorithm>
#include <bit>

namespace broadhead::gpu {

PinnedPool::~PinnedPool() {
  for (const std::vector<void*>& memories : free_) {
    for (void* memory : memories) api_.release_host(memory);
  }
  for (const auto& [memory, power] : power_of_used_) api_.release_host(memory);
}

void* PinnedPool::allocate(int64_t bytes) {
  const int power =
      std::max(kSmallest, static_cast<int>(std::bit_width(static_cast<uint64_t>(bytes - 1))));
  const std::lock_guard lock(mutex_);
  std::vector<void*>& memories = free_[power];
  void* memory = nullptr;
  if (!memories.empty()) {
    memory = memories.back();
    memories.pop_back();
  } else if (api_.allocate_host(int64_t{1} << power, &memory) != kOk) {
    return nullptr;
  }
  power_of_used_[memory] = power;
  return memory;
}

void PinnedPool::free(void* memory) {
  const std::lock_guard lock(mutex_);
  const auto used = power_of_used_.find(memory);
  if (used == power_of_used_.end()) return;
  free_[used->second].push_back(memory);
  power_of_used_.erase(used);
}

}  // namespace broadhead::gpu
