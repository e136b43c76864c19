// SPDX-License-Identifier: Apache-2.0
// Threads that run in step, and what they tell each other.
#pragma once

#include <cstdint>

#include "hip/gpu_runtime.h"

#define BH_INLINE __device__ __forceinline__

namespace broadhead::gpu {

#if BH_TILE == BH_TILE_MFMA
constexpr int kWave = 64;
#else
constexpr int kWave = 32;
#endif

BH_INLINE int lane_index() { return static_cast<int>(threadIdx.x) % kWave; }
BH_INLINE int wave_index() { return static_cast<int>(threadIdx.x) / kWave; }

#if defined(BH_EMULATED)
template <class V>
BH_INLINE V shuffle_xor(V value, int mask) {
  return emulator::shuffle(value, lane_index() ^ mask);
}
template <class V>
BH_INLINE V shuffle(V value, int lane) {
  return emulator::shuffle(value, lane);
}
BH_INLINE bool any(bool predicate) { return emulator::any(predicate); }
#elif defined(__CUDACC__)
template <class V>
BH_INLINE V shuffle_xor(V value, int mask) {
  return __shfl_xor_sync(0xffffffffu, value, mask);
}
template <class V>
BH_INLINE V shuffle(V value, int lane) {
  return __shfl_sync(0xffffffffu, value, lane);
}
BH_INLINE bool any(bool predicate) { return __any_sync(0xffffffffu, predicate); }
#else
template <class V>
BH_INLINE V shuffle_xor(V value, int mask) {
  return __shfl_xor(value, mask, kWave);
}
template <class V>
BH_INLINE V shuffle(V value, int lane) {
  return __shfl(value, lane, kWave);
}
BH_INLINE bool any(bool predicate) { return __any(predicate); }
#endif

/// Of four lanes side by side, lane i's number k becomes lane k's number i.
template <class V>
BH_INLINE void transpose_quad(V (&numbers)[4]) {
#pragma unroll
  for (int mask = 1; mask < 4; mask *= 2) {
    const bool upper = (lane_index() & mask) != 0;
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      if (k & mask) continue;
      V& low = numbers[k];
      V& high = numbers[k | mask];
      const V received = shuffle_xor(upper ? low : high, mask);
      low = upper ? received : low;
      high = upper ? high : received;
    }
  }
}

/// The number, of which the compiler does not know that it is the same each time: what follows from
/// it is computed again rather than kept in registers that others need.
BH_INLINE int computed_again(int number) {
#if defined(__HIP__)
  asm volatile("" : "+v"(number));
#elif defined(__CUDACC__)
  asm volatile("" : "+r"(number));
#endif
  return number;
}

/// Memory of a block of threads, aligned to 128 bytes, on NVIDIA's to 1024, as the panels of
/// Hopper's matrix instructions are.
BH_INLINE char* shared_memory() {
#if defined(BH_EMULATED)
  return emulator::shared_memory();
#else
  extern __shared__ __attribute__((aligned(1024))) char memory[];
  return memory;
#endif
}

/// Memory of a block of threads, whose size may differ between AMD's architectures: there it is the
/// compiler's to allot, and a launch asks for none.
template <class Shared>
BH_INLINE Shared& shared_memory_of() {
#if defined(__HIP__)
  __shared__ __attribute__((aligned(128))) char memory[sizeof(Shared)];
  return *reinterpret_cast<Shared*>(memory);
#else
  return *reinterpret_cast<Shared*>(shared_memory());
#endif
}
#if defined(__HIP__)
template <class Shared>
constexpr size_t kSharedBytes = 0;
#else
template <class Shared>
constexpr size_t kSharedBytes = sizeof(Shared);
#endif

/// Bytes a, b of two words, chosen as by PRMT and V_PERM: selector nibble i names the byte of
/// {low, high} that becomes byte i.
BH_INLINE uint32_t byte_permute(uint32_t low, uint32_t high, uint32_t selector) {
#if defined(__CUDACC__)
  return __byte_perm(low, high, selector);
#elif defined(__HIP__)
  // V_PERM numbers the bytes of its second operand first and takes a selector byte for each.
  const uint32_t spread = (selector & 0xfu) | (selector & 0xf0u) << 4 | (selector & 0xf00u) << 8 |
                          (selector & 0xf000u) << 12;
  return __builtin_amdgcn_perm(high, low, spread);
#else
  const uint64_t both = uint64_t{high} << 32 | low;
  uint32_t result = 0;
  for (int i = 0; i < 4; ++i) {
    const auto byte = static_cast<uint32_t>(both >> ((selector >> (4 * i) & 7u) * 8) & 0xffu);
    result |= byte << (8 * i);
  }
  return result;
#endif
}

/// 16 bytes, the unit of vector loads.
struct alignas(16) Chunk {
  uint32_t words[4];
};

struct alignas(8) Words2 {
  uint32_t words[2];
};

/// Brings a line to the second-level cache.
BH_INLINE void prefetch(const void* from) {
#if defined(__CUDACC__)
  asm volatile("prefetch.global.L2 [%0];" ::"l"(from));
#else
  (void)from;
#endif
}

/// Loads what no thread of the kernel writes.
template <class V>
BH_INLINE V load_constant(const V* from) {
  return *from;
}
#if defined(__CUDACC__)
template <>
BH_INLINE Chunk load_constant(const Chunk* from) {
  Chunk c;
  asm volatile("ld.global.nc.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(c.words[0]), "=r"(c.words[1]), "=r"(c.words[2]), "=r"(c.words[3])
               : "l"(from));
  return c;
}
#endif

/// Loads what another block of threads may have written, past the first-level cache.
BH_INLINE float load_across_blocks(const float* from) {
#if defined(__CUDACC__)
  return __ldcg(from);
#elif defined(__HIP__)
  return __hip_atomic_load(from, __ATOMIC_RELAXED, __HIP_MEMORY_SCOPE_AGENT);
#else
  return *from;
#endif
}

BH_INLINE void load_across_blocks(const float* from, float (&numbers)[4]) {
#if defined(__CUDACC__)
  const float4 loaded = __ldcg(reinterpret_cast<const float4*>(from));
  numbers[0] = loaded.x;
  numbers[1] = loaded.y;
  numbers[2] = loaded.z;
  numbers[3] = loaded.w;
#else
  for (int i = 0; i < 4; ++i) numbers[i] = load_across_blocks(from + i);
#endif
}

BH_INLINE float bits_to_float(uint32_t bits) {
  float value;
  __builtin_memcpy(&value, &bits, 4);
  return value;
}
BH_INLINE uint32_t float_to_bits(float value) {
  uint32_t bits;
  __builtin_memcpy(&bits, &value, 4);
  return bits;
}

BH_INLINE float infinity() { return bits_to_float(0x7f800000u); }

/// 1 / x, to a unit in the last place.
BH_INLINE float reciprocal_fast(float x) {
#if defined(__CUDACC__)
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#elif defined(__HIP__)
  return __builtin_amdgcn_rcpf(x);
#else
  return 1 / x;
#endif
}

/// 2^x; 0 for -infinity.
BH_INLINE float exp2_fast(float x) {
#if defined(__CUDACC__)
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#elif defined(__HIP__)
  return __builtin_amdgcn_exp2f(x);
#else
  return __builtin_exp2f(x);
#endif
}

}  // namespace broadhead::gpu
