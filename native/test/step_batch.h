// SPDX-License-Identifier: Apache-2.0
// Layers and step batches as tests describe them, and their way into the C ABI.
#pragma once

#include <cstdint>
#include <vector>

#include "broadhead/broadhead.h"
#include "c_data.h"

namespace broadhead::test {

/// A layer's options with their memory.
struct LayerConfig {
  int num_heads = 8;
  int num_kv_heads = 2;
  int head_size = 64;
  int attn_type = BH_DECODER;
  int dtype = BH_FLOAT32;
  float scale = 0.125f;
  int64_t sliding_window = 0;
  float logits_soft_cap = 0;
  std::vector<float> alibi_slopes;
  std::vector<float> sinks;
  float k_scale = 1;
  float v_scale = 1;
  float output_scale = 0;
  bool return_lse = true;
  bool read_only_cache = false;
  int rotary_dim = 0;
  bool is_neox = true;
  int64_t max_position = 0;
  std::vector<float> cos_sin;

  /// Fills the rotary table with the angles of `base`.
  void set_rope(int rotary, bool neox, int64_t positions, double base = 10000);

  int group_size() const { return num_heads / num_kv_heads; }
  bool uses_cache() const { return attn_type == BH_DECODER || attn_type == BH_ENCODER_DECODER; }
  int output_dtype() const { return output_scale > 0 ? BH_FLOAT8_E4M3FN : dtype; }
  int64_t query_width() const { return int64_t{num_heads} * head_size; }
  int64_t key_width() const { return int64_t{num_kv_heads} * head_size; }

  /// Points into this object; `rope` receives the rotary part.
  bh_layer_options options(bh_rope& rope) const;
};

/// One row of a step batch. Tensor elements are values of the layer's dtype.
struct StepRow {
  std::vector<float> query;  ///< [n_q, num_heads, head_size]
  std::vector<float> key;    ///< [n_k, num_kv_heads, head_size]
  std::vector<float> value;
  int32_t seq_len = 0;
  std::vector<int64_t> slots;
  std::vector<int32_t> blocks;
  std::vector<int64_t> positions;

  int64_t num_queries(const LayerConfig& layer) const;
  int64_t num_keys(const LayerConfig& layer) const;
};

struct StepBatch {
  std::vector<StepRow> rows;
  bool has_query = true;
  bool has_key = true;
  bool wide_positions = false;

  int64_t num_queries(const LayerConfig& layer) const;
};

/// The schema of such batches, with a column that the step format does not name.
Field step_schema(const LayerConfig& layer, const StepBatch& batch);

/// Its arrays, in the schema's order. Rows without keys are null and empty in turns.
Array step_array(const LayerConfig& layer, const StepBatch& batch);

/// Result arrays: poisoned before the step, with a guard after the last element.
class StepResult {
 public:
  StepResult(const LayerConfig& layer, const StepBatch& batch);
  StepResult(const StepResult&) = delete;
  StepResult& operator=(const StepResult&) = delete;

  ArrowArray* array() { return &array_; }

  /// Output element of a query token of the batch, multiplied by output_scale.
  double output(int64_t token, int64_t element) const;
  float lse(int64_t token, int head) const;
  const void* output_address() const { return output_.data(); }

  /// The offsets say which tokens belong to which row.
  bool has_offsets_of(const StepBatch& batch) const;
  bool guards_intact() const;
  bool untouched() const;

  const Bytes& output_bytes() const { return output_; }

 private:
  const LayerConfig& layer_;
  int64_t output_bytes_;
  int64_t lse_count_;
  Bytes output_;
  std::vector<float> lse_;
  std::vector<int32_t> offsets_[2];
  std::vector<const void*> buffers_[7];
  ArrowArray nodes_[6];
  std::vector<ArrowArray*> children_[5];
  ArrowArray array_;
};

}  // namespace broadhead::test
