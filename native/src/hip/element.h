// SPDX-License-Identifier: Apache-2.0
// Element types: what tensors and caches hold, and how it becomes float32 and back.
#pragma once

#include "broadhead/broadhead.h"
#include "hip/wave.h"

namespace broadhead::gpu {

struct Float32 {
  uint32_t bits;
};
struct Float16 {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};
struct Float8E4M3 {
  uint8_t bits;
};
struct Float8E5M2 {
  uint8_t bits;
};

// ---- widening ----

BH_INLINE float widen(Float32 x) { return bits_to_float(x.bits); }
BH_INLINE float widen(BFloat16 x) { return bits_to_float(uint32_t{x.bits} << 16); }

BH_INLINE float widen(Float16 x) {
#if defined(__CUDACC__)
  float y;
  asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
  return y;
#else
  _Float16 half;
  __builtin_memcpy(&half, &x.bits, 2);
  return static_cast<float>(half);
#endif
}

BH_INLINE float widen(Float8E4M3 x) {
  const uint32_t magnitude = x.bits & 0x7fu;
  // The exponent is put where float32 has it, and 2^120 is the difference of the biases.
  const float value =
      magnitude == 0x7fu ? bits_to_float(0x7fc00000u) : bits_to_float(magnitude << 20) * 0x1p120f;
  return (x.bits & 0x80u) ? -value : value;
}

BH_INLINE float widen(Float8E5M2 x) {
  return widen(Float16{static_cast<uint16_t>(uint32_t{x.bits} << 8)});
}

// ---- infinities and NaNs ----

/// Which bits of a word of elements belong to an infinity or a NaN: those whose exponent, for e4m3
/// whole magnitude, is the highest.
template <class E>
BH_INLINE uint32_t unbounded_bits(uint32_t word) {
  if constexpr (sizeof(E) == 2) {
    constexpr uint32_t kExponent = __is_same(E, Float16) ? 0x7c007c00u : 0x7f807f80u;
    constexpr uint32_t kLowest = __is_same(E, Float16) ? 0x04000400u : 0x00800080u;
    return (((word & kExponent) + kLowest) >> 15 & 0x00010001u) * 0xffffu;
  } else {
    constexpr uint32_t kExponent = __is_same(E, Float8E4M3) ? 0x7f7f7f7fu : 0x7c7c7c7cu;
    constexpr uint32_t kLowest = __is_same(E, Float8E4M3) ? 0x01010101u : 0x04040404u;
    return (((word & kExponent) + kLowest) >> 7 & 0x01010101u) * 0xffu;
  }
}

#if defined(__CUDACC__)
/// Pairs of 16-bit elements: sum + 0 * word, which is NaN where an element of either is unbounded.
template <class E>
BH_INLINE uint32_t add_zero_times(uint32_t sum, uint32_t word) {
  if constexpr (__is_same(E, Float16)) {
    asm("fma.rn.f16x2 %0, %1, %2, %0;" : "+r"(sum) : "r"(word), "r"(0));
  } else {
    asm("fma.rn.bf16x2 %0, %1, %2, %0;" : "+r"(sum) : "r"(word), "r"(0));
  }
  return sum;
}
#endif

// ---- narrowing: one rounding, to nearest even ----

BH_INLINE void narrow(float x, Float32& to) { to.bits = float_to_bits(x); }

BH_INLINE void narrow(float x, BFloat16& to) {
  const uint32_t bits = float_to_bits(x);
  const uint32_t rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
  to.bits = static_cast<uint16_t>(x == x ? rounded : (bits >> 16 | 0x40u));
}

BH_INLINE void narrow(float x, Float16& to) {
#if defined(__CUDACC__)
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(to.bits) : "f"(x));
#else
  const auto half = static_cast<_Float16>(x);
  __builtin_memcpy(&to.bits, &half, 2);
#endif
}

/// Saturates at the largest finite number; NaN stays NaN.
template <int kMantissa, int kLowestExponent>
BH_INLINE uint8_t narrow_to_float8(float x, float largest, uint32_t nan) {
  const uint32_t bits = float_to_bits(x);
  const uint32_t sign = bits >> 24 & 0x80u;
  float magnitude = bits_to_float(bits & 0x7fffffffu);
  if (!(magnitude == magnitude)) return static_cast<uint8_t>(sign | nan);
  if (magnitude > largest) magnitude = largest;
  // Below the normal numbers an addition does the rounding: the sum's last place is the step.
  constexpr uint32_t kStepExponent = static_cast<uint32_t>(kLowestExponent - kMantissa + 23 + 127);
  const float base = bits_to_float(kStepExponent << 23);
  uint32_t code;
  if (magnitude < bits_to_float(static_cast<uint32_t>(kLowestExponent + 127) << 23)) {
    code = float_to_bits(magnitude + base) - float_to_bits(base);
  } else {
    const uint32_t m = float_to_bits(magnitude);
    constexpr int kDrop = 23 - kMantissa;
    const uint32_t rounded = m + (1u << (kDrop - 1)) - 1 + (m >> kDrop & 1u);
    code = (rounded >> kDrop) - (static_cast<uint32_t>(kLowestExponent + 126) << kMantissa);
  }
  return static_cast<uint8_t>(sign | code);
}

