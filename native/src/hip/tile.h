// SPDX-License-Identifier: Apache-2.0
// Matrix tiles in the registers of a wave: C[16 x kColumns] += A[16 x 16] B[16 x kColumns].
//
// Attention is computed transposed on every machine: scores are keys times query columns, and
// results are dimensions of the head times query columns. So a wave's columns are query rows (a
// token's head), a running softmax is a number for each column, and with the orders below a lane
// reads all it needs of A, keys or values, in contiguous runs of 16 bytes.
//
//                      A (row, 16 contracted)         B (column)     C (4 or 8 floats)
//   mma     lane / 4 = g, lane % 4 = t
//           rows g, g + 8; part t of 4                column g       rows g, g, g + 8, g + 8
//                                                                    columns 2t, 2t + 1, 2t, 2t + 1
//   mfma    row lane % 16; part lane / 16 of 4        column l % 16  rows 4 * (lane / 16) + i
//   wmma12  row lane % 16; part lane / 16 of 2        column l % 16  rows 8 * (lane / 16) + i
//   wmma11  row lane % 16; all (lanes l and l + 16    column l % 16  rows 2 * i + lane / 16
//           hold the same)
//
// mma: NVIDIA m16n8k16, 32 lanes. mfma: CDNA v_mfma_f32_16x16x16, 64 lanes. wmma12 and wmma11: RDNA
// 4 and 3 v_wmma_f32_16x16x16, 32 lanes. The four numbers of a part are contracted indices 2t, 2t +
// 1, 2t + 8, 2t + 9 for mma and successive ones elsewhere. Only the product of weights and values
// depends on that (key_of); for keys and queries the contracted index is the dimension, whose order
// is free as long as both agree: a lane's part of a segment of dimensions is a contiguous run.
#pragma once

#include "hip/cache_layout.h"
#include "hip/element.h"

