// SPDX-License-Identifier: Apache-2.0
// Element types of tensors and caches: how each is widened to float and rounded back. Included by
// kernel sources only (see vec.h).
#pragma once

#include "cpu/kernels.h"
#include "cpu/vec.h"

/// Does the tier have instructions for float16?
#if defined(__F16C__) || defined(__aarch64__)
#define BH_CONVERTS_HALVES
#endif

namespace broadhead::cpu::BH_TIER {

struct Float32 {
  float value;
};
struct Float16 {
  static constexpr int kMantissa = 10;  ///< bits
  static constexpr int kBias = 15;      ///< of exponents
  uint16_t bits;
};
struct BFloat16 {
  static constexpr int kMantissa = 7;
  static constexpr int kBias = 127;
  uint16_t bits;
};
/// Of a cache under queries of bfloat16, where the tier multiplies pairs of both.
struct BFloat16Pairs : BFloat16 {};
struct Float8E4M3 {
  static constexpr int kMantissa = 3;
  static constexpr int kBias = 7;
  static constexpr int kLargest = 0x7e;  ///< bits of the largest number
  uint8_t bits;
};
struct Float8E5M2 {
  static constexpr int kMantissa = 2;
  static constexpr int kBias = 15;
  static constexpr int kLargest = 0x7b;
  uint8_t bits;
};

// ---- widening: exact ----

/// kWidth unsigned integers of 16 bits.
BH_INLINE UintVec load_halves(const void* from) {
#if defined(__AVX512F__)
  return (UintVec)_mm512_maskz_cvtepu16_epi32(
      0xffff, _mm256_loadu_si256(static_cast<const __m256i*>(from)));
#elif defined(__AVX2__)
  return (UintVec)_mm256_cvtepu16_epi32(_mm_loadu_si128(static_cast<const __m128i*>(from)));
#else
  HalfBits bits;
  __builtin_memcpy(&bits, from, sizeof bits);
  return __builtin_convertvector(bits, UintVec);
#endif
}

/// Widens a small float of 1 + kBits bits: its magnitude goes kShift bits up, which leaves scaling
/// by the difference of the exponent biases and gets subnormals right. Magnitudes from kSpecial on
/// are infinities and NaNs and keep their mantissa.
template <int kBits, int kShift, uint32_t kSpecial>
BH_INLINE Vec widen_float(UintVec bits, float bias_scale) {
  const UintVec magnitude = (bits & ((1u << kBits) - 1)) << kShift;
  const UintVec special = (UintVec)(magnitude >= kSpecial << kShift) & 0x7f800000u;
  const UintVec sign = bits << (31 - kBits) & 0x80000000u;
  return (Vec)((UintVec)((Vec)magnitude * broadcast(bias_scale)) | special | sign);
}

BH_INLINE Vec load(const Float32* from) { return load(&from->value); }

BH_INLINE Vec load(const BFloat16* from) { return (Vec)(load_halves(from) << 16); }

BH_INLINE Vec load(const Float16* from) {
#if defined(__AVX512F__)
  return (Vec)_mm512_maskz_cvtph_ps(0xffff,
                                    _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
#elif defined(__F16C__)
  return (Vec)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
#elif defined(__aarch64__)
  return (Vec)vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(&from->bits)));
#else
  return widen_float<15, 13, 0x7c00>(load_halves(from), 0x1p112f);
#endif
}

#if !defined(BH_CONVERTS_HALVES)
BH_INLINE UintVec load_bytes(const void* from) {
  ByteBits bits;
  __builtin_memcpy(&bits, from, sizeof bits);
  return __builtin_convertvector(bits, UintVec);
}

BH_INLINE Vec load(const Float8E4M3* from) {
  return widen_float<7, 20, 0x7f>(load_bytes(from), 0x1p120f);
}

BH_INLINE Vec load(const Float8E5M2* from) {
  return widen_float<7, 21, 0x7c>(load_bytes(from), 0x1p112f);
}
#endif

