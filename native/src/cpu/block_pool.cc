// SPDX-License-Identifier: Apache-2.0
#include "cpu/block_pool.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstring>

#include "core/dtype.h"
#include "core/failure.h"

namespace broadhead::cpu {
namespace {

constexpr double kGiB = 1 << 30;

/// Calls key(logical, stored) for every element of a block's keys and value(logical, stored) for
/// every run of kTile elements of its values, with their byte offsets in the logical order
/// [block_size, num_kv_heads, head_size] and where the pool has them.
template <class Key, class Value>
void for_each_piece(const CacheView& view, int64_t block, Key&& key, Value&& value) {
  const int64_t width = view.element_bytes;
  for (int t = 0; t < view.block_size; ++t) {
    for (int h = 0; h < view.num_kv_heads; ++h) {
      const int64_t head = (int64_t{t} * view.num_kv_heads + h) * view.head_size;
      char* keys = view.tile(block, h, t / kTile);
      char* values = keys + kTile * view.head_size * width;
      for (int d = 0; d < view.head_size; ++d) {
        key((head + d) * width, keys + (d * kTile + t % kTile) * width);
      }
      for (int d = 0; d < view.head_size; d += kTile) {
        value((head + d) * width, values + (d + t % kTile) * kTile * width);
      }
    }
  }
}

}  // namespace

BlockPool::BlockPool(const bh_cache_options& options)
    : Cache(options),
      view_{nullptr,
            options.dtype,
            byte_width(options.dtype),
            options.block_size,
            options.num_kv_heads,
            options.head_size} {
  const double memory = double(sysconf(_SC_PHYS_PAGES)) * double(sysconf(_SC_PAGE_SIZE));
  const double wanted = double(options.num_blocks) * double(view_.block_bytes());
  void* mapping = MAP_FAILED;
  if (wanted <= memory) {
    bytes_ = options.num_blocks * view_.block_bytes();
    mapping = mmap(nullptr, static_cast<size_t>(bytes_), PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  }
  if (mapping == MAP_FAILED) {
    throw Failure(BH_OUT_OF_MEMORY, kNoRow,
                  "KV cache: %lld blocks of %lld bytes need %.2f GiB, this machine has %.2f GiB; "
                  "lower kv_cache.num_blocks",
                  static_cast<long long>(options.num_blocks),
                  static_cast<long long>(view_.block_bytes()), wanted / kGiB, memory / kGiB);
  }
  view_.memory = static_cast<char*>(mapping);
  madvise(mapping, static_cast<size_t>(bytes_), MADV_HUGEPAGE);  // a hint: nothing rests on it
}

BlockPool::~BlockPool() { munmap(view_.memory, static_cast<size_t>(bytes_)); }

void BlockPool::read_block(int64_t block, void* key, void* value) const {
  const auto width = static_cast<size_t>(view_.element_bytes);
  for_each_piece(
      view_, block,
      [&](int64_t at, const char* from) { std::memcpy(static_cast<char*>(key) + at, from, width); },
      [&](int64_t at, const char* from) {
        std::memcpy(static_cast<char*>(value) + at, from, kTile * width);
      });
}

void BlockPool::write_block(int64_t block, const void* key, const void* value) {
  const auto width = static_cast<size_t>(view_.element_bytes);
  for_each_piece(
      view_, block,
      [&](int64_t at, char* to) { std::memcpy(to, static_cast<const char*>(key) + at, width); },
      [&](int64_t at, char* to) {
        std::memcpy(to, static_cast<const char*>(value) + at, kTile * width);
      });
}

void BlockPool::copy_block(int64_t source, int64_t target) {
  if (source == target) return;
  for (int h = 0; h < view_.num_kv_heads; ++h) {
    std::memcpy(view_.tile(target, h, 0), view_.tile(source, h, 0),
                static_cast<size_t>(view_.head_bytes()));
  }
}

}  // namespace broadhead::cpu
