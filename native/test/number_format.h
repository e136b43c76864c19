// SPDX-License-Identifier: Apache-2.0
// The element types of tensors and caches, written down independently of the kernels.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "broadhead/broadhead.h"

namespace broadhead::test {

int element_bytes(int dtype);
std::string dtype_label(int dtype);

/// Value of an element.
double decode(int dtype, uint32_t bits);

/// The element nearest to `value`, ties to even. The fp8 types saturate, the others overflow to
/// infinity; NaN stays NaN.
uint32_t encode(int dtype, double value);

/// The value of the element nearest to `value`.
inline double rounded(int dtype, double value) { return decode(dtype, encode(dtype, value)); }

/// Largest error of rounding x, without regard to overflow.
double rounding_error(int dtype, double x);

/// Elements in memory, as tensors and caches hold them.
uint32_t load_bits(int dtype, const void* elements, int64_t index);
void store_bits(int dtype, void* elements, int64_t index, uint32_t bits);
std::vector<uint8_t> encode_all(int dtype, const std::vector<float>& values);

}  // namespace broadhead::test