namespace broadhead::gpu {

#if BH_TILE == BH_TILE_MMA
constexpr int kColumns = 8;
constexpr int kParts = 4;     ///< lanes that share a row of A
constexpr int kRowLanes = 8;  ///< lanes that hold different rows of A
constexpr int kLaneRows = 2;  ///< rows of A of a lane
constexpr int kLaneColumns = 2;
constexpr int kSumWords = 4;
#else
constexpr int kColumns = 16;
constexpr int kParts = BH_TILE == BH_TILE_MFMA ? 4 : BH_TILE == BH_TILE_WMMA12 ? 2 : 1;
constexpr int kRowLanes = 16;
constexpr int kLaneRows = 1;
constexpr int kLaneColumns = 1;
constexpr int kSumWords = BH_TILE == BH_TILE_MFMA ? 4 : 8;
#endif
constexpr int kPartWords = 8 / kParts;  ///< words of 16-bit pairs of a lane's part of 16
constexpr int kLaneKeys = 16 / kParts;

struct Rows {
  uint32_t words[kLaneRows * kPartWords];
};
struct Columns {
  uint32_t words[kPartWords];
};
struct Sums {
  float values[kSumWords];
};

BH_INLINE int part_index() {
#if BH_TILE == BH_TILE_MMA
  return lane_index() % 4;
#elif BH_TILE == BH_TILE_WMMA11
  return 0;
#else
  return lane_index() / 16;
#endif
}

/// Row of A of a lane; its second one is kRowLanes further.
BH_INLINE int row_index() {
#if BH_TILE == BH_TILE_MMA
  return lane_index() / 4;
#else
  return lane_index() % 16;
#endif
}

/// Column of B of a lane.
BH_INLINE int column_index() { return row_index(); }

/// Row and column of number i of C.
BH_INLINE int sum_row(int i) {
#if BH_TILE == BH_TILE_MMA
  return lane_index() / 4 + i / 2 * 8;
#elif BH_TILE == BH_TILE_WMMA11
  return 2 * i + lane_index() / 16;
#else
  return kSumWords * (lane_index() / 16) + i;
#endif
}
/// Which of a lane's columns number i belongs to.
BH_HOST_DEVICE constexpr int lane_column(int i) { return i % kLaneColumns; }
BH_INLINE int sum_column(int i) {
#if BH_TILE == BH_TILE_MMA
  return lane_index() % 4 * 2 + i;
#else
  return lane_index() % 16 + i * 0;
#endif
}

/// Contracted index, as the product of weights and values counts it, of a lane's number j of 16.
BH_INLINE int key_of(int j) {
#if BH_TILE == BH_TILE_MMA
  return lane_index() % 4 * 2 + j % 2 + j / 2 * 8;
#elif BH_TILE == BH_TILE_WMMA11
  return j;
#else
  return kLaneKeys * (lane_index() / 16) + j;
#endif
}

/// Reduces a number of each lane over the lanes that hold the same columns of C.
template <class Op>
BH_INLINE float over_rows(float x, Op&& op) {
#if BH_TILE == BH_TILE_MMA
  x = op(x, shuffle_xor(x, 4));
  x = op(x, shuffle_xor(x, 8));
  x = op(x, shuffle_xor(x, 16));
#else
  x = op(x, shuffle_xor(x, 16));
  if constexpr (kWave == 64) x = op(x, shuffle_xor(x, 32));
#endif
  return x;
}
BH_INLINE float max_over_rows(float x) {
  return over_rows(x, [](float a, float b) { return a > b ? a : b; });
}
BH_INLINE float sum_over_rows(float x) {
  return over_rows(x, [](float a, float b) { return a + b; });
}

// ---- the product ----

#if defined(BH_EMULATED)
template <class T>
BH_INLINE void multiply(const Rows& a, const Columns& b, Sums& c) {
  struct Operands {
    Rows a;
    Columns b;
  };
  const auto* all = emulator::gather(Operands{a, b});
  for (int i = 0; i < kSumWords; ++i) {
    const int row = sum_row(i);
    const int column = sum_column(lane_column(i));
    float sum = 0;
    for (int lane = 0; lane < kWave; ++lane) {
#if BH_TILE == BH_TILE_MMA
      if (lane / 4 != column) continue;
      const Operands& of_row = all[row % 8 * 4 + lane % 4];
      const int first = row / 8;
      constexpr int kStep = 2;
#else
      if (lane % 16 != column || (BH_TILE == BH_TILE_WMMA11 && lane >= 16)) continue;
      const Operands& of_row = all[row + lane / 16 * 16];
      constexpr int first = 0;
      constexpr int kStep = 1;
#endif
      for (int w = 0; w < kPartWords; ++w) {
        const uint32_t x = of_row.a.words[first + w * kStep];
        const uint32_t y = all[lane].b.words[w];
        sum += widen_low<T>(x) * widen_low<T>(y) + widen_high<T>(x) * widen_high<T>(y);
      }
    }
    c.values[i] += sum;
  }
}
#elif BH_TILE == BH_TILE_MMA
template <class T>
BH_INLINE void multiply(const Rows& a, const Columns& b, Sums& c);
template <>
BH_INLINE void multiply<Float16>(const Rows& a, const Columns& b, Sums& c) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c.values[0]), "+f"(c.values[1]), "+f"(c.values[2]), "+f"(c.values[3])
      : "r"(a.words[0]), "r"(a.words[1]), "r"(a.words[2]), "r"(a.words[3]), "r"(b.words[0]),
        "r"(b.words[1]));
}
template <>
BH_INLINE void multiply<BFloat16>(const Rows& a, const Columns& b, Sums& c) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c.values[0]), "+f"(c.values[1]), "+f"(c.values[2]), "+f"(c.values[3])
      : "r"(a.words[0]), "r"(a.words[1]), "r"(a.words[2]), "r"(a.words[3]), "r"(b.words[0]),
        "r"(b.words[1]));
}
#elif defined(__HIP_DEVICE_COMPILE__)
template <class V, class From>
BH_INLINE V as_vector(const From& from) {
  V v;
  static_assert(sizeof v == sizeof from);
  __builtin_memcpy(&v, &from, sizeof v);
  return v;
}
template <class T, int kCount>
struct OperandOf;
template <int kCount>
struct OperandOf<Float16, kCount> {
  typedef _Float16 Vector __attribute__((ext_vector_type(kCount)));
};
template <int kCount>
struct OperandOf<BFloat16, kCount> {
#if BH_TILE == BH_TILE_MFMA || BH_TILE == BH_TILE_WMMA11 || BH_TILE == BH_TILE_WMMA12
  typedef short Vector __attribute__((ext_vector_type(kCount)));
#endif
};
typedef float SumVector __attribute__((ext_vector_type(kSumWords)));

