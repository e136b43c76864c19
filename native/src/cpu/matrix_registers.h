// SPDX-License-Identifier: Apache-2.0
// Matrix registers as AMX has them: eight, of 16 rows of 64 bytes. Elsewhere they are plain memory,
// which is of use to tests only. Included by kernel sources only (see vec.h).
#pragma once

#include "cpu/vec.h"

namespace broadhead::cpu::BH_TIER {

#if defined(__AMX_BF16__) || defined(BH_EMULATED_AMX)
constexpr bool kHasMatrices = true;
#else
constexpr bool kHasMatrices = false;
#endif

constexpr int kMatrixRows = 16;
constexpr int kMatrixRowBytes = 64;
constexpr int kMatrixBytes = kMatrixRows * kMatrixRowBytes;

#if defined(__AMX_BF16__)
/// Whoever uses the registers holds one of these: others have nothing to save for them.
class MatrixUse {
 public:
  MatrixUse() {
    constexpr int kCount = 8;
    struct {
      uint8_t palette = 1;
      uint8_t start_row = 0;
      uint8_t reserved[14] = {};
      uint16_t row_bytes[16] = {};
      uint8_t rows[16] = {};
    } shape;
    for (int i = 0; i < kCount; ++i) {
      shape.row_bytes[i] = kMatrixRowBytes;
      shape.rows[i] = kMatrixRows;
    }
    static_assert(sizeof shape == 64);
    asm volatile("ldtilecfg %0" : : "m"(shape));
  }
  MatrixUse(const MatrixUse&) = delete;
  MatrixUse& operator=(const MatrixUse&) = delete;
  ~MatrixUse() { asm volatile("tilerelease"); }
};

template <int kRegister>
BH_INLINE void clear_matrix() {
  asm volatile("tilezero %%tmm%c0" : : "i"(kRegister));
}

/// Rows that are `stride` bytes apart.
template <int kRegister>
BH_INLINE void load_matrix(const void* from, int64_t stride) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2"
               :
               : "r"(from), "r"(stride), "i"(kRegister)
               : "memory");
}

template <int kRegister>
BH_INLINE void store_matrix(void* to, int64_t stride) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)"
               :
               : "r"(to), "r"(stride), "i"(kRegister)
               : "memory");
}

/// sum[i][j] += left[i][2 k] * right[k][2 j] + left[i][2 k + 1] * right[k][2 j + 1] for all k:
/// float32 += bfloat16 * bfloat16.
template <int kSum, int kLeft, int kRight>
BH_INLINE void multiply_matrices() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(kSum), "i"(kLeft), "i"(kRight));
}
#else
struct alignas(64) MatrixRegister {
  float sums[kMatrixRows][16];
};
static thread_local MatrixRegister matrix_registers[8];

/// Whoever uses the registers holds one of these.
struct MatrixUse {
  MatrixUse() { __builtin_memset(matrix_registers, 0, sizeof matrix_registers); }
};

template <int kRegister>
BH_INLINE void clear_matrix() {
  matrix_registers[kRegister] = {};
}

/// Rows that are `stride` bytes apart.
template <int kRegister>
BH_INLINE void load_matrix(const void* from, int64_t stride) {
  for (int r = 0; r < kMatrixRows; ++r) {
    __builtin_memcpy(matrix_registers[kRegister].sums[r],
                     static_cast<const char*>(from) + r * stride, kMatrixRowBytes);
  }
}

template <int kRegister>
BH_INLINE void store_matrix(void* to, int64_t stride) {
  for (int r = 0; r < kMatrixRows; ++r) {
    __builtin_memcpy(static_cast<char*>(to) + r * stride, matrix_registers[kRegister].sums[r],
                     kMatrixRowBytes);
  }
}

/// sum[i][j] += left[i][2 k] * right[k][2 j] + left[i][2 k + 1] * right[k][2 j + 1] for all k:
/// float32 += bfloat16 * bfloat16.
template <int kSum, int kLeft, int kRight>
BH_INLINE void multiply_matrices() {
  auto element = [](int matrix, int row, int column) {
    uint32_t pair;
    __builtin_memcpy(&pair, &matrix_registers[matrix].sums[row][column / 2], sizeof pair);
    const uint32_t bits = column % 2 ? pair & 0xffff0000u : pair << 16;
    float value;
    __builtin_memcpy(&value, &bits, sizeof value);
    return value;
  };
  for (int i = 0; i < kMatrixRows; ++i) {
    for (int j = 0; j < 16; ++j) {
      float even = 0;
      float odd = 0;
      for (int k = 0; k < 16; ++k) {
        even += element(kLeft, i, 2 * k) * element(kRight, k, 2 * j);
        odd += element(kLeft, i, 2 * k + 1) * element(kRight, k, 2 * j + 1);
      }
      matrix_registers[kSum].sums[i][j] += even + odd;
    }
  }
}
#endif

}  // namespace broadhead::cpu::BH_TIER
