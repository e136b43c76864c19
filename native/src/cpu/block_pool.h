// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "core/backend.h"
#include "cpu/kernels.h"

namespace broadhead::cpu {

/// The CPU's pool of blocks: one anonymous mapping, zero until written, in huge pages where the
/// system grants them. Memory is committed as blocks are first written.
class BlockPool final : public Cache {
 public:
  explicit BlockPool(const bh_cache_options& options);
  ~BlockPool() override;

  const CacheView& view() const { return view_; }
  int64_t bytes() const override { return bytes_; }
  void read_block(int64_t block, void* key, void* value) const override;
  void write_block(int64_t block, const void* key, const void* value) override;
  void copy_block(int64_t source, int64_t target) override;

 private:
  CacheView view_;
  int64_t bytes_;
};

}  // namespace broadhead::cpu