#if defined(__CUDACC__) && __CUDA_ARCH__ >= 890
BH_INLINE void narrow(float x, Float8E4M3& to) {
  uint16_t pair;
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(pair) : "f"(0.0f), "f"(x));
  to.bits = static_cast<uint8_t>(pair);
}
BH_INLINE void narrow(float x, Float8E5M2& to) {
  uint16_t pair;
  asm("cvt.rn.satfinite.e5m2x2.f32 %0, %1, %2;" : "=h"(pair) : "f"(0.0f), "f"(x));
  to.bits = static_cast<uint8_t>(pair);
}
#else
BH_INLINE void narrow(float x, Float8E4M3& to) {
  to.bits = narrow_to_float8<3, -6>(x, 448.0f, 0x7fu);
}
BH_INLINE void narrow(float x, Float8E5M2& to) {
  to.bits = narrow_to_float8<2, -14>(x, 57344.0f, 0x7eu);
}
#endif

// ---- pairs of 16-bit elements in a word, the first in the low half ----

template <class T>
BH_INLINE uint32_t pack(float first, float second) {
  T a, b;
  narrow(first, a);
  narrow(second, b);
  return uint32_t{a.bits} | uint32_t{b.bits} << 16;
}
#if defined(__CUDACC__)
template <>
BH_INLINE uint32_t pack<Float16>(float first, float second) {
  uint32_t word;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(second), "f"(first));
  return word;
}
template <>
BH_INLINE uint32_t pack<BFloat16>(float first, float second) {
  uint32_t word;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(second), "f"(first));
  return word;
}
#endif

template <class T>
BH_INLINE float widen_low(uint32_t word) {
  return widen(T{static_cast<uint16_t>(word & 0xffffu)});
}
template <class T>
BH_INLINE float widen_high(uint32_t word) {
  return widen(T{static_cast<uint16_t>(word >> 16)});
}

// ---- four fp8 elements to two words of 16-bit ones; exact ----

/// e4m3 in the low byte of each half to float16.
BH_INLINE uint32_t e4m3_to_float16(uint32_t codes) {
  const uint32_t magnitude = codes & 0x007f007fu;
  const uint32_t nan = (magnitude + 0x00010001u) & 0x00800080u;
  // The exponent is put where float16 has it; 2^8 is the difference of the biases.
  const uint32_t shifted = magnitude << 7 | nan * 0xf8u;
#if defined(__CUDACC__)
  uint32_t word;
  asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(word) : "r"(shifted), "r"(0x5c005c00u));
#else
  const uint32_t word =
      pack<Float16>(widen_low<Float16>(shifted) * 256.0f, widen_high<Float16>(shifted) * 256.0f);
#endif
  return word | (codes & 0x00800080u) << 8;
}

template <class T>
BH_INLINE uint32_t from_float16(uint32_t word);
template <>
BH_INLINE uint32_t from_float16<Float16>(uint32_t word) {
  return word;
}
template <>
BH_INLINE uint32_t from_float16<BFloat16>(uint32_t word) {
  return pack<BFloat16>(widen_low<Float16>(word), widen_high<Float16>(word));
}

template <class T>
BH_INLINE void widen_four(uint32_t codes, uint32_t* words, Float8E4M3) {
#if defined(__CUDACC__) && __CUDA_ARCH__ >= 890
  uint32_t low, high;
  asm("{.reg .b16 a, b; mov.b32 {a, b}, %2; cvt.rn.f16x2.e4m3x2 %0, a; "
      "cvt.rn.f16x2.e4m3x2 %1, b;}"
      : "=r"(low), "=r"(high)
      : "r"(codes));
#else
  const uint32_t low = e4m3_to_float16(byte_permute(codes, 0, 0x4140));
  const uint32_t high = e4m3_to_float16(byte_permute(codes, 0, 0x4342));
#endif
  words[0] = from_float16<T>(low);
  words[1] = from_float16<T>(high);
}

template <class T>
BH_INLINE void widen_four(uint32_t codes, uint32_t* words, Float8E5M2) {
  words[0] = from_float16<T>(byte_permute(codes, 0, 0x1404));
  words[1] = from_float16<T>(byte_permute(codes, 0, 0x3424));
}

/// 16 codes of E to as many numbers of T.
template <class T, class E>
BH_INLINE void widen_chunk(const Chunk& codes, Chunk (&wide)[2]) {
#pragma unroll
  for (int w = 0; w < 4; ++w) widen_four<T>(codes.words[w], wide[w / 2].words + w % 2 * 2, E{});
}

// ---- dtypes known at run time ----

/// Calls visit(element type) for a dtype of tensors.
template <class Visit>
BH_INLINE void with_tensor_dtype(int dtype, Visit&& visit) {
  if (dtype == BH_FLOAT32) {
    visit(Float32{});
  } else if (dtype == BH_FLOAT16) {
    visit(Float16{});
  } else {
    visit(BFloat16{});
  }
}

}  // namespace broadhead::gpu
