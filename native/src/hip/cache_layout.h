// SPDX-License-Identifier: Apache-2.0
// Where a pool of blocks keeps an element.
//
// A block holds, for each KV head, its keys and then its values. A half is
// [tokens / 8][panel][8][width]: the bytes of a token's head are cut into panels of 128 bytes (the
// last may be narrower), and those of 8 tokens lie together, so that any run of 8 or 16 tokens is
// one run of memory, whatever the block size. Within a panel the 16-byte chunks of a token are
// permuted by exclusive or with a number that depends on the token, so that the same chunk of 8
// tokens in a row lies in 8 different bank groups of shared memory: a plain copy is free of bank
// conflicts, and panels of 128 bytes are in the 128-byte swizzle that Hopper's matrix instructions
// read.
#pragma once

#include "gpu/kernel_args.h"
#include "hip/wave.h"

namespace broadhead::gpu {

constexpr int kPanel = 128;
constexpr int kPanelTokens = 8;
constexpr int kChunk = 16;

BH_HOST_DEVICE constexpr int panel_width(int row_bytes, int panel) {
  const int left = row_bytes - panel * kPanel;
  return left < kPanel ? left : kPanel;
}

/// The number that chunks of `token` are permuted with in a panel of that width.
BH_HOST_DEVICE constexpr int swizzle(int width, int token) {
  // The lowest bit of the number of chunks, at most 8.
  const unsigned chunks = static_cast<unsigned>(width / kChunk) | 8u;
  const unsigned even = chunks & -chunks;
  return static_cast<int>(static_cast<unsigned>(token) * even / 8 & (even - 1));
}

/// Offset of byte `byte` of a token's head in a half, or in a tile that begins with 8 tokens of
/// one.
BH_HOST_DEVICE constexpr int64_t half_offset(int row_bytes, int token, int byte) {
  const int panel = byte / kPanel;
  const int width = panel_width(row_bytes, panel);
  const int chunk = byte % kPanel / kChunk;
  return int64_t{token / kPanelTokens} * kPanelTokens * row_bytes + panel * kPanel * kPanelTokens +
         token % kPanelTokens * width + (chunk ^ swizzle(width, token)) * kChunk + byte % kChunk;
}

/// A block's keys of one head; the values follow half_bytes later.
BH_INLINE char* keys_of(const CacheView& cache, int64_t block, int head) {
  return cache.memory + (block * cache.num_kv_heads + head) * 2 * cache.half_bytes;
}

}  // namespace broadhead::gpu