/// Bytes of a line of the caches.
constexpr int kLine = 64;

/// Asks for the lines of some elements before they are needed: 3 is into the first-level cache, 2
/// into the second.
template <int kLocality = 3, class T>
BH_INLINE void fetch(const T* from, int count) {
  constexpr int kElements = kLine / static_cast<int>(sizeof(T));
  for (int i = 0; i < count; i += kElements) __builtin_prefetch(from + i, 0, kLocality);
}

/// A run of kTile elements, the unit of tiles.
constexpr int kVecsPerRun = kTile / kWidth;
typedef Vec Run[kVecsPerRun];

/// Runs that fill a line.
template <class E>
constexpr int kRunsPerLine = kLine / (kTile * static_cast<int>(sizeof(E)));

template <class E>
BH_INLINE void load_run(const E* from, Run& to) {
#pragma GCC unroll 4
  for (int v = 0; v < kVecsPerRun; ++v) to[v] = load(from + v * kWidth);
}

BH_INLINE void store_run(const Run& run, float* to) {
#pragma GCC unroll 4
  for (int v = 0; v < kVecsPerRun; ++v) store(to + v * kWidth, run[v]);
}

// ---- what micro-kernels multiply ----
//
// Elements that take long to widen to float go by way of another type, Widened<E>::Type, a line at
// a time.

template <class E>
struct Widened {
  using Type = E;
  static constexpr float kUnit = 1;  ///< times what was widened is the value
};

#if defined(BH_CONVERTS_HALVES)
template <>
struct Widened<Float8E4M3> {
  using Type = Float16;
  static constexpr float kUnit = 0x1p8f;
};
template <>
struct Widened<Float8E5M2> {
  using Type = Float16;
  static constexpr float kUnit = 1;
};

/// Elements that are widened at a time.
#if defined(__AVX512F__)
constexpr int kHalves = 2 * kTile;
#else
constexpr int kHalves = kTile;
#endif

template <int kCount>
struct HalvesOf {
  typedef int16_t Type __attribute__((vector_size(kCount * 2)));
};
template <int kCount>
using Halves = typename HalvesOf<kCount>::Type;

/// Signed bytes as signed halves.
template <int kCount>
BH_INLINE Halves<kCount> load_bytes(const void* from) {
#if defined(__AVX512F__)
  if constexpr (kCount == kHalves) {
    return (Halves<kCount>)_mm512_maskz_cvtepi8_epi16(
        ~__mmask32{}, _mm256_loadu_si256(static_cast<const __m256i*>(from)));
  } else
#endif
  {
#if defined(__AVX2__)
    return (Halves<kCount>)_mm256_cvtepi8_epi16(_mm_loadu_si128(static_cast<const __m128i*>(from)));
#else
    int8_t __attribute__((vector_size(kCount))) bytes;
    __builtin_memcpy(&bytes, from, sizeof bytes);
    return __builtin_convertvector(bytes, Halves<kCount>);
#endif
  }
}

/// The exponent's bias stays, which is what kUnit makes good. NaN comes out as a number.
template <int kCount>
BH_INLINE Halves<kCount> halves_of(const Float8E4M3* from) {
  return (load_bytes<kCount>(from) << 7) & static_cast<int16_t>(0xbfff);
}

/// The upper half of a float16.
template <int kCount>
BH_INLINE Halves<kCount> halves_of(const Float8E5M2* from) {
  return load_bytes<kCount>(from) << 8;
}

template <class H>
BH_INLINE void store_halves(Float16* to, H halves) {
  __builtin_memcpy(to, &halves, sizeof halves);
}

BH_INLINE void widen_run(const Float8E4M3* from, Float16* to) {
  const Halves<kTile> half = halves_of<kTile>(from);
  store_halves(to, half | ((half & int16_t{0x7fff}) == 0x3f80));
}