template <class T>
BH_INLINE void multiply(const Rows& a, const Columns& b, Sums& c) {
  using V = typename OperandOf<T, 2 * kPartWords>::Vector;
  const auto x = as_vector<V>(a.words);
  const auto y = as_vector<V>(b.words);
  auto sum = as_vector<SumVector>(c.values);
  constexpr bool kHalf = sizeof(T) == 2 && __is_same(T, Float16);
#if BH_TILE == BH_TILE_MFMA
  if constexpr (kHalf) {
    sum = __builtin_amdgcn_mfma_f32_16x16x16f16(x, y, sum, 0, 0, 0);
  } else {
    sum = __builtin_amdgcn_mfma_f32_16x16x16bf16_1k(x, y, sum, 0, 0, 0);
  }
#elif BH_TILE == BH_TILE_WMMA11
  if constexpr (kHalf) {
    sum = __builtin_amdgcn_wmma_f32_16x16x16_f16_w32(x, y, sum);
  } else {
    sum = __builtin_amdgcn_wmma_f32_16x16x16_bf16_w32(x, y, sum);
  }
#else
  if constexpr (kHalf) {
    sum = __builtin_amdgcn_wmma_f32_16x16x16_f16_w32_gfx12(x, y, sum);
  } else {
    sum = __builtin_amdgcn_wmma_f32_16x16x16_bf16_w32_gfx12(x, y, sum);
  }
#endif
  c = as_vector<Sums>(sum);
}
#else
template <class T>
BH_INLINE void multiply(const Rows&, const Columns&, Sums&) {}  // the host's pass
#endif

// ---- from scores to weights ----

/// A tile of weights, C, rounded to T, as the columns that multiply values.
template <class T>
BH_INLINE Columns to_columns(const Sums& c) {
  Columns b;
#if BH_TILE == BH_TILE_MMA
  for (int half = 0; half < 2; ++half) {
    const uint32_t word = pack<T>(c.values[2 * half], c.values[2 * half + 1]);
#if defined(BH_EMULATED)
    // movmatrix: the 8 x 8 matrix whose row lane / 4 is two elements of four lanes, transposed.
    const auto* all = emulator::gather(word);
    const int row = lane_index() / 4, pair = lane_index() % 4 * 2;
    auto element = [&](int i) { return all[i * 4 + row / 2] >> (row % 2 * 16) & 0xffffu; };
    b.words[half] = element(pair) | element(pair + 1) << 16;
#else
    asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(b.words[half]) : "r"(word));
#endif
  }
#elif BH_TILE == BH_TILE_WMMA11
  // A lane has the odd or the even rows; the others are in the other half of the wave.
  const bool odd = lane_index() >= 16;
  for (int w = 0; w < 4; ++w) {
    const uint32_t own = pack<T>(c.values[2 * w], c.values[2 * w + 1]);
    const uint32_t other = shuffle_xor(own, 16);
    const uint32_t even_rows = odd ? other : own;
    const uint32_t odd_rows = odd ? own : other;
    b.words[2 * w] = byte_permute(even_rows, odd_rows, 0x5410);
    b.words[2 * w + 1] = byte_permute(even_rows, odd_rows, 0x7632);
  }
#else
#pragma unroll
  for (int w = 0; w < kPartWords; ++w) b.words[w] = pack<T>(c.values[2 * w], c.values[2 * w + 1]);
#endif
  return b;
}

// ---- segments of a head ----

/// A head's dimensions are cut into segments of a power of two; a lane takes a contiguous run of
/// each: segment / lanes numbers.
BH_HOST_DEVICE constexpr int segment_size(int head_size, int begin, int largest) {
  int size = largest;
  while (size > head_size - begin) size /= 2;
  return size;
}

/// Calls visit(begin, size) for the segments of kHead, both constants.
template <int kValue>
struct Constant {
  static constexpr int value = kValue;
  BH_HOST_DEVICE constexpr operator int() const { return kValue; }
};
template <int kHead, int kLargest, int kBegin = 0, class Visit>
BH_INLINE void for_each_segment(Visit&& visit) {
  if constexpr (kBegin < kHead) {
    constexpr int kSize = segment_size(kHead, kBegin, kLargest);
    visit(Constant<kBegin>{}, Constant<kSize>{});
    for_each_segment<kHead, kLargest, kBegin + kSize>(visit);
  }
}

/// Largest segment of keys and queries, and of values: what makes runs of 16 bytes.
constexpr int kKeySegment = 64;
template <class E>
constexpr int kValueSegment = kRowLanes*(16 / int{sizeof(E)});

