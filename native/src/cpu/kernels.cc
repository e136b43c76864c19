// SPDX-License-Identifier: Apache-2.0
// All kernels of one instruction set tier; compiled once per tier with BH_TIER and its flags.
#include "cpu/kernels.h"

#include "cpu/merge.h"
#include "cpu/probe.h"
#include "cpu/update.h"

namespace broadhead::cpu::BH_TIER {

static int64_t scratch_floats(const LayerView& layer, const CacheView* cache,
                              const AttendItem& item) {
  return carve(layer, cache, item, nullptr, nullptr);
}

static float unit(int cache_dtype) {
  float unit = 1;
  with_dtype(cache_dtype, [&unit](auto e) { unit = Widened<decltype(e)>::kUnit; });
  return unit;
}

extern const Kernels kKernels;
const Kernels kKernels = {update,         attend, merge,       merge_results,
                          scratch_floats, unit,   read_blocks, multiply_add};

}  // namespace broadhead::cpu::BH_TIER
