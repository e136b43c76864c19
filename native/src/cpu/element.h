// SPDX-License-Identifier: Apache-2.0
// Element types of tensors and caches: how each is widened to float and rounded back. Included by
// kernel sources only (see vec.h).
#pragma once

#include "cpu/vec.h"

namespace broadhead::cpu::BH_TIER {

struct Float32 {
  float value;
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

// ---- widening: exact ----

BH_INLINE UintVec widen(HalfBits v) { return __builtin_convertvector(v, UintVec); }
BH_INLINE UintVec widen(ByteBits v) { return __builtin_convertvector(v, UintVec); }

/// Moves a small float's sign to bit 31 and its exponent and mantissa below it, then scales by the
/// difference of the exponent biases: subnormals come out right, `special` patterns get the
/// exponent of infinities and NaNs.
template <int kSignShift, int kShift>
BH_INLINE Vec widen_float(UintVec bits, uint32_t magnitude_mask, float bias_scale,
                          UintVec special) {
  const UintVec magnitude = (bits & magnitude_mask) << kShift;
  const UintVec scaled = (UintVec)((Vec)magnitude * broadcast(bias_scale));
  const UintVec sign = (bits & (magnitude_mask + 1)) << kSignShift;
  return (Vec)((special ? (magnitude | 0x7f800000u) : scaled) | sign);
}

BH_INLINE Vec load(const Float32* from) { return load(&from->value); }

BH_INLINE Vec load(const BFloat16* from) {
  HalfBits bits;
  __builtin_memcpy(&bits, from, sizeof bits);
  return (Vec)(widen(bits) << 16);
}

BH_INLINE Vec load(const Float16* from) {
#if defined(__AVX512F__)
  return (Vec)_mm512_maskz_cvtph_ps(0xffff,
                                    _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
#elif defined(__F16C__)
  return (Vec)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
#else
  HalfBits half;
  __builtin_memcpy(&half, from, sizeof half);
  const UintVec bits = widen(half);
  return widen_float<16, 13>(bits, 0x7fffu, 0x1p112f, (UintVec)((bits & 0x7c00u) == 0x7c00u));
#endif
}

BH_INLINE Vec load(const Float8E4M3* from) {
  ByteBits byte;
  __builtin_memcpy(&byte, from, sizeof byte);
  const UintVec bits = widen(byte);
  return widen_float<24, 20>(bits, 0x7fu, 0x1p120f, (UintVec)((bits & 0x7fu) == 0x7fu));
}

BH_INLINE Vec load(const Float8E5M2* from) {
  ByteBits byte;
  __builtin_memcpy(&byte, from, sizeof byte);
  const UintVec bits = widen(byte);
  return widen_float<24, 21>(bits, 0x7fu, 0x1p112f, (UintVec)((bits & 0x7cu) == 0x7cu));
}

// ---- rounding: to nearest, ties to even ----

/// Rounds to a format with kMantissa mantissa bits whose smallest normal number is
/// 2^kLowestExponent, and returns its bits (sign excluded) before any treatment of overflow.
template <int kMantissa, int kLowestExponent>
BH_INLINE UintVec round_magnitude(Vec magnitude) {
  constexpr int kDrop = 23 - kMantissa;
  const UintVec bits = (UintVec)magnitude;
  const UintVec even = (bits >> kDrop) & 1u;
  const uint32_t half = (1u << (kDrop - 1)) - 1;
  const UintVec rebias = broadcast_bits(static_cast<uint32_t>(127 + kLowestExponent - 1) << 23);
  const UintVec normal = (bits + half + even - rebias) >> kDrop;
  // Below the smallest normal number, adding a power of two whose last place is the format's
  // smallest step rounds to that step and leaves the count of steps in the low bits.
  const Vec step = (Vec)broadcast_bits(static_cast<uint32_t>(127 + kLowestExponent + kDrop) << 23);
  const UintVec subnormal = (UintVec)(magnitude + step) - (UintVec)step;
  const Vec smallest = (Vec)broadcast_bits(static_cast<uint32_t>(127 + kLowestExponent) << 23);
  return magnitude < smallest ? subnormal : normal;
}

BH_INLINE Vec magnitude_of(Vec v) { return (Vec)((UintVec)v & 0x7fffffffu); }
BH_INLINE UintVec is_nan(Vec v) { return (UintVec)(v != v); }
BH_INLINE void store_halves(void* to, UintVec bits) {
  const HalfBits narrow = __builtin_convertvector(bits, HalfBits);
  __builtin_memcpy(to, &narrow, sizeof narrow);
}
BH_INLINE void store_bytes(void* to, UintVec bits) {
  const ByteBits narrow = __builtin_convertvector(bits, ByteBits);
  __builtin_memcpy(to, &narrow, sizeof narrow);
}

BH_INLINE void store(Float32* to, Vec v) { store(&to->value, v); }

BH_INLINE void store(BFloat16* to, Vec v) {
  const UintVec bits = (UintVec)v;
  const UintVec rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  store_halves(to, is_nan(v) ? (bits >> 16) | 0x40u : rounded);
}

BH_INLINE void store(Float16* to, Vec v) {
#if defined(__AVX512F__)
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to),
                      _mm512_maskz_cvtps_ph(0xffff, (__m512)v, _MM_FROUND_TO_NEAREST_INT));
#elif defined(__F16C__)
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to),
                   _mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT));