/// Words of a lane's run of so many bytes.
BH_HOST_DEVICE constexpr int run_words(int bytes) { return bytes < 4 ? 1 : bytes / 4; }

/// Words of a lane's runs of all segments that begin before `end`.
BH_HOST_DEVICE constexpr int words_before(int end, int head_size, int largest, int lanes,
                                          int element) {
  int words = 0;
  for (int begin = 0; begin < end;) {
    const int size = segment_size(head_size, begin, largest);
    words += run_words(size / lanes * element);
    begin += size;
  }
  return words;
}

/// Where a tile lies.
enum class Memory { kCache, kShared };

/// Loads a lane's run, kBytes long and number `lane` of a segment that starts at byte kBegin, of a
/// token's head of kRowBytes in a tile.
template <Memory kMemory, int kRowBytes, int kBegin, int kBytes>
BH_INLINE void load_run(const char* tile, int token, int lane, uint32_t* words) {
  // A segment of several panels has only full ones.
  constexpr int kWidth = panel_width(kRowBytes, kBegin / kPanel);
  const int byte = kBegin + lane * kBytes;
  const char* row = tile + token / kPanelTokens * kPanelTokens * kRowBytes +
                    byte / kPanel * kPanel * kPanelTokens + token % kPanelTokens * kWidth;
  const int chunk = byte % kPanel / kChunk;
  const int permuted = swizzle(kWidth, token);
  if constexpr (kBytes >= kChunk) {
#pragma unroll
    for (int c = 0; c < kBytes / kChunk; ++c) {
      const auto* from = reinterpret_cast<const Chunk*>(row + ((chunk + c) ^ permuted) * kChunk);
      const Chunk loaded = kMemory == Memory::kCache ? load_constant(from) : *from;
#pragma unroll
      for (int w = 0; w < 4; ++w) words[4 * c + w] = loaded.words[w];
    }
  } else {
    const char* from = row + (chunk ^ permuted) * kChunk + byte % kChunk;
    if constexpr (kBytes == 8) {
      const Words2 loaded = *reinterpret_cast<const Words2*>(from);
      words[0] = loaded.words[0];
      words[1] = loaded.words[1];
    } else if constexpr (kBytes == 4) {
      words[0] = *reinterpret_cast<const uint32_t*>(from);
    } else if constexpr (kBytes == 2) {
      words[0] = *reinterpret_cast<const uint16_t*>(from);
    } else {
      words[0] = *reinterpret_cast<const uint8_t*>(from);
    }
  }
}

/// Widens kCount elements of a run to words of pairs of T; exact.
template <class T, class E, int kCount>
BH_INLINE void widen_run(const uint32_t* raw, uint32_t* words) {
  if constexpr (sizeof(E) == 1) {
    uint32_t pairs[2];
#pragma unroll
    for (int i = 0; i < (kCount + 3) / 4; ++i) {
      widen_four<T>(raw[i], pairs, E{});
      words[2 * i] = pairs[0];
      if (4 * i + 2 < kCount) words[2 * i + 1] = pairs[1];
    }
  } else {
#pragma unroll
    for (int i = 0; i < (kCount + 1) / 2; ++i) words[i] = raw[i];
  }
}

// ---- keys and values of a tile of 16 tokens, as a lane loads them ----

template <class T, class E, int kHead>
struct KeyTile {
  static constexpr int kRowBytes = kHead * int{sizeof(E)};
  static constexpr int kWords = words_before(kHead, kHead, kKeySegment, kParts, sizeof(E));
  uint32_t raw[kLaneRows][kWords];

  template <Memory kMemory>
  BH_INLINE void load(const char* tile) {
    const int first = computed_again(0);
#pragma unroll
    for (int r = 0; r < kLaneRows; ++r) {
      for_each_segment<kHead, kKeySegment>([&](auto begin, auto size) {
        constexpr int kFirst =
            words_before(decltype(begin)::value, kHead, kKeySegment, kParts, sizeof(E));
        load_run<kMemory, kRowBytes, decltype(begin)::value* int{sizeof(E)},
                 decltype(size)::value / kParts* int{sizeof(E)}>(
            tile, first + row_index() + r * kRowLanes, part_index(), raw[r] + kFirst);
      });
    }
  }

