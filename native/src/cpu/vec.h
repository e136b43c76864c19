// SPDX-License-Identifier: Apache-2.0
// The vector type of an instruction set tier. A kernel source is compiled once per tier with
// BH_TIER set to the tier's namespace; everything in it has internal linkage, so that the linker
// can never hand code of one tier to another. For the same reason nothing here calls an inline
// function of the standard library.
#pragma once

#include <cstdint>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#define BH_INLINE static inline __attribute__((always_inline))
/// A function of its own, where the compiler has all registers for one loop.
#define BH_KERNEL static __attribute__((noinline))

namespace broadhead::cpu::BH_TIER {

#if defined(__AVX512F__)
constexpr int kWidth = 16;      ///< floats of a Vec
constexpr int kRegisters = 32;  ///< that hold a Vec
constexpr int kMaxRows = 12;    ///< query rows of the widest micro-kernel
#elif defined(__AVX2__)
constexpr int kWidth = 8;
constexpr int kRegisters = 16;
constexpr int kMaxRows = 6;
#elif defined(__aarch64__)
constexpr int kWidth = 4;
constexpr int kRegisters = 32;
constexpr int kMaxRows = 6;
#else
constexpr int kWidth = 4;
constexpr int kRegisters = 16;
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

/// Floats from `first` on of `kCount`, zeros after them. Those that were just stored one by one
/// come sooner so than by load(), which would wait for the stores.
template <int kCount>
BH_INLINE Vec load_lanes(const float* from, int first) {
  Vec v = {};
#pragma GCC unroll 16
  for (int i = 0; i < kWidth; ++i) {
    if (first + i < kCount) v[i] = from[first + i];
  }
  return v;
}

BH_INLINE void store(float* to, Vec v) { __builtin_memcpy(to, &v, sizeof v); }

/// sum += factor * v. AVX-512 multiplies by a float in memory as by a register, but compilers would
/// rather load one that is used twice first, which takes 7 % longer on Zen 4.
BH_INLINE void add_product(Vec& sum, const float& factor, Vec v) {
#if defined(__AVX512F__)
  asm("vfmadd231ps %2%{1to16%}, %1, %0" : "+v"(sum) : "v"(v), "m"(factor));
#else
  sum += broadcast(factor) * v;
#endif
}

/// The larger of both; b where either is NaN.
BH_INLINE Vec max(Vec a, Vec b) {
#if defined(__AVX512F__)
  return (Vec)_mm512_maskz_max_ps(0xffff, (__m512)a, (__m512)b);
#elif defined(__AVX2__)
  return (Vec)_mm256_max_ps((__m256)a, (__m256)b);
#else
  return a > b ? a : b;
#endif
}

/// The smaller of both; b where either is NaN.
BH_INLINE Vec min(Vec a, Vec b) {
#if defined(__AVX512F__)
  return (Vec)_mm512_maskz_min_ps(0xffff, (__m512)a, (__m512)b);
#elif defined(__AVX2__)
  return (Vec)_mm256_min_ps((__m256)a, (__m256)b);
#else
  return a < b ? a : b;
#endif
}

/// Lanes with each half of a run of `2 * distance` exchanged.
template <int distance>
BH_INLINE Vec exchange(Vec v) {
  IntVec lanes;
  for (int i = 0; i < kWidth; ++i) lanes[i] = i ^ distance;
  return __builtin_shuffle(v, lanes);
}

template <int distance = kWidth / 2>
BH_INLINE float reduce_max(Vec v) {
  if constexpr (distance == 0) {
    return v[0];
  } else {
    return reduce_max<distance / 2>(max(v, exchange<distance>(v)));
  }
}

template <int distance = kWidth / 2>
BH_INLINE float reduce_add(Vec v) {
  if constexpr (distance == 0) {
    return v[0];
  } else {
    return reduce_add<distance / 2>(v + exchange<distance>(v));
  }
}

/// 0, 1, 2, ...
BH_INLINE IntVec iota_int() {
  IntVec v;
  for (int i = 0; i < kWidth; ++i) v[i] = i;
  return v;
}

/// Bytes that instructions move within, whatever the width of a vector.
constexpr int kLaneBytes = 16;

/// Elements of a and b in turns, from the `part`th half of every lane.
template <int part, class V>
BH_INLINE V interleave(V a, V b) {
  constexpr int kElements = sizeof(V) / sizeof(a[0]);
  constexpr int kLane = kLaneBytes / sizeof(a[0]);
  V places;
#pragma GCC unroll 64
  for (int i = 0; i < kElements; ++i) {
    places[i] = i / kLane * kLane + part * kLane / 2 + i % kLane / 2 + i % 2 * kElements;
  }
  return __builtin_shuffle(a, b, places);
}

template <int kBytes>
struct HalfLanes {
  typedef uint64_t Type __attribute__((vector_size(kBytes)));
};

/// Every other lane of a, then of b, from the `part`th on.
template <int part, class V>
BH_INLINE V join_lanes(V a, V b) {
  using Halves = typename HalfLanes<sizeof(V)>::Type;
  Halves places;
#pragma GCC unroll 8
  for (int i = 0; i < static_cast<int>(sizeof(V) / 8); ++i) {
    places[i] = i / 2 * 4 + part * 2 + i % 2;
  }
  return (V)__builtin_shuffle((Halves)a, (Halves)b, places);
}

/// Replaces pairs of rows, `distance` apart, by both parts of what they are joined to.
template <int distance, bool lanes, class V, int kRows>
BH_INLINE void join_rows(V (&rows)[kRows]) {
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i) {
    if (i & distance) continue;
    const V a = rows[i];
    const V b = rows[i + distance];
    if constexpr (lanes) {
      rows[i] = join_lanes<0>(a, b);
      rows[i + distance] = join_lanes<1>(a, b);
    } else {
      rows[i] = interleave<0>(a, b);
      rows[i + distance] = interleave<1>(a, b);
    }
  }
}

