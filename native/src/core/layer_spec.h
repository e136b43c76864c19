// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "broadhead/broadhead.h"
#include "core/visible_keys.h"

namespace broadhead {

/// A layer's options, checked and owned.
struct LayerSpec {
  std::string name;
  int num_heads;
  int num_kv_heads;
  int head_size;
  int attn_type;  ///< bh_attn_type
  int dtype;      ///< bh_dtype of query, key, value
  float scale;
  int64_t sliding_window;  ///< 0: none
  float logits_soft_cap;   ///< 0: none
  std::vector<float> alibi_slopes;
  std::vector<float> sinks;
  float k_scale;
  float v_scale;
  float output_scale;  ///< 0: none
  bool return_lse;
  bool read_only_cache;
  int rotary_dim;  ///< 0: no rotary embedding
  int64_t max_position;
  bool is_neox;
  std::vector<float> cos_sin;  ///< [max_position, rotary_dim]

  int group_size() const { return num_heads / num_kv_heads; }
  bool uses_cache() const { return attn_type == BH_DECODER || attn_type == BH_ENCODER_DECODER; }
  /// The window as visible_keys takes it.
  int32_t window() const {
    return sliding_window > 0 && sliding_window < kNoWindow ? static_cast<int32_t>(sliding_window)
                                                            : kNoWindow;
  }
  bool is_causal() const { return attn_type == BH_DECODER; }
  int output_dtype() const { return output_scale > 0 ? BH_FLOAT8_E4M3FN : dtype; }
};

/// Checks `options` and copies them. Throws Failure(BH_INVALID_ARGUMENT) that names the option,
/// what is accepted and what was given.
LayerSpec check_layer(const bh_layer_options& options);

/// Checks that the layer can use a cache of this dtype and block size (0 and 0: none).
void check_layer_cache(const LayerSpec& spec, int cache_dtype, int block_size);

/// Checks the options of a pool.
void check_cache(const bh_cache_options& options);

/// Checks the shape of heads. `what` opens the message, `option` is what the number of heads is
/// called.
void check_heads(const char* what, const char* option, int heads, int head_size);

/// The head sizes that layers may have.
inline constexpr int kHeadSizes[] = {32, 64, 80, 96, 128, 160, 192, 224, 256};

/// Block sizes are multiples of this many tokens.
inline constexpr int kBlockSizeStep = 16;

}  // namespace broadhead
