// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>

#include "core/backend.h"
#include "gpu/device.h"

namespace broadhead::gpu {

/// The shape of a pool, without memory.
CacheView cache_view(int dtype, int block_size, int num_kv_heads, int head_size);

/// Bytes of a block, keys and values of all heads.
inline int64_t block_bytes(const CacheView& view) {
  return 2 * view.half_bytes * view.num_kv_heads;
}

/// A pool of blocks in device memory.
class GpuCache final : public Cache {
 public:
  GpuCache(const bh_cache_options& options, std::shared_ptr<Device> device);
  ~GpuCache() override;

  const CacheView& view() const { return view_; }
  /// Of the steps that use the cache.
  StepOrder& order() { return order_; }
  int64_t bytes() const override { return bytes_; }
  void read_block(int64_t block, void* key, void* value) const override;
  void write_block(int64_t block, const void* key, const void* value) override;
  void copy_block(int64_t source, int64_t target) override;

 private:
  std::shared_ptr<Device> device_;
  CacheView view_;
  std::unique_ptr<void, void (*)(void*)> memory_;
  StepOrder order_;
  int64_t bytes_ = 0;
};

}  // namespace broadhead::gpu
