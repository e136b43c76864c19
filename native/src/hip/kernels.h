// SPDX-License-Identifier: Apache-2.0
// The kernels, as device.hip launches them. Those of attention's fast path are compiled once for
// each head size: BH_HEAD_SIZE.
#pragma once

#include <cstddef>

#include "gpu/kernel_args.h"
#include "hip/gpu_runtime.h"

namespace broadhead::gpu {

/// A kernel of attention.
struct KernelLaunch {
  void (*kernel)(LayerArgs, const StepArgs*);
  size_t shared_bytes;
  int threads;  ///< of a block; 0: kWaves waves
  int rows;     ///< query rows of an item, at most
  /// A block of threads for each multiprocessor takes one item after the other.
  bool stays = false;
};

#define BH_HEAD_NAME_OF(name, head) name##_##head
#define BH_HEAD_NAME_AT(name, head) BH_HEAD_NAME_OF(name, head)
#define BH_HEAD_NAME(name) BH_HEAD_NAME_AT(name, BH_HEAD_SIZE)

#define BH_FOR_EACH_HEAD_SIZE(F) F(32) F(64) F(80) F(96) F(128) F(160) F(192) F(224) F(256)

/// `rows` is the largest number of query rows of an item, `columns` those of a matrix tile.
#define BH_DECLARE(head)                                                         \
  KernelLaunch decode_##head(int dtype, int cache_dtype, int rows, int columns); \
  KernelLaunch prefill_##head(int dtype, int cache_dtype, bool is_hopper);
BH_FOR_EACH_HEAD_SIZE(BH_DECLARE)
#undef BH_DECLARE

/// Threads that run in step on the current device.
int wave_size();

/// Attention for any dtypes, in float32. `rows` is the largest number of query rows of an item.
KernelLaunch plain_kernel(const LayerArgs& layer, int cache_dtype, int rows);

hipError_t launch_update(hipStream_t stream, const LayerArgs& layer, const UpdateArgs& update);

/// Moves a block between the cache and [block_size, num_kv_heads, head_size].
hipError_t launch_move_block(hipStream_t stream, bool write, const CacheView& cache, int64_t block,
                             void* key, void* value);

hipError_t launch_merge_results(hipStream_t stream, const MergeArgs& merge);

/// Reads blocks whole; `sink` keeps the compiler from leaving it out.
hipError_t launch_read_blocks(hipStream_t stream, const CacheView& cache, const int32_t* blocks,
                              int64_t count, void* sink);

}  // namespace broadhead::gpu
