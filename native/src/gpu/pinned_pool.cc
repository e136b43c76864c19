// SPDX-License-Identifier: Apache-2.0
#include "gpu/pinned_pool.h"

namespace broadhead::gpu {

std::optional<PinnedPages::Memory> PinnedPages::allocate(int64_t bytes) {
  void *host = nullptr, *device = nullptr;
  if (api_.use(device_) != kOk || api_.allocate_host(bytes, &host) != kOk) return std::nullopt;
  int32_t kind = kPageable;
  (void)api_.locate(host, &kind, &device);
  return Memory{static_cast<char*>(host), static_cast<char*>(device)};
}

void* PinnedPool::device_address(const void* memory) const {
  const auto found = pool_.find(memory);
  if (!found || !found->device) return nullptr;
  return found->device + (static_cast<const char*>(memory) - found->host);
}

}  // namespace broadhead::gpu
