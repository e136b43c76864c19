// SPDX-License-Identifier: Apache-2.0
#include "cpu/host_memory.h"

#include <sys/mman.h>

#include <cstdlib>

namespace broadhead::cpu {
namespace {

constexpr int64_t kAlignment = 64;
constexpr int64_t kHugePage = int64_t{1} << HugePages::kSmallest;

}  // namespace

std::optional<HugePages::Memory> HugePages::allocate(int64_t bytes) {
  void* memory = std::aligned_alloc(kHugePage, static_cast<size_t>(bytes));
  if (!memory) return std::nullopt;
  madvise(memory, static_cast<size_t>(bytes), MADV_HUGEPAGE);  // a hint: nothing rests on it
  return Memory{static_cast<char*>(memory)};
}

void HugePages::release(const Memory& memory) { std::free(memory.host); }

void* HostMemory::allocate(int64_t bytes) {
  if (bytes >= kHugePage) return pool_.allocate(bytes);
  const int64_t rounded = (bytes + kAlignment - 1) / kAlignment * kAlignment;
  return std::aligned_alloc(kAlignment, static_cast<size_t>(rounded));
}

void HostMemory::free(void* memory) {
  const bool may_be_huge = reinterpret_cast<uintptr_t>(memory) % kHugePage == 0;
  if (!may_be_huge || !pool_.free(memory)) std::free(memory);
}

}  // namespace broadhead::cpu
