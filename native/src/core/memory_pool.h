// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <iterator>
#include <map>
#include <mutex>
#include <optional>
#include <utility>
#include <vector>

namespace broadhead {

/// Memory in sizes of powers of two, kept for reuse, since the system takes as long to give it as a
/// step takes to run. Any thread may use it.
///
/// A Source has a type Memory, whose member `host` is where it lies, std::optional<Memory>
/// allocate(int64_t bytes), void release(const Memory&), kSmallest, the power of two of the
/// smallest piece, and kMostKept, the bytes that are kept at most.
template <class Source>
class MemoryPool {
 public:
  using Memory = typename Source::Memory;

  explicit MemoryPool(Source source) : source_(std::move(source)) {}
  ~MemoryPool() {
    for (const std::vector<Memory>& memories : kept_) {
      for (const Memory& memory : memories) source_.release(memory);
    }
    for (const auto& [host, used] : used_) source_.release(used.memory);
  }
  MemoryPool(const MemoryPool&) = delete;
  MemoryPool& operator=(const MemoryPool&) = delete;

  /// NULL where the source refuses.
  void* allocate(int64_t bytes) {
    const int power = std::max(Source::kSmallest,
                               static_cast<int>(std::bit_width(static_cast<uint64_t>(bytes - 1))));
    if (power > kLargest) return nullptr;
    const std::lock_guard lock(mutex_);
    std::vector<Memory>& kept = kept_[power];
    if (kept.empty()) {
      const std::optional<Memory> memory = source_.allocate(int64_t{1} << power);
      if (!memory) return nullptr;
      used_[memory->host] = {*memory, power};
      return memory->host;
    }
    const Memory memory = kept.back();
    kept.pop_back();
    kept_bytes_ -= int64_t{1} << power;
    used_[memory.host] = {memory, power};
    return memory.host;
  }

  /// False if `host` is not of this pool.
  bool free(const void* host) {
    const std::lock_guard lock(mutex_);
    const auto at = used_.find(static_cast<const char*>(host));
    if (at == used_.end()) return false;
    const auto [memory, power] = at->second;
    used_.erase(at);
    const int64_t bytes = int64_t{1} << power;
    if (bytes > Source::kMostKept - kept_bytes_) {
      source_.release(memory);
    } else {
      kept_[power].push_back(memory);
      kept_bytes_ += bytes;
    }
    return true;
  }

  /// The memory in use that `address` lies in, at its start or behind it.
  std::optional<Memory> find(const void* address) const {
    const auto* wanted = static_cast<const char*>(address);
    const std::lock_guard lock(mutex_);
    const auto next = used_.upper_bound(wanted);
    if (next == used_.begin()) return std::nullopt;
    const auto& [host, used] = *std::prev(next);
    if ((wanted - host) >> used.power != 0) return std::nullopt;
    return used.memory;
  }

 private:
  static constexpr int kLargest = 62;

  struct Used {
    Memory memory;
    int power;
  };

  Source source_;
  mutable std::mutex mutex_;
  std::vector<Memory> kept_[kLargest + 1];  ///< by power of two
  int64_t kept_bytes_ = 0;
  std::map<const char*, Used> used_;  ///< by host address
};

}  // namespace broadhead
