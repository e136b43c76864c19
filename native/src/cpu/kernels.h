// SPDX-License-Identifier: Apache-2.0
// What an instruction set tier offers: a table of kernels on plain memory. Kernels allocate
// nothing, check nothing and know no Arrow; what is above them has checked every index.
#pragma once

#include <cstdint>

#include "broadhead/broadhead.h"
#include "core/step.h"

namespace broadhead::cpu {

/// Tokens of a tile. A block is a run of tiles, so that kernels work in tiles whatever the block
/// size is.
constexpr int kTile = 16;

/// A layer's parameters.
struct LayerView {
  int num_heads;
  int num_kv_heads;
  int group_size;  ///< query heads of a KV head
  int head_size;
  int dtype;          ///< bh_dtype of query, key, value
  int output_dtype;   ///< bh_dtype
  float score_scale;  ///< of query times stored key
  float value_scale;  ///< of sums of stored values
  float k_scale;      ///< stored = key / k_scale
  float v_scale;
  float output_scale;         ///< 0: none
  float logits_soft_cap;      ///< 0: none
  const float* alibi_slopes;  ///< [num_heads] or NULL
  const float* sinks;         ///< [num_heads] or NULL
  int rotary_dim;             ///< 0: none
  bool is_neox;
  const float* cos_sin;  ///< [max_position, rotary_dim]
};

/// The pool's memory: [num_blocks][num_kv_heads][block_size / 16] tiles. A tile of one head is its
/// keys, [head_size][16 tokens], then its values, [head_size / 16][16 tokens][16]: both products of
/// attention read runs of 16 elements from its begin to its end, and none needs horizontal sums.
struct CacheView {
  char* memory;
  int dtype;  ///< bh_dtype
  int element_bytes;
  int block_size;
  int num_kv_heads;
  int head_size;

  [[gnu::always_inline]] int64_t tile_bytes() const {
    return int64_t{2} * kTile * head_size * element_bytes;
  }
  [[gnu::always_inline]] int64_t token_bytes() const { return tile_bytes() / kTile * num_kv_heads; }
  [[gnu::always_inline]] int64_t head_bytes() const { return tile_bytes() * (block_size / kTile); }
  [[gnu::always_inline]] int64_t block_bytes() const { return head_bytes() * num_kv_heads; }
  [[gnu::always_inline]] char* block(int64_t id) const { return memory + id * block_bytes(); }
  /// The heads of a block start with another one in every block: blocks are often as large as a
  /// power of two, and one head's tiles would all fall into the same few sets of a processor's
  /// caches.
  [[gnu::always_inline]] char* tile(int64_t id, int head, int tile_in_block) const {
    const int place = static_cast<int>((head + id) % num_kv_heads);
    return block(id) + place * head_bytes() + tile_in_block * tile_bytes();
  }
};

/// A query token and the key positions that it sees, first .. end - 1.
struct QueryToken {
  int32_t row;
  int32_t index;  ///< within its row
  int32_t position;
  int32_t first;
  int32_t end;
  int32_t num_partials;   ///< pieces that its keys are split into; 1: the result is whole
  int64_t first_partial;  ///< index of its first partial result
};

/// A piece of attention: query tokens against a range of the keys of one row, for a range of heads.
/// The tokens are of that row, ascending in position, or of several rows that share those keys.
struct AttendItem {
  int64_t first_token;  ///< index into AttendContext::order
  int32_t num_tokens;
  int32_t row;
  int32_t first_head;  ///< KV heads
  int32_t num_heads;
  int32_t first_key;  ///< a multiple of kTile
  int32_t end_key;
  int32_t piece;  ///< which of its tokens' partial results this is
};

/// What items read and write.
struct AttendContext {
  const LayerView* layer;
  const Step* step;
  const CacheView* cache;  ///< NULL: keys and values come from the step itself
  const QueryToken* tokens;
  const int32_t* order;  ///< indices into tokens
  float* partial_sums;   ///< [partial][num_heads][head_size]: sums of weighted values
  float* partial_state;  ///< [partial][num_heads][2]: maximum and denominator

  [[gnu::always_inline]] const QueryToken& token(const AttendItem& item, int i) const {
    return tokens[order[item.first_token + i]];
  }
};

/// Results to join, of one dtype: see bh_merge.
struct MergeContext {
  const bh_partial* parts;
  int count;
  int dtype;
  int num_heads;
  int head_size;
  void* output;
  float* lse;
};

/// Floats of scratch that making a tile needs: its heads once rotated and once rounded.
constexpr int64_t tile_scratch(int head_size) { return int64_t{2} * kTile * head_size; }

/// Floats of scratch that `update` needs: 16 KiB of elements for the cache, those of 16 tokens, and
/// those of one token before they are rounded.
constexpr int64_t kUpdateScratch = 4096 + 1024;

struct Kernels {
  /// Writes new tokens first .. end - 1 of a row to the cache; whole tiles past the caches if it
  /// streams.
  void (*update)(const LayerView& layer, const Step& step, const CacheView& cache, int64_t row,
                 int first, int end, bool streams, float* scratch);
  void (*attend)(const AttendContext& context, const AttendItem& item, float* scratch);
  /// Joins a token's partial results and writes its output.
  void (*merge)(const AttendContext& context, int64_t token, float* scratch);
  /// Joins finished results of a token.
  void (*merge_results)(const MergeContext& context, int64_t token);
  /// Floats of scratch that `attend` needs for such an item; `merge` needs no more.
  int64_t (*scratch_floats)(const LayerView& layer, const CacheView* cache, const AttendItem& item);
  /// What `attend` reads from a cache of the dtype, times this, is the value: to be multiplied into
  /// the scales of a layer.
  float (*unit)(int cache_dtype);
  /// Reads blocks as fast as they can be read; returns a sum of what it read.
  float (*read_blocks)(const CacheView& cache, const int32_t* blocks, int64_t count);
  /// Does about so many floating-point operations as fast as they can be done.
  float (*multiply_add)(int64_t flops);
};

#if defined(__aarch64__)
namespace neon {
extern const Kernels kKernels;
}
#else
namespace baseline {
extern const Kernels kKernels;
}
#endif
#if defined(__x86_64__)
namespace avx2 {
extern const Kernels kKernels;
}
namespace avx512 {
extern const Kernels kKernels;
}
namespace avx512_bf16 {
extern const Kernels kKernels;
}
namespace amx {
extern const Kernels kKernels;
}
#endif

}  // namespace broadhead::cpu