/// Transposes 16 rows of integers of any size, in the order of transposed_row(). Each step trades a
/// bit of the row's number for one of the place within the row: first for those of places in a
/// lane, which interleaving turns by one, then for those of lanes. The four bits of a row's number
/// take turns: their weights are powers of two modulo 15, where 8 is followed by 1.
template <class V>
BH_INLINE void transpose(V (&rows)[16]) {
  constexpr int kLane = kLaneBytes / sizeof(rows[0][0]);
  if constexpr (kLane > 8) join_rows<8, false>(rows);
  if constexpr (kLane > 4) join_rows<4, false>(rows);
  join_rows<2, false>(rows);
  join_rows<1, false>(rows);
  if constexpr (sizeof(V) > kLaneBytes) join_rows<kLane % 15, true>(rows);
  if constexpr (sizeof(V) > 2 * kLaneBytes) join_rows<2 * kLane % 15, true>(rows);
}

/// The row that holds the `i`th part of what transpose() made: i with its four bits rotated, which
/// is what doubling modulo 15 does, once for each power of two in the number of elements.
template <class V>
constexpr int transposed_row(int i) {
  return i == 15 ? i : i * static_cast<int>(sizeof(V) / sizeof(V{}[0])) % 15;
}

/// e^x for x <= 88, relative error below 2e-7 + 2e-8 |x|; exactly 0 below -87.7, NaN for NaN. It is
/// 2^n 2^r with a polynomial of degree 5 on [-1/2, 1/2] that leaves out less than 1e-7.
BH_INLINE Vec exp(Vec x) {
  x = max(broadcast(-88.0f), x);
  const Vec log2_e = broadcast(1.44269504f);
  // Adding 1.5 * 2^23 rounds to an integer and leaves it in the low bits, here with the bias of an
  // exponent added.
  const Vec rounder = broadcast(12582912.0f + 127);
  const Vec shifted = x * log2_e + rounder;
  const Vec r = x * log2_e - (shifted - rounder);
  Vec p = broadcast(1.326472746e-3f);
  p = p * r + broadcast(9.671512859e-3f);
  p = p * r + broadcast(5.550733744e-2f);
  p = p * r + broadcast(2.402224208e-1f);
  p = p * r + broadcast(6.931469776e-1f);
  p = p * r + broadcast(1.0f);
  const Vec power = (Vec)((UintVec)shifted << 23);  // any bits if x is NaN
  return p * power;
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