BH_INLINE void widen_run(const Float8E5M2* from, Float16* to) {
  store_halves(to, halves_of<kTile>(from));
}

/// Is any element of a line NaN?
BH_INLINE bool any_nan(const Float8E4M3* line) {
#if defined(__AVX512F__)
  const __m512i sign = _mm512_set1_epi8(static_cast<char>(0x80));
  const __m512i bytes = _mm512_or_si512(_mm512_loadu_si512(line), sign);
  return _mm512_cmpeq_epi8_mask(bytes, _mm512_set1_epi8(-1)) != 0;
#else
  typedef uint8_t HalfLine __attribute__((vector_size(kLine / 2)));
  HalfLine nan = {};
#pragma GCC unroll 2
  for (int i = 0; i < kLine; i += static_cast<int>(sizeof nan)) {
    HalfLine bytes;
    __builtin_memcpy(&bytes, line + i, sizeof bytes);
    nan |= (HalfLine)((bytes | uint8_t{0x80}) == uint8_t{0xff});
  }
#if defined(__AVX2__)
  return !_mm256_testz_si256((__m256i)nan, (__m256i)nan);
#else
  const uint8x16_t both = vorrq_u8(((uint8x16_t*)&nan)[0], ((uint8x16_t*)&nan)[1]);
  return vmaxvq_u8(both) != 0;
#endif
#endif
}
BH_INLINE bool any_nan(const Float8E5M2*) { return false; }

/// NaN is looked for at once, since it takes as long as all the rest run by run.
template <class E>
BH_INLINE void widen_line(const E* from, Float16* to) {
#pragma GCC unroll 4
  for (int i = 0; i < kLine; i += kHalves) store_halves(to + i, halves_of<kHalves>(from + i));
  if (!any_nan(from)) return;
  for (int i = 0; i < kLine; i += kTile) widen_run(from + i, to + i);
}
#else
template <class E>
struct WidenedToFloat {
  using Type = Float32;
  static constexpr float kUnit = 1;
};
template <>
struct Widened<Float16> : WidenedToFloat<Float16> {};
template <>
struct Widened<Float8E4M3> : WidenedToFloat<Float8E4M3> {};
template <>
struct Widened<Float8E5M2> : WidenedToFloat<Float8E5M2> {};

template <class E>
BH_INLINE void widen_run(const E* from, Float32* to) {
  Run run;
  load_run(from, run);
  store_run(run, &to->value);
}

template <class E>
BH_INLINE void widen_line(const E* from, Float32* to) {
  for (int i = 0; i < kRunsPerLine<E> * kTile; i += kTile) widen_run(from + i, to + i);
}
#endif

template <class E>
constexpr bool kMultipliesPairs = __is_same(E, BFloat16Pairs);

typedef uint16_t Line __attribute__((vector_size(kLine)));

/// Two runs as pairs of an element of each.
BH_INLINE Line pair_runs(Line runs) {
  Line places;
#pragma GCC unroll 32
  for (int i = 0; i < 2 * kTile; ++i) places[i] = static_cast<uint16_t>(i / 2 + i % 2 * kTile);
  return __builtin_shuffle(runs, places);
}

#if defined(__AVX512BF16__)
constexpr bool kHasPairs = true;

/// Two runs as a vector of pairs.
BH_INLINE UintVec load_pairs(const BFloat16Pairs* from) {
  Line runs;
  __builtin_memcpy(&runs, from, sizeof runs);
  return (UintVec)pair_runs(runs);
}

/// sum += both products of a pair of bfloat16 in memory and each one of `pairs`.
BH_INLINE void add_pair_products(Vec& sum, const float& pair, UintVec pairs) {
  asm("vdpbf16ps %2%{1to16%}, %1, %0" : "+v"(sum) : "v"(pairs), "m"(pair));
}
#else
constexpr bool kHasPairs = false;
#endif

template <class E>
constexpr bool kReadsDirectly = __is_same(typename Widened<E>::Type, E);

