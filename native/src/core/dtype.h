// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "broadhead/broadhead.h"

namespace broadhead {

constexpr int byte_width(int dtype) {
  switch (dtype) {
    case BH_FLOAT32:
      return 4;
    case BH_FLOAT16:
    case BH_BFLOAT16:
      return 2;
    case BH_FLOAT8_E4M3FN:
    case BH_FLOAT8_E5M2:
      return 1;
    default:
      return 0;
  }
}

constexpr const char* dtype_name(int dtype) {
  switch (dtype) {
    case BH_FLOAT32:
      return "float32";
    case BH_FLOAT16:
      return "float16";
    case BH_BFLOAT16:
      return "bfloat16";
    case BH_FLOAT8_E4M3FN:
      return "fp8_e4m3";
    case BH_FLOAT8_E5M2:
      return "fp8_e5m2";
    default:
      return "unknown";
  }
}

constexpr bool is_fp8(int dtype) { return dtype == BH_FLOAT8_E4M3FN || dtype == BH_FLOAT8_E5M2; }

}  // namespace broadhead
