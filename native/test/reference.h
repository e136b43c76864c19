// SPDX-License-Identifier: Apache-2.0
// The step format in float64, slowly and plainly: what every backend is compared with.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "broadhead/broadhead.h"
#include "step_batch.h"

namespace broadhead::test {

/// A KV cache in the logical order of bh_cache_read_block.
class LogicalCache {
 public:
  /// Every byte is 0xff: NaN in all dtypes.
  explicit LogicalCache(const bh_cache_options& options);

  const bh_cache_options& options() const { return options_; }
  int64_t block_bytes() const { return block_bytes_; }
  uint8_t* keys(int64_t block) { return keys_.data() + block * block_bytes_; }
  uint8_t* values(int64_t block) { return values_.data() + block * block_bytes_; }
  const uint8_t* keys(int64_t block) const { return keys_.data() + block * block_bytes_; }
  const uint8_t* values(int64_t block) const { return values_.data() + block * block_bytes_; }

  /// Address of a token's keys, [num_kv_heads, head_size].
  uint8_t* keys_of(int64_t slot) { return keys_.data() + slot * token_bytes_; }
  uint8_t* values_of(int64_t slot) { return values_.data() + slot * token_bytes_; }
  const uint8_t* keys_of(int64_t slot) const { return keys_.data() + slot * token_bytes_; }
  const uint8_t* values_of(int64_t slot) const { return values_.data() + slot * token_bytes_; }

  /// Which slots the reference wrote.
  std::vector<bool>& written() { return written_; }

 private:
  bh_cache_options options_;
  int64_t token_bytes_;
  int64_t block_bytes_;
  Bytes keys_;
  Bytes values_;
  std::vector<bool> written_;
};

/// Rotates heads of [n, heads, head_size] by the positions, in float64, without rounding.
std::vector<double> rotated(const LayerConfig& layer, const std::vector<float>& tensors, int heads,
                            const std::vector<int64_t>& positions);

/// Writes a batch's keys and values as the layer's cache must hold them.
void update_reference(const LayerConfig& layer, const StepBatch& batch, LogicalCache& cache);

struct Expected {
  std::vector<double> output;  ///< [tokens, num_heads, head_size], before output_scale and rounding
  std::vector<double> weight_error;  ///< of output, were each weight rounded once to the dtype
  std::vector<double> lse;           ///< [tokens, num_heads]
  int64_t keys_seen = 0;             ///< summed over the tokens
};

/// Attends over what `cache` holds; `cache` is NULL for encoder layers.
Expected attend_reference(const LayerConfig& layer, const StepBatch& batch,
                          const LogicalCache* cache);

}  // namespace broadhead::test