/// A run of the values of a cache, in its unit.
template <class E>
BH_INLINE void read_run(const E* from, Run& to) {
  if constexpr (kReadsDirectly<E>) {
    load_run(from, to);
  } else {
    typename Widened<E>::Type widened[kTile];
    widen_run(from, widened);
    load_run(widened, to);
  }
}

// ---- widening by table ----

#if defined(__AVX512VBMI__)
/// Are lines of E widened in registers, by bytes from tables?
template <class E>
constexpr bool kHasTable = __is_same(E, Float8E4M3);

/// The upper halves of the floats that codes without a sign are, in the unit; the lower ones are 0.
struct alignas(kLine) UpperHalves {
  uint8_t low[128];
  uint8_t high[128];

  constexpr UpperHalves() : low(), high() {
    constexpr int kNan = 127;
    for (int code = 0; code <= kNan; ++code) {
      const int exponent = code / 8, mantissa = code % 8;
      const float value = code == kNan    ? __builtin_nanf("")
                          : exponent == 0 ? __builtin_ldexpf(mantissa, -17)
                                          : __builtin_ldexpf(8 + mantissa, exponent - 18);
      const auto bits = __builtin_bit_cast(uint32_t, value);
      low[code] = static_cast<uint8_t>(bits >> 16);
      high[code] = static_cast<uint8_t>(bits >> 24);
    }
  }
};

/// Of the 16 floats of each run of a line, where two vectors have bytes 2 and 3.
struct alignas(kLine) UpperHalfPlaces {
  uint8_t of_run[4][kLine];

  constexpr UpperHalfPlaces() : of_run() {
    for (int run = 0; run < 4; ++run) {
      for (int i = 0; i < kTile; ++i) {
        of_run[run][4 * i + 2] = static_cast<uint8_t>(run * kTile + i);
        of_run[run][4 * i + 3] = static_cast<uint8_t>(kLine + run * kTile + i);
      }
    }
  }
};

BH_INLINE void widen_line(const Float8E4M3* from, Vec (&runs)[4]) {
  static constexpr UpperHalves kHalves;
  static constexpr UpperHalfPlaces kPlaces;
  constexpr __mmask64 kUpper = 0xccccccccccccccccu;
  const __m512i codes = _mm512_loadu_si512(from);
  // Looking up ignores the sign.
  const __m512i low = _mm512_permutex2var_epi8(_mm512_load_si512(kHalves.low), codes,
                                               _mm512_load_si512(kHalves.low + kLine));
  __m512i high = _mm512_permutex2var_epi8(_mm512_load_si512(kHalves.high), codes,
                                          _mm512_load_si512(kHalves.high + kLine));
  high |= codes & _mm512_set1_epi8(static_cast<char>(0x80));
#pragma GCC unroll 4
  for (int run = 0; run < 4; ++run) {
    runs[run] = (Vec)_mm512_maskz_permutex2var_epi8(kUpper, low,
                                                    _mm512_load_si512(kPlaces.of_run[run]), high);
  }
}
#else
template <class E>
constexpr bool kHasTable = false;
#endif

// ---- rounding: to nearest, ties to even ----

BH_INLINE Vec magnitude_of(Vec v) { return (Vec)((UintVec)v & 0x7fffffffu); }

/// The lower 1 + kBits bits of lanes that round to a small float, kMantissa of them the mantissa's,
/// whose smallest normal number is 2^kLowestExponent. Magnitudes beyond `largest` become it.
template <int kBits, int kMantissa, int kLowestExponent>
BH_INLINE UintVec round_float(Vec v, float largest, uint32_t nan) {
  constexpr int kDrop = 23 - kMantissa;
  constexpr uint32_t kLowest = static_cast<uint32_t>(127 + kLowestExponent) << 23;
  constexpr uint32_t kSign = 1u << kBits;
  const Vec magnitude = min(broadcast(largest), magnitude_of(v));
  const UintVec power =
      (UintVec)max((Vec)broadcast_bits(kLowest), (Vec)((UintVec)magnitude & 0x7f800000u));
  // Adding 1.5 * 2^23 of the format's steps rounds to them and leaves their count in the low bits,
  // to which the exponent is added, rebiased.
  const uint32_t rounder = (kDrop << 23) + (1u << 22) + (-(kLowest >> kDrop) & (2 * kSign - 1));
  const UintVec count = (UintVec)(magnitude + (Vec)(power + rounder));
  const UintVec bits = v == v ? count + (power >> kDrop) : broadcast_bits(nan);
  return bits | ((UintVec)v >> (31 - kBits) & kSign);
}

