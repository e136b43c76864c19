// SPDX-License-Identifier: Apache-2.0
#include "gpu/pinned_pool.h"

#include <algorithm>
#include <bit>
#include <iterator>

namespace broadhead::gpu {

PinnedPool::~PinnedPool() {
  for (const std::vector<Memory>& memories : free_) {
    for (const Memory& memory : memories) api_.release_host(memory.host);
  }
  for (const auto& [host, used] : used_) api_.release_host(used.memory.host);
}

void* PinnedPool::allocate(int64_t bytes) {
  const int power =
      std::max(kSmallest, static_cast<int>(std::bit_width(static_cast<uint64_t>(bytes - 1))));
  const std::lock_guard lock(mutex_);
  std::vector<Memory>& memories = free_[power];
  if (memories.empty()) {
    void *host = nullptr, *device = nullptr;
    if (api_.allocate_host(int64_t{1} << power, &host) != kOk) return nullptr;
    int32_t kind = kPageable;
    (void)api_.locate(host, &kind, &device);
    memories.push_back({static_cast<char*>(host), static_cast<char*>(device)});
  }
  const Memory memory = memories.back();
  memories.pop_back();
  used_[memory.host] = {memory, power};
  return memory.host;
}

void PinnedPool::free(void* memory) {
  const std::lock_guard lock(mutex_);
  const auto used = used_.find(static_cast<const char*>(memory));
  if (used == used_.end()) return;
  free_[used->second.power].push_back(used->second.memory);
  used_.erase(used);
}

void* PinnedPool::device_address(const void* memory) const {
  const auto* address = static_cast<const char*>(memory);
  const std::lock_guard lock(mutex_);
  auto used = used_.upper_bound(address);
  if (used == used_.begin()) return nullptr;
  const auto& [host, found] = *std::prev(used);
  const int64_t offset = address - host;
  if (offset >> found.power != 0 || !found.memory.device) return nullptr;
  return found.memory.device + offset;
}

}  // namespace broadhead::gpu