  /// Calls visit(i, rows) for every 16 dimensions, in the order of load_query.
  template <class Visit>
  BH_INLINE void for_each(Visit&& visit) const {
    for_each_segment<kHead, kKeySegment>([&](auto begin, auto size) {
      constexpr int kBegin = decltype(begin)::value;
      constexpr int kSize = decltype(size)::value;
      constexpr int kFirst = words_before(kBegin, kHead, kKeySegment, kParts, sizeof(E));
      constexpr int kStep = kPartWords * 2 * int{sizeof(E)} / 4;  // raw words of 16 dimensions
#pragma unroll
      for (int i = 0; i < kSize / 16; ++i) {
        Rows rows;
#pragma unroll
        for (int r = 0; r < kLaneRows; ++r) {
          uint32_t words[kPartWords];
          widen_run<T, E, 2 * kPartWords>(raw[r] + kFirst + i * kStep, words);
#pragma unroll
          for (int w = 0; w < kPartWords; ++w) rows.words[r + w * kLaneRows] = words[w];
        }
        visit(kBegin / 16 + i, rows);
      }
    });
  }
};

template <class T, class E, int kHead>
struct ValueTile {
  static constexpr int kRowBytes = kHead * int{sizeof(E)};
  static constexpr int kSegment = kValueSegment<E>;
  static constexpr int kWords = words_before(kHead, kHead, kSegment, kRowLanes, sizeof(E));
  uint32_t raw[kLaneKeys][kWords];

  template <Memory kMemory>
  BH_INLINE void load(const char* tile) {
    const int first = computed_again(0);
#pragma unroll
    for (int j = 0; j < kLaneKeys; ++j) {
      for_each_segment<kHead, kSegment>([&](auto begin, auto size) {
        constexpr int kFirst =
            words_before(decltype(begin)::value, kHead, kSegment, kRowLanes, sizeof(E));
        load_run<kMemory, kRowBytes, decltype(begin)::value* int{sizeof(E)},
                 decltype(size)::value / kRowLanes* int{sizeof(E)}>(tile, first + key_of(j),
                                                                    row_index(), raw[j] + kFirst);
      });
    }
  }

  /// Makes the values of tokens outside first .. end - 1 of the tile zero: a weight of zero does
  /// not undo a NaN.
  BH_INLINE void keep(int first, int end) {
#pragma unroll
    for (int j = 0; j < kLaneKeys; ++j) {
      const bool kept = key_of(j) >= first && key_of(j) < end;
#pragma unroll
      for (int w = 0; w < kWords; ++w) raw[j][w] = kept ? raw[j][w] : 0;
    }
  }

  /// Makes infinities and NaNs zero and tells whether this lane had some.
  BH_INLINE bool drop_unbounded() {
    uint32_t found = 0;
#pragma unroll
    for (int j = 0; j < kLaneKeys; ++j) {
#pragma unroll
      for (int w = 0; w < kWords; ++w) {
        const uint32_t bits = unbounded_bits<E>(raw[j][w]);
        found |= bits;
        raw[j][w] &= ~bits;
      }
    }
    return found != 0;
  }

  /// Calls visit(i, rows) for every 16 dimensions of the result; see for_each_result().
  template <class Visit>
  BH_INLINE void for_each(Visit&& visit) const {
    for_each_segment<kHead, kSegment>([&](auto begin, auto size) {
      constexpr int kBegin = decltype(begin)::value;
      constexpr int kRun = decltype(size)::value / kRowLanes;
      constexpr int kFirst = words_before(kBegin, kHead, kSegment, kRowLanes, sizeof(E));
      constexpr int kStep = sizeof(E) == 1 ? 4 : 2;  // numbers in a raw word
#pragma unroll
      for (int r = 0; r < (kRun + kStep - 1) / kStep; ++r) {
        constexpr int kCount = kRun < kStep ? kRun : kStep;
        uint32_t pairs[kLaneKeys][2];
#pragma unroll
        for (int j = 0; j < kLaneKeys; ++j) {
          widen_run<T, E, kCount>(raw[j] + kFirst + r, pairs[j]);
        }
#pragma unroll
        for (int p = 0; p < (kCount + 1) / 2; ++p) {
          Rows rows;
#pragma unroll
          for (int w = 0; w < kPartWords; ++w) {
            const uint32_t a = pairs[2 * w][p], b = pairs[2 * w + 1][p];
            rows.words[w * kLaneRows] = byte_permute(a, b, 0x5410);
            if constexpr (kLaneRows == 2)
              rows.words[w * kLaneRows + 1] = byte_permute(a, b, 0x7632);
          }
          const int pair = r * kStep / 2 + p;
          if constexpr (kLaneRows == 2) {
            visit(kBegin / 16 + pair, rows);
          } else {
            visit(kBegin / 16 + 2 * pair, rows);
            if constexpr (kCount > 1) {
#pragma unroll
              for (int w = 0; w < kPartWords; ++w) {
                rows.words[w] = byte_permute(pairs[2 * w][p], pairs[2 * w + 1][p], 0x7632);
              }
              visit(kBegin / 16 + 2 * pair + 1, rows);
            }
          }
        }
      }
    });
  }
};

