// SPDX-License-Identifier: Apache-2.0
// Blocks of the cache in and out in logical order, the joining of finished results, and a
// probe of the memory's speed.
#include "hip/cache_layout.h"
#include "hip/element.h"
#include "hip/kernels.h"

namespace broadhead::gpu {
namespace {

constexpr int kThreads = 128;
constexpr int kMergeWaves = 4;

/// One thread for each chunk of a token's head.
template <bool kWrite>
__global__ void move_block(CacheView cache, int64_t block, char* key, char* value) {
  const int chunks = cache.row_bytes / kChunk;
  const int64_t index = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (index >= int64_t{cache.block_size} * cache.num_kv_heads * chunks) return;
  const int chunk = static_cast<int>(index % chunks);
  const int head = static_cast<int>(index / chunks % cache.num_kv_heads);
  const int token = static_cast<int>(index / chunks / cache.num_kv_heads);
  char* inside = keys_of(cache, block, head) + half_offset(cache.row_bytes, token, chunk * kChunk);
#pragma unroll
  for (int half = 0; half < 2; ++half, inside += cache.half_bytes) {
    auto* stored = reinterpret_cast<Chunk*>(inside);
    auto* logical = reinterpret_cast<Chunk*>(half == 0 ? key : value) + index;
    if (kWrite) {
      *stored = *logical;
    } else {
      *logical = *stored;
    }
  }
}
/// One wave for each token's head.
__global__ void merge_results(MergeArgs merge) {
  const int64_t state = int64_t{blockIdx.x} * kMergeWaves + wave_index();
  if (state >= merge.states) return;
  // Some kernels report an empty set of keys as +inf.
  auto lse_of = [&](int part) {
    const float lse = merge.lses[part][state];
    return lse == infinity() ? -infinity() : lse;
  };
  float maximum = -infinity();
  for (int p = 0; p < merge.count; ++p) {
    const float lse = lse_of(p);
    maximum = lse > maximum || !(lse == lse) ? lse : maximum;
  }
  float total = 0;
  for (int p = 0; p < merge.count; ++p) {
    if (lse_of(p) != -infinity()) total += expf(lse_of(p) - maximum);
  }
  with_tensor_dtype(merge.dtype, [&](auto element) {
    using T = decltype(element);
    for (int d = lane_index(); d < merge.head_size; d += kWave) {
      const int64_t index = state * merge.head_size + d;
      float sum = 0;
      for (int p = 0; p < merge.count; ++p) {
        if (lse_of(p) == -infinity()) continue;
        sum += widen(static_cast<const T*>(merge.outputs[p])[index]) *
               (expf(lse_of(p) - maximum) / total);
      }
      narrow(sum, static_cast<T*>(merge.output)[index]);
    }
  });
  if (merge.lse && lane_index() == 0) {
    merge.lse[state] = total == 0 ? -infinity() : maximum + logf(total);
  }
}

__global__ void read_blocks(CacheView cache, const int32_t* blocks, int64_t count, uint32_t* sink) {
  const int64_t chunks = 2 * cache.half_bytes * cache.num_kv_heads / kChunk;
  uint32_t seen = 0;
  for (int64_t b = blockIdx.x; b < count; b += gridDim.x) {
    const auto* from = reinterpret_cast<const Chunk*>(keys_of(cache, blocks[b], 0));
#pragma unroll 8
    for (int64_t i = threadIdx.x; i < chunks; i += blockDim.x) {
      const Chunk chunk = load_constant(from + i);
      seen |= chunk.words[0] & chunk.words[1] & chunk.words[2] & chunk.words[3];
    }
  }
  if (seen == 0x12345678u) *sink = seen;
}

dim3 grid_of(int64_t blocks) { return dim3(static_cast<unsigned>(blocks)); }

}  // namespace

hipError_t launch_move_block(hipStream_t stream, bool write, const CacheView& cache, int64_t block,
                             void* key, void* value) {
  const int64_t chunks = cache.half_bytes / kChunk * cache.num_kv_heads;
  return launch_kernel(write ? &move_block<true> : &move_block<false>,
                       grid_of((chunks + kThreads - 1) / kThreads), kThreads, 0, stream, cache,
                       block, static_cast<char*>(key), static_cast<char*>(value));
}

hipError_t launch_merge_results(hipStream_t stream, const MergeArgs& merge) {
  return launch_kernel(&merge_results, grid_of((merge.states + kMergeWaves - 1) / kMergeWaves),
                       kMergeWaves * wave_size(), 0, stream, merge);
}

hipError_t launch_read_blocks(hipStream_t stream, const CacheView& cache, const int32_t* blocks,
                              int64_t count, void* sink) {
  return launch_kernel(&read_blocks, grid_of(count < 1024 ? count : 1024), 512, 0, stream, cache,
                       blocks, count, static_cast<uint32_t*>(sink));
}

}  // namespace broadhead::gpu
