// SPDX-License-Identifier: Apache-2.0
// What the host hands to kernels: plain memory, read by device code of every vendor.
#pragma once

#include <compare>
#include <cstdint>

#include "core/dtype.h"
#include "core/host_device.h"

namespace broadhead::gpu {

/// Tokens that attention reads at a time. A block is a run of tiles.
constexpr int kTile = 16;

/// Query rows (tokens times heads of a group) up to which an item is decode work, on a device whose
/// matrix tiles have `columns` of them.
BH_HOST_DEVICE constexpr int decode_rows(int columns, int head_size) {
  return head_size <= 128 ? 16 : columns;
}

/// Waves of a block of threads in the attention kernels.
constexpr int kWaves = 4;

/// Tiles that a wave of the decode kernel has under way at most.
constexpr int kTilesAhead = 4;

/// Query rows of a block of threads in prefill; RDNA's registers hold few.
BH_HOST_DEVICE constexpr int prefill_rows(int head_size, bool is_rdna) {
  return head_size <= 128 && !is_rdna ? 128 : 64;
}

/// Whether the matrix kernels take tensors of `dtype` on a cache: those of 16 bits on one of the
/// same dtype or of fp8.
constexpr bool is_fast(int dtype, int cache_dtype) {
  return dtype != BH_FLOAT32 && (cache_dtype == dtype || is_fp8(cache_dtype));
}

/// Query rows of an item of the kernel for any dtypes: what 64 KiB of shared memory hold.
BH_HOST_DEVICE constexpr int plain_rows(int head_size) {
  return head_size <= 64 ? 64 : head_size <= 128 ? 32 : 16;
}

/// A pool of blocks: [num_blocks][num_kv_heads] runs of keys, then as many values, in panels; see
/// hip/cache_layout.h.
struct CacheView {
  char* memory;
  int32_t block_size;
  int32_t num_kv_heads;
  int32_t head_size;
  int32_t dtype;  ///< bh_dtype

  int32_t row_bytes;   ///< bytes of a token's head
  int64_t half_bytes;  ///< keys of a block of one head; its values follow

  auto operator<=>(const CacheView&) const = default;
};

/// A layer, the same for all of its steps.
struct LayerArgs {
  int32_t num_heads;
  int32_t num_kv_heads;
  /// Query heads that a block of threads takes together: those of a KV head, or a part of them
  /// where they are too many.
  int32_t group_size;
  int32_t num_groups;
  int32_t groups_per_kv_head;
  int32_t head_size;
  int32_t dtype;         ///< bh_dtype of query, key, value
  int32_t output_dtype;  ///< bh_dtype
  float score_scale;     ///< softmax scale times k_scale
  float k_scale;
  float v_scale;
  float result_scale;  ///< what sums are multiplied by: v_scale, divided by an output scale
  float soft_cap;      ///< 0: none
  float inverse_soft_cap;
  const float* alibi_slopes;  ///< [num_heads] or NULL
  const float* sinks;         ///< [num_heads] or NULL
  int32_t rotary_dim;         ///< 0: none
  int32_t is_neox;
  const float* cos_sin;  ///< [max_position, rotary_dim], aligned to 16 bytes
};

/// A new token whose key and value go to the cache.
struct alignas(16) UpdateToken {
  const char* key;
  const char* value;
  int32_t block;
  int32_t offset;  ///< within the block
  int32_t position;
  int32_t unused;
};

/// A query on its way to where attention reads it.
struct alignas(16) QueryToken {
  const char* query;
  int32_t position;
  int32_t unused;
};

/// What is to be copied, in multiples of 16 bytes, from an address for kernels.
struct Transfer {
  char* to;
  const char* from;
  int64_t bytes;

  auto operator<=>(const Transfer&) const = default;
};

/// What the update kernel does. Handed over by value: a block of threads for each token looks up
/// nothing before it.
struct UpdateArgs {
  CacheView cache;
  const UpdateToken* tokens;
  const QueryToken* queries;
  char* prepared_query;  ///< where it puts them
  int32_t num_tokens;
  int32_t num_queries;
  Transfer plan;  ///< what it brings to the device besides

  auto operator<=>(const UpdateArgs&) const = default;
};

/// Tokens of a row whose partial results are joined by one block of threads.
struct Run {
  int32_t first_token;
  int32_t num_tokens;
  int32_t items;  ///< items that end with partial results of this run; 0: none does
};

/// A query token of an item.
struct alignas(16) Token {
  const char* query;  ///< where attention reads it
  char* output;
  float* lse;  ///< or NULL
  int32_t run;
  int32_t position;
  int32_t first;  ///< keys that it sees: first .. end - 1
  int32_t end;
  int32_t first_partial;
  int32_t num_partials;  ///< 1: the item's result is whole
};

/// Query tokens against a range of keys of one row, for each group of heads.
struct alignas(16) AttendItem {
  Token token;  ///< the first one: its query is asked for before any key
  int32_t first_token;
  int32_t num_tokens;
  int32_t first_key;  ///< a multiple of kTile
  int32_t end_key;
  int32_t first_seen;  ///< keys before it are seen by no token: their values may be anything
  int32_t piece;       ///< which of its tokens' partial results this is
  int32_t blocks;      ///< index of the keys' first block table entry
  int32_t is_partial;  ///< some token has partial results
  int32_t next;        ///< decode: what the same block of threads does next; -1: nothing
  /// The blocks that its first tiles lie in, so that their keys are asked for without a look at
  /// the block table.
  int32_t first_blocks[kWaves * kTilesAhead];
};

/// Attention of one step. Lies in device memory in front of its arrays, so that a recorded graph
/// can be replayed for other steps.
struct alignas(16) StepArgs {
  CacheView cache;

  const Run* runs;
  const Token* tokens;
  const int32_t* blocks;
  const AttendItem* prefill_items;
  int32_t num_prefill_items;

  float* partial_sums;   ///< [partial][num_heads][head_size]
  float* partial_state;  ///< [partial][num_heads][2]: maximum, base 2, and denominator
  int32_t* finished;     ///< [runs][num_groups], zero between steps
  int32_t* taken;        ///< prefill items beyond each block's first; zero between steps

  /// The first array, at a place that is known before anything is loaded. Blocks of threads begin
  /// with the item of their index; one without tokens is no work.
  BH_HOST_DEVICE const AttendItem* decode_items() const {
    return reinterpret_cast<const AttendItem*>(this + 1);
  }
};

/// Results to join: see bh_merge. `outputs` and `lses` hold one address for each part.
struct MergeArgs {
  const void* const* outputs;
  const float* const* lses;
  int32_t count;
  int32_t dtype;
  int64_t states;  ///< tokens * num_heads
  int32_t head_size;
  int32_t unused;
  void* output;
  float* lse;
};

}  // namespace broadhead::gpu
