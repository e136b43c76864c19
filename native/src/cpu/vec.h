// SPDX-License-Identifier: Apache-2.0
// The vector type of an instruction set tier. A kernel source is compiled once per tier with
// BH_TIER set to the tier's namespace; everything in it has internal linkage, so that the linker
// can never hand code of one tier to another. For the same reason nothing here calls an inline
// function of the standard library.
#pragma once

#include <cstdint>

#if defined(__AVX2__) || defined(__AVX512F__)
#include <immintrin.h>
#endif

#define BH_INLINE static inline __attribute__((always_inline))

namespace broadhead::cpu::BH_TIER {

#if defined(__AVX512F__)
constexpr int kWidth = 16;         ///< floats of a Vec
constexpr int kAccumulators = 24;  ///< vector registers a micro-kernel may keep sums in
constexpr int kMaxRows = 12;       ///< query rows of the widest micro-kernel
#elif defined(__AVX2__)
constexpr int kWidth = 8;
constexpr int kAccumulators = 12;
constexpr int kMaxRows = 6;
#else
constexpr int kWidth = 4;
constexpr int kAccumulators = 12;
constexpr int kMaxRows = 3;
#endif

typedef float Vec __attribute__((vector_size(kWidth * 4)));
typedef int32_t IntVec __attribute__((vector_size(kWidth * 4)));
typedef uint32_t UintVec __attribute__((vector_size(kWidth * 4)));
typedef uint16_t HalfBits __attribute__((vector_size(kWidth * 2)));
typedef uint8_t ByteBits __attribute__((vector_size(kWidth)));

constexpr float kInfinity = __builtin_inff();

BH_INLINE int min_int(int a, int b) { return a < b ? a : b; }
BH_INLINE int max_int(int a, int b) { return a > b ? a : b; }

BH_INLINE Vec broadcast(float x) { return x - Vec{}; }
BH_INLINE UintVec broadcast_bits(uint32_t x) { return x - UintVec{}; }

BH_INLINE Vec load(const float* from) {
  Vec v;
  __builtin_memcpy(&v, from, sizeof v);
  return v;
}

BH_INLINE void store(float* to, Vec v) { __builtin_memcpy(to, &v, sizeof v); }

BH_INLINE Vec max(Vec a, Vec b) { return a > b ? a : b; }

BH_INLINE float reduce_max(Vec v) {
  float best = v[0];
  for (int i = 1; i < kWidth; ++i) best = v[i] > best ? v[i] : best;
  return best;
}

BH_INLINE float reduce_add(Vec v) {
  float sum = v[0];
  for (int i = 1; i < kWidth; ++i) sum += v[i];
  return sum;
}

/// 0, 1, 2, ... as floats.
BH_INLINE Vec iota() {
  Vec v;
  for (int i = 0; i < kWidth; ++i) v[i] = static_cast<float>(i);
  return v;
}

BH_INLINE IntVec iota_int() {
  IntVec v;
  for (int i = 0; i < kWidth; ++i) v[i] = i;
  return v;
}

/// Transposes kWidth vectors in place.
BH_INLINE void transpose(Vec (&rows)[kWidth]) {
#pragma GCC unroll 8
  for (int step = 1; step < kWidth; step *= 2) {
    IntVec low;
    IntVec high;
#pragma GCC unroll 16
    for (int lane = 0; lane < kWidth; ++lane) {
      low[lane] = lane & step ? kWidth + lane - step : lane;
      high[lane] = lane & step ? kWidth + lane : lane + step;
    }
#pragma GCC unroll 16
    for (int i = 0; i < kWidth; ++i) {
      if (i & step) continue;
      const Vec a = rows[i];
      const Vec b = rows[i + step];
      rows[i] = __builtin_shuffle(a, b, low);
      rows[i + step] = __builtin_shuffle(a, b, high);
    }
  }
}

/// e^x for x <= 88, relative error below 3e-7; exactly 0 below -87.3, NaN for NaN. Range reduction
/// by ln 2 in two parts and a polynomial of degree 6 on [-ln2/2, ln2/2].
BH_INLINE Vec exp(Vec x) {
  const Vec lowest = broadcast(-87.3f);
  const Vec clamped = x < lowest ? lowest : x;
  // Adding 1.5 * 2^23 rounds to an integer and leaves it in the low bits.
  const Vec rounder = broadcast(12582912.0f);
  const Vec shifted = clamped * broadcast(1.44269504f) + rounder;
  const Vec n = shifted - rounder;
  Vec r = clamped - n * broadcast(0.693359375f);
  r = r - n * broadcast(-2.12194440e-4f);
  Vec p = broadcast(1.0f / 720);
  p = p * r + broadcast(1.0f / 120);
  p = p * r + broadcast(1.0f / 24);
  p = p * r + broadcast(1.0f / 6);
  p = p * r + broadcast(0.5f);
  p = p * r + broadcast(1.0f);
  p = p * r + broadcast(1.0f);
  const UintVec power = ((UintVec)shifted + 127u) << 23;  // any bits if x is NaN
  const Vec result = p * (Vec)power;
  return x < lowest ? Vec{} : result;
}

/// tanh x, relative error below 3e-7: an odd polynomial near zero, exponentials elsewhere.
BH_INLINE Vec tanh(Vec x) {
  const UintVec sign = (UintVec)x & 0x80000000u;
  const Vec size = (Vec)((UintVec)x & 0x7fffffffu);
  const Vec z = x * x;
  Vec p = broadcast(-5.70498872745e-3f);
  p = p * z + broadcast(2.06390887954e-2f);
  p = p * z + broadcast(-5.37397155531e-2f);
  p = p * z + broadcast(1.33314422036e-1f);
  p = p * z + broadcast(-3.33332819422e-1f);
  const Vec near = x + x * z * p;
  const Vec e = exp(broadcast(-2.0f) * size);
  const Vec far = (Vec)((UintVec)((1.0f - e) / (1.0f + e)) | sign);
  return size < broadcast(0.625f) ? near : far;
}

}  // namespace broadhead::cpu::BH_TIER
