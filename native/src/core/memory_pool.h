// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <iterator>
#include <map>
#include <mutex>
#include <new>
#include <optional>
#include <utility>

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
    for (const Pieces& kept : kept_) release(kept);
    release(used_);
  }
  MemoryPool(const MemoryPool&) = delete;
  MemoryPool& operator=(const MemoryPool&) = delete;

  /// NULL where the source or the system refuses.
  void* allocate(int64_t bytes) {
    const int power = std::max(Source::kSmallest,
                               static_cast<int>(std::bit_width(static_cast<uint64_t>(bytes - 1))));
    if (power > kLargest) return nullptr;
    const std::lock_guard lock(mutex_);
    if (Pieces& kept = kept_[power]; !kept.empty()) {
      kept_bytes_ -= int64_t{1} << power;
      return used_.insert(kept.extract(kept.begin())).position->second.memory.host;
    }
    const std::optional<Memory> memory = source_.allocate(int64_t{1} << power);
    if (!memory) return nullptr;
    try {
      used_.insert({memory->host, {*memory, power}});
    } catch (const std::bad_alloc&) {
      source_.release(*memory);
      return nullptr;
    }
    return memory->host;
  }

  /// False if `host` is not of this pool.
  bool free(const void* host) noexcept {
    const std::lock_guard lock(mutex_);
    const auto at = used_.find(static_cast<const char*>(host));
    if (at == used_.end()) return false;
    auto piece = used_.extract(at);
    const auto [memory, power] = piece.mapped();
    const int64_t bytes = int64_t{1} << power;
    if (bytes > Source::kMostKept - kept_bytes_) {
      source_.release(memory);
    } else {
      kept_[power].insert(std::move(piece));
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
    const auto& [host, piece] = *std::prev(next);
    if ((wanted - host) >> piece.power != 0) return std::nullopt;
    return piece.memory;
  }

 private:
  static constexpr int kLargest = 62;

  struct Piece {
    Memory memory;
    int power;
  };
  /// By host address. What is freed, or used again, moves as a node: that allocates nothing.
  using Pieces = std::map<const char*, Piece>;

  void release(const Pieces& pieces) {
    for (const auto& [host, piece] : pieces) source_.release(piece.memory);
  }

  Source source_;
  mutable std::mutex mutex_;
  Pieces kept_[kLargest + 1];  ///< by power of two
  int64_t kept_bytes_ = 0;
  Pieces used_;
};

}  // namespace broadhead