/// Calls visit(lane column, first dimension, numbers) for the runs of dimensions of the result that
/// a lane holds: sums[i] is tile i of the head, as ValueTile::for_each numbers them.
template <class E, int kHead, class Visit>
BH_INLINE void for_each_result(const Sums* sums, Visit&& visit) {
  for_each_segment<kHead, kValueSegment<E>>([&](auto begin, auto size) {
    constexpr int kBegin = decltype(begin)::value;
    constexpr int kRun = decltype(size)::value / kRowLanes;
    float numbers[kRun];
    if constexpr (kLaneRows == 2) {
#pragma unroll
      for (int c = 0; c < kLaneColumns; ++c) {
#pragma unroll
        for (int d = 0; d < kRun; ++d) {
          numbers[d] = sums[kBegin / 16 + d / 2].values[d % 2 * 2 + c];
        }
        visit(c, kBegin + row_index() * kRun, numbers, Constant<kRun>{});
      }
    } else {
#pragma unroll
      for (int i = 0; i < kSumWords; ++i) {
#pragma unroll
        for (int d = 0; d < kRun; ++d) numbers[d] = sums[kBegin / 16 + d].values[i];
        visit(0, kBegin + sum_row(i) * kRun, numbers, Constant<kRun>{});
      }
    }
  });
}

/// Loads a lane's part of one query row, [kHead] of T, as the columns that keys multiply; zeros for
/// NULL.
template <class T, int kHead>
BH_INLINE void load_query(const T* row, Columns* columns) {
  for_each_segment<kHead, kKeySegment>([&](auto begin, auto size) {
    constexpr int kBegin = decltype(begin)::value;
    constexpr int kRun = decltype(size)::value / kParts;
    const auto* from = reinterpret_cast<const Words2*>(row + kBegin + part_index() * kRun);
#pragma unroll
    for (int i = 0; i < kRun / 4; ++i) {
      const Words2 pair = row ? from[i] : Words2{};
#pragma unroll
      for (int w = 0; w < 2; ++w) {
        const int word = 2 * i + w;
        columns[kBegin / 16 + word / kPartWords].words[word % kPartWords] = pair.words[w];
      }
    }
  });
}

/// Makes float16 of the bfloat16 columns of a query, whose part in each lane is `columns`:
/// multiplied with the power of two that brings its largest number below 2^15, so that nothing of
/// weight is lost. Returns the inverse of that power.
template <int kCount>
BH_INLINE float to_float16(Columns (&columns)[kCount]) {
  uint32_t largest = 0;  // the bits of a magnitude, which are in its order
#pragma unroll
  for (const Columns& c : columns) {
#pragma unroll
    for (const uint32_t word : c.words) {
      const uint32_t low = word & 0x7fffu, high = word >> 16 & 0x7fffu;
      largest = low > largest ? low : largest;
      largest = high > largest ? high : largest;
    }
  }
#pragma unroll
  for (int part = 1; part < kParts; part *= 2) {
    const uint32_t other = shuffle_xor(largest, kParts == 4 && kRowLanes == 8 ? part : 16 * part);
    largest = other > largest ? other : largest;
  }
  // An infinity or a NaN stays one; below 2^-100 there is nothing to gain.
  const int exponent = static_cast<int>(largest >> 7);
  const int shift = exponent == 255 || exponent < 27 ? 0 : 127 + 14 - exponent;
  const float power = bits_to_float(static_cast<uint32_t>(127 + shift) << 23);
#pragma unroll
  for (Columns& c : columns) {
#pragma unroll
    for (uint32_t& word : c.words) {
      word = pack<Float16>(widen_low<BFloat16>(word) * power, widen_high<BFloat16>(word) * power);
    }
  }
  return bits_to_float(static_cast<uint32_t>(127 - shift) << 23);
}

}  // namespace broadhead::gpu
