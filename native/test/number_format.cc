// SPDX-License-Identifier: Apache-2.0
#include "number_format.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

namespace broadhead::test {
namespace {

struct Format {
  const char* label;
  int bytes;
  int mantissa;         ///< stored mantissa bits
  int lowest_exponent;  ///< of normal numbers
  double largest;
  uint32_t overflow;  ///< code of what is too large: infinity, or the largest number
  uint32_t infinity;  ///< 0: none
  uint32_t nan;
};

constexpr Format kFormats[] = {
    {"float32", 4, 23, -126, std::numeric_limits<float>::max(), 0x7f800000, 0x7f800000, 0x7fc00000},
    {"float16", 2, 10, -14, 65504, 0x7c00, 0x7c00, 0x7e00},
    {"bfloat16", 2, 7, -126, 0x1.fep127, 0x7f80, 0x7f80, 0x7fc0},
    {"fp8_e4m3", 1, 3, -6, 448, 0x7e, 0, 0x7f},
    {"fp8_e5m2", 1, 2, -14, 57344, 0x7b, 0x7c, 0x7e},
};

constexpr const Format& format_of(int dtype) { return kFormats[dtype - BH_FLOAT32]; }

constexpr double power_of_two(int exponent) {
  return std::bit_cast<double>(static_cast<uint64_t>(exponent + 1023) << 52);
}

int exponent_of(double magnitude) {
  return static_cast<int>(std::bit_cast<uint64_t>(magnitude) >> 52) - 1023;
}

double decode_slowly(int dtype, uint32_t bits) {
  const Format& f = format_of(dtype);
  const uint32_t sign = 1u << (8 * f.bytes - 1);
  const uint32_t code = bits & (sign - 1);
  const int exponent = static_cast<int>(code >> f.mantissa);
  const double fraction = code & ((1u << f.mantissa) - 1);
  double magnitude;
  if (f.infinity ? code > f.infinity : code == f.nan) {
    magnitude = std::numeric_limits<double>::quiet_NaN();
  } else if (f.infinity && code == f.infinity) {
    magnitude = std::numeric_limits<double>::infinity();
  } else if (exponent == 0) {
    magnitude = std::ldexp(fraction, f.lowest_exponent - f.mantissa);
  } else {
    magnitude = std::ldexp(fraction + power_of_two(f.mantissa),
                           exponent - 1 + f.lowest_exponent - f.mantissa);
  }
  return bits & sign ? -magnitude : magnitude;
}

/// All values of the narrow dtypes.
struct Tables {
  std::vector<double> of[BH_FLOAT8_E5M2 + 1];

  Tables() {
    for (int dtype = BH_FLOAT16; dtype <= BH_FLOAT8_E5M2; ++dtype) {
      for (uint32_t bits = 0; bits < 1u << (8 * element_bytes(dtype)); ++bits) {
        of[dtype].push_back(decode_slowly(dtype, bits));
      }
    }
  }
};

/// The dtype is known to the compiler: tests spend much of their time here.
template <int kDtype>
uint32_t encode_narrow(double value) {
  constexpr const Format& f = format_of(kDtype);
  const uint32_t sign = std::signbit(value) ? 1u << (8 * f.bytes - 1) : 0;
  if (std::isnan(value)) return sign | f.nan;
  const double magnitude = std::fabs(value);
  if (std::isinf(magnitude)) return sign | f.overflow;
  const int exponent = std::max(exponent_of(magnitude), f.lowest_exponent);
  // Dividing by the step between neighbours is exact; adding and subtracting 2^52 rounds to an
  // integer, ties to even.
  const double steps = magnitude * power_of_two(f.mantissa - exponent);
  const double whole = (steps + 0x1p52) - 0x1p52;
  if (whole * power_of_two(exponent - f.mantissa) > f.largest) return sign | f.overflow;
  return sign | ((static_cast<uint32_t>(exponent - f.lowest_exponent) << f.mantissa) +
                 static_cast<uint32_t>(whole));
}

}  // namespace

int element_bytes(int dtype) { return format_of(dtype).bytes; }

std::string dtype_label(int dtype) { return format_of(dtype).label; }

double decode(int dtype, uint32_t bits) {
  static const Tables kTables;
  if (dtype == BH_FLOAT32) return double{std::bit_cast<float>(bits)};
  return kTables.of[dtype][bits];
}

uint32_t encode(int dtype, double value) {
  switch (dtype) {
    case BH_FLOAT16:
      return encode_narrow<BH_FLOAT16>(value);
    case BH_BFLOAT16:
      return encode_narrow<BH_BFLOAT16>(value);
    case BH_FLOAT8_E4M3FN:
      return encode_narrow<BH_FLOAT8_E4M3FN>(value);
    case BH_FLOAT8_E5M2:
      return encode_narrow<BH_FLOAT8_E5M2>(value);
    default:
      return std::bit_cast<uint32_t>(static_cast<float>(value));
  }
}

double rounding_error(int dtype, double x) {
  const Format& f = format_of(dtype);
  return power_of_two(std::max(exponent_of(std::fabs(x)), f.lowest_exponent) - f.mantissa - 1);
}

uint32_t load_bits(int dtype, const void* elements, int64_t index) {
  // Sizes are constants here, so that a copy is one instruction.
  switch (element_bytes(dtype)) {
    case 1:
      return static_cast<const uint8_t*>(elements)[index];
    case 2: {
      uint16_t bits;
      std::memcpy(&bits, static_cast<const char*>(elements) + index * 2, 2);
      return bits;
    }
    default: {
      uint32_t bits;
      std::memcpy(&bits, static_cast<const char*>(elements) + index * 4, 4);
      return bits;
    }
  }
}

void store_bits(int dtype, void* elements, int64_t index, uint32_t bits) {
  switch (element_bytes(dtype)) {
    case 1:
      static_cast<uint8_t*>(elements)[index] = static_cast<uint8_t>(bits);
      break;
    case 2:
      std::memcpy(static_cast<char*>(elements) + index * 2, &bits, 2);
      break;
    default:
      std::memcpy(static_cast<char*>(elements) + index * 4, &bits, 4);
  }
}

std::vector<uint8_t> encode_all(int dtype, const std::vector<float>& values) {
  std::vector<uint8_t> elements(values.size() * static_cast<size_t>(element_bytes(dtype)));
  for (size_t i = 0; i < values.size(); ++i) {
    store_bits(dtype, elements.data(), static_cast<int64_t>(i), encode(dtype, double{values[i]}));
  }
  return elements;
}

}  // namespace broadhead::test