/// Stores the lower 16 bits of each lane; with AVX2 the upper ones must be zero.
BH_INLINE void store_halves(void* to, UintVec bits) {
#if defined(__AVX512F__)
  _mm256_storeu_si256(static_cast<__m256i*>(to),
                      _mm512_maskz_cvtepi32_epi16(0xffff, (__m512i)bits));
#elif defined(__AVX2__)
  const __m256i packed = _mm256_packus_epi32((__m256i)bits, (__m256i)bits);
  _mm_storeu_si128(static_cast<__m128i*>(to),
                   _mm256_castsi256_si128(_mm256_permute4x64_epi64(packed, 0x08)));
#else
  const HalfBits narrow = __builtin_convertvector(bits, HalfBits);
  __builtin_memcpy(to, &narrow, sizeof narrow);
#endif
}

/// Stores the lower 8 bits of each lane.
BH_INLINE void store_bytes(void* to, UintVec bits) {
#if defined(__AVX512F__)
  _mm_storeu_si128(static_cast<__m128i*>(to), _mm512_maskz_cvtepi32_epi8(0xffff, (__m512i)bits));
#elif defined(__AVX2__)
  const __m256i low = (__m256i)(bits & 0xffu);  // or packing would saturate
  const __m128i halves =
      _mm_packus_epi32(_mm256_castsi256_si128(low), _mm256_extracti128_si256(low, 1));
  _mm_storel_epi64(static_cast<__m128i*>(to), _mm_packus_epi16(halves, halves));
#else
  const ByteBits narrow = __builtin_convertvector(bits, ByteBits);
  __builtin_memcpy(to, &narrow, sizeof narrow);
#endif
}

BH_INLINE void store(Float32* to, Vec v) { store(&to->value, v); }

BH_INLINE void store(BFloat16* to, Vec v) {
#if defined(__AVX512BF16__)
  // The instruction makes zeros of subnormal numbers.
  if (_mm512_fpclass_ps_mask((__m512)v, 0x20) == 0) {
    const __m256bh rounded = _mm512_cvtneps_pbh((__m512)v);
    __builtin_memcpy(to, &rounded, sizeof rounded);
    return;
  }
#endif
  const UintVec bits = (UintVec)v;
  const UintVec rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  store_halves(to, v == v ? rounded : (bits >> 16) | 0x40u);
}

BH_INLINE void store(Float16* to, Vec v) {
#if defined(__AVX512F__)
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to),
                      _mm512_maskz_cvtps_ph(0xffff, (__m512)v, _MM_FROUND_TO_NEAREST_INT));
#elif defined(__F16C__)
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to),
                   _mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT));
#elif defined(__aarch64__)
  vst1_u16(&to->bits, vreinterpret_u16_f16(vcvt_f16_f32((float32x4_t)v)));
#else
  store_halves(to, round_float<15, 10, -14>(v, 65536.0f, 0x7e00u));  // which is infinity's
#endif
}

BH_INLINE void store(Float8E4M3* to, Vec v) {
  store_bytes(to, round_float<7, 3, -6>(v, 448.0f, 0x7fu));
}
BH_INLINE void store(Float8E5M2* to, Vec v) {
  store_bytes(to, round_float<7, 2, -14>(v, 57344.0f, 0x7eu));
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
