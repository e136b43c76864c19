// SPDX-License-Identifier: Apache-2.0
// What a thread can do at best, for benchmarks to compare with: reading blocks and multiplying.
// Included by kernel sources only (see vec.h).
#pragma once

#include "cpu/kernels.h"
#include "cpu/vec.h"

/// Hides from the compiler where a vector's value comes from.
#if defined(__x86_64__)
#define BH_OPAQUE(vector) asm volatile("" : "+v"(vector))
#else
#define BH_OPAQUE(vector) asm volatile("" : "+w"(vector))
#endif

namespace broadhead::cpu::BH_TIER {

/// Reads `count` blocks whole, four at a time: fewer streams get less of the memory.
static float read_blocks(const CacheView& cache, const int32_t* blocks, int64_t count) {
  constexpr int kStreams = 4;
  constexpr int kVecs = 64 / (kWidth * 4);  // of a cache line
  Vec sums[kStreams][kVecs] = {};
  for (int64_t b = 0; b < count; b += kStreams) {
    const char* from[kStreams];
    for (int s = 0; s < kStreams; ++s) {
      from[s] = cache.block(blocks[b + s < count ? b + s : b]);
    }
    const int streams = static_cast<int>(count - b < kStreams ? count - b : kStreams);
    for (int64_t line = 0; line < cache.block_bytes(); line += 256) {
      for (int s = 0; s < streams; ++s) {
#pragma GCC unroll 4
        for (int next = 0; next < 256; next += 64) {
#pragma GCC unroll 16
          for (int v = 0; v < kVecs; ++v) {
            sums[s][v] += load(reinterpret_cast<const float*>(from[s] + line + next) + v * kWidth);
          }
        }
      }
    }
  }
  Vec all = Vec{};
  for (auto& stream : sums) {
    for (Vec sum : stream) all += sum;
  }
  return reduce_add(all);
}

/// Multiplies and adds about `flops` times, in as many registers as hide the latency.
static float multiply_add(int64_t flops) {
  constexpr int kAccumulators = kRegisters * 3 / 4;
  const int64_t rounds = flops / (2 * kAccumulators * kWidth);
  Vec sums[kAccumulators];  // all different, or the compiler would keep one
  for (int i = 0; i < kAccumulators; ++i) sums[i] = broadcast(static_cast<float>(i));
  Vec factor = broadcast(0.5f);
  for (int64_t i = 0; i < rounds; ++i) {
#pragma GCC unroll 32
    for (Vec& sum : sums) sum = sum * factor + factor;
    BH_OPAQUE(factor);  // or the compiler would do all rounds at once
  }
  Vec all = Vec{};
  for (Vec sum : sums) all += sum;
  return reduce_add(all);
}

}  // namespace broadhead::cpu::BH_TIER
