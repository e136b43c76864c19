// SPDX-License-Identifier: Apache-2.0
// Rounds many float16 or bfloat16 to fp8, to nearest, ties to even. Included by kernel sources only
// (see vec.h).
#pragma once

#include "cpu/element.h"

namespace broadhead::cpu::BH_TIER {

#if defined(BH_CONVERTS_HALVES)
typedef int16_t Words __attribute__((vector_size(sizeof(Vec))));
typedef uint8_t Bytes __attribute__((vector_size(sizeof(Vec))));

/// A constant that stays in a register: compilers would rather make it again in each turn of a
/// loop.
template <class V>
BH_INLINE V in_register(V v) {
#if defined(__x86_64__)
  asm("" : "+v"(v));
#else
  asm("" : "+w"(v));
#endif
  return v;
}

BH_INLINE Words words(int x) { return in_register(static_cast<int16_t>(x) - Words{}); }
BH_INLINE Bytes bytes(int x) { return in_register(static_cast<uint8_t>(x) - Bytes{}); }

BH_INLINE Bytes min(Bytes a, Bytes b) { return a < b ? a : b; }
BH_INLINE Bytes max(Bytes a, Bytes b) { return a > b ? a : b; }

/// a - b, or zero where b is larger; none is negative.
BH_INLINE Words subtract(Words a, Words b) {
#if defined(__AVX512F__)
  return (Words)_mm512_subs_epu16((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
  return (Words)_mm256_subs_epu16((__m256i)a, (__m256i)b);
#else
  return (Words)vqsubq_u16((uint16x8_t)a, (uint16x8_t)b);
#endif
}

BH_INLINE Bytes subtract(Bytes a, Bytes b) {
#if defined(__AVX512F__)
  return (Bytes)_mm512_subs_epu8((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
  return (Bytes)_mm256_subs_epu8((__m256i)a, (__m256i)b);
#else
  return (Bytes)vqsubq_u8((uint8x16_t)a, (uint8x16_t)b);
#endif
}

/// (a + b + 1) / 2
BH_INLINE Bytes average(Bytes a, Bytes b) {
#if defined(__AVX512F__)
  return (Bytes)_mm512_avg_epu8((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
  return (Bytes)_mm256_avg_epu8((__m256i)a, (__m256i)b);
#else
  return (Bytes)vrhaddq_u8((uint8x16_t)a, (uint8x16_t)b);
#endif
}

BH_INLINE bool any(Bytes v) {
#if defined(__AVX512F__)
  return _mm512_test_epi8_mask((__m512i)v, (__m512i)v) != 0;
#elif defined(__AVX2__)
  return !_mm256_testz_si256((__m256i)v, (__m256i)v);
#else
  return vmaxvq_u8((uint8x16_t)v) != 0;
#endif
}

/// Words of a and b as bytes, at most 255, in an order that only in_order() undoes.
BH_INLINE Bytes pack(Words a, Words b) {
#if defined(__AVX512F__)
  return (Bytes)_mm512_packus_epi16((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
  return (Bytes)_mm256_packus_epi16((__m256i)a, (__m256i)b);
#else
  return (Bytes)vqmovun_high_s16(vqmovun_s16((int16x8_t)a), (int16x8_t)b);
#endif
}

/// Bytes with the signs of words, in the same order.
BH_INLINE Bytes pack_signs(Words a, Words b) {
#if defined(__AVX512F__)
  return (Bytes)_mm512_packs_epi16((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
  return (Bytes)_mm256_packs_epi16((__m256i)a, (__m256i)b);
#else
  return (Bytes)vqmovn_high_s16(vqmovn_s16((int16x8_t)a), (int16x8_t)b);
#endif
}

BH_INLINE Bytes in_order(Bytes packed) {
#if defined(__AVX512F__)
  const __m512i places = _mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7);
  return (Bytes)_mm512_maskz_permutexvar_epi64(0xff, places, (__m512i)packed);
#elif defined(__AVX2__)
  return (Bytes)_mm256_permute4x64_epi64((__m256i)packed, 0xd8);
#else
  return packed;
#endif
}

/// 32 bytes, the halves of a table, in every lane of a vector.
struct Table {
  Bytes first;
  Bytes second;
};

/// Entries of a table; past its end any of them, or zero.
BH_INLINE Bytes look_up(const Table& table, Bytes at) {
#if defined(__AVX512F__)
  const __mmask64 second = _mm512_test_epi8_mask((__m512i)at, (__m512i)bytes(16));
  const __m512i first = _mm512_shuffle_epi8((__m512i)table.first, (__m512i)at);
  return (Bytes)_mm512_mask_shuffle_epi8(first, second, (__m512i)table.second, (__m512i)at);
#elif defined(__AVX2__)
  return (Bytes)_mm256_blendv_epi8(_mm256_shuffle_epi8((__m256i)table.first, (__m256i)at),
                                   _mm256_shuffle_epi8((__m256i)table.second, (__m256i)at),
                                   _mm256_slli_epi16((__m256i)at, 3));  // 16 becomes the sign
#else
  const uint8x16x2_t both = {(uint8x16_t)table.first, (uint8x16_t)table.second};
  return (Bytes)vqtbl2q_u8(both, (uint8x16_t)at);
#endif
}

/// An entry of the table of subnormal numbers, for a `place` that round_vector() counts. Their code
/// is the number in steps, which are the smallest number of E. Half way between two codes the rest
/// of the number decides: average() makes the upper one of this entry and 1, and of it and 0 the
/// even one. Elsewhere both are the same.
BH_INLINE constexpr uint8_t subnormal(int mantissa, int place) {
  const int one = 1 << mantissa;
  const int halves = (one + place % one) << place / one;  // of a step, times `one`
  const int steps = (halves + one) / (2 * one);           // half is rounded up
  const bool down = halves % (2 * one) == one && steps % 2 == 1;
  return static_cast<uint8_t>(2 * steps - down - 1);
}

template <class E>
BH_INLINE Table subnormals() {
  Table table;
#pragma GCC unroll 64
  for (int i = 0; i < static_cast<int>(sizeof(Bytes)); ++i) {
    const int places = (E::kMantissa + 1) << E::kMantissa;
    table.first[i] = i % 16 < places ? subnormal(E::kMantissa, i % 16) : 0;
    table.second[i] = 16 + i % 16 < places ? subnormal(E::kMantissa, 16 + i % 16) : 0;
  }
  return {in_register(table.first), in_register(table.second)};
}

/// Rounds a vector of E. Not if one is infinite, NaN or, of bfloat16, too large.
///
/// Magnitudes of S are cut into two bytes each: what E can hold, and what decides the rounding.
///
///     float16 to e4m3    s eeeee mmm rrrrrrr      high: eeeee mmm    low: rrrrrrr
///
/// `high` is counted from half the smallest number of E on, below which all becomes zero. Of normal
/// numbers of E it is their code and a constant. One is added where `low` is above half, or half
/// and the code odd; a carry into the exponent is right as it is. The kMantissa + 1 exponents of S
/// below are those of subnormal numbers, whose codes are in a table.
template <class S, class E>
BH_INLINE bool round_vector(const S* from, E* to) {
  constexpr bool kWider = S::kBias > E::kBias;  // has exponents that E has not
  constexpr int kRest = S::kMantissa - E::kMantissa;
  constexpr int kFirst = kWider ? (S::kBias - E::kBias - E::kMantissa) << E::kMantissa : 0;
  constexpr int kInfinity = ((2 * S::kBias + 1) << E::kMantissa) - kFirst;
  Words halves[2];
  __builtin_memcpy(halves, from, sizeof halves);
  Words counted[2];
#pragma GCC unroll 2
  for (int i = 0; i < 2; ++i) {
    counted[i] = subtract(halves[i] & words(0x7fff), words(kFirst << kRest));
  }
  const Bytes high = pack(counted[0] >> kRest, counted[1] >> kRest);
  if (any(subtract(high, bytes(kInfinity < 255 ? kInfinity - 1 : 254)))) return false;
  const Words rest = words((1 << kRest) - 1);
  const Bytes low = pack(counted[0] & rest, counted[1] & rest);
  const Bytes above_half = subtract(low | (high & bytes(1)), bytes(1 << (kRest - 1)));
  Bytes code = min(above_half, bytes(1));
  if constexpr (kWider) {
    // Each is at most the other where that one is right.
    const Bytes normal = code + subtract(high, bytes(E::kMantissa << E::kMantissa));
    code = max(normal, average(look_up(subnormals<E>(), high), min(low, bytes(1))));
  } else {
    code += high;
  }
  code = min(code, bytes(E::kLargest)) | (pack_signs(halves[0], halves[1]) & bytes(0x80));
  code = in_order(code);
  __builtin_memcpy(to, &code, sizeof code);
  return true;
}

/// Rounds the first of `count` elements and returns how many those are: whole vectors, and none of
/// types that are rounded as floats.
template <class S, class E>
BH_INLINE int round_vectors(const S* from, int count, E* to) {
  int i = 0;
  if constexpr (sizeof(S) == 2 && sizeof(E) == 1) {
    constexpr int kStep = sizeof(Bytes);
    for (; i + kStep <= count; i += kStep) {
      if (round_vector(from + i, to + i)) continue;
      for (int j = i; j < i + kStep; j += kWidth) store(to + j, load(from + j));
    }
  }
  return i;
}
#else
template <class S, class E>
BH_INLINE int round_vectors(const S*, int, E*) {
  return 0;
}
#endif

}  // namespace broadhead::cpu::BH_TIER
