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

/// Visits every head of every token of a block: visit(position of the head in logical order
/// [block_size, num_kv_heads], its tile, its column there).
template <class Visit>
void for_each_head(const CacheView& view, int64_t block, Visit&& visit) {
  for (int t = 0; t < view.block_size; ++t) {
    for (int h = 0; h < view.num_kv_heads; ++h) {
      visit(int64_t{t} * view.num_kv_heads + h, view.tile(block, h, t / kTile), t % kTile);
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
  const int size = view_.head_size;
  const int width = view_.element_bytes;
  for_each_head(view_, block, [&](int64_t head, const char* tile, int column) {
    char* k = static_cast<char*>(key) + head * size * width;
    for (int d = 0; d < size; ++d) {
      std::memcpy(k + d * width, tile + (d * kTile + column) * width, static_cast<size_t>(width));
    }
    std::memcpy(static_cast<char*>(value) + head * size * width,
                tile + (kTile + column) * size * width, static_cast<size_t>(size * width));
  });
}

void BlockPool::write_block(int64_t block, const void* key, const void* value) {
  const int size = view_.head_size;
  const int width = view_.element_bytes;
  for_each_head(view_, block, [&](int64_t head, char* tile, int column) {
    const char* k = static_cast<const char*>(key) + head * size * width;
    for (int d = 0; d < size; ++d) {
      std::memcpy(tile + (d * kTile + column) * width, k + d * width, static_cast<size_t>(width));
    }
    std::memcpy(tile + (kTile + column) * size * width,
                static_cast<const char*>(value) + head * size * width,
                static_cast<size_t>(size * width));
  });
}

void BlockPool::copy_block(int64_t source, int64_t target) {
  if (source == target) return;
  std::memcpy(view_.tile(target, 0, 0), view_.tile(source, 0, 0),
              static_cast<size_t>(view_.block_bytes()));
}

}  // namespace broadhead::cpu