#else
  const Vec magnitude = magnitude_of(v);
  UintVec bits = round_magnitude<10, -14>(magnitude);
  bits = magnitude >= broadcast(65520.0f) ? broadcast_bits(0x7c00u) : bits;
  bits = is_nan(v) ? broadcast_bits(0x7e00u) : bits;
  store_halves(to, bits | ((UintVec)v >> 16 & 0x8000u));
#endif
}

/// Saturates at the largest finite number; NaN stays NaN.
template <int kMantissa, int kLowestExponent>
BH_INLINE void store_float8(void* to, Vec v, float largest, uint32_t nan) {
  const Vec size = magnitude_of(v);
  const Vec magnitude = size > broadcast(largest) ? broadcast(largest) : size;
  UintVec bits = round_magnitude<kMantissa, kLowestExponent>(magnitude);
  bits = is_nan(v) ? broadcast_bits(nan) : bits;
  store_bytes(to, bits | ((UintVec)v >> 24 & 0x80u));
}

BH_INLINE void store(Float8E4M3* to, Vec v) { store_float8<3, -6>(to, v, 448.0f, 0x7fu); }
BH_INLINE void store(Float8E5M2* to, Vec v) { store_float8<2, -14>(to, v, 57344.0f, 0x7eu); }

// ---- rows: head sizes are multiples of 16 and so of every kWidth ----

template <class E>
BH_INLINE void load_row(const E* from, int count, float* to) {
  for (int i = 0; i < count; i += kWidth) store(to + i, load(from + i));
}

template <class E>
BH_INLINE void store_row(const float* from, int count, float factor, E* to) {
  const Vec f = broadcast(factor);
  for (int i = 0; i < count; i += kWidth) store(to + i, load(from + i) * f);
}

/// Calls `visit` with a value of the element type of queries, keys and values.
template <class Visit>
BH_INLINE void with_tensor_dtype(int dtype, Visit&& visit) {
  switch (dtype) {
    case BH_FLOAT32:
      return visit(Float32{});
    case BH_FLOAT16:
      return visit(Float16{});
    case BH_BFLOAT16:
      return visit(BFloat16{});
  }
}

/// Calls `visit` with a value of any element type, those of caches included.
template <class Visit>
BH_INLINE void with_dtype(int dtype, Visit&& visit) {
  switch (dtype) {
    case BH_FLOAT8_E4M3FN:
      return visit(Float8E4M3{});
    case BH_FLOAT8_E5M2:
      return visit(Float8E5M2{});
    default:
      return with_tensor_dtype(dtype, visit);
  }
}

}  // namespace broadhead::cpu::BH_TIER
