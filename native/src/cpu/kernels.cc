// SPDX-License-Identifier: Apache-2.0
// All kernels of one instruction set tier; compiled once per tier with BH_TIER and its flags.
#include "cpu/kernels.h"

#include "cpu/merge.h"
#include "cpu/update.h"

namespace broadhead::cpu::BH_TIER {

static int64_t scratch_floats(const LayerView& layer, const CacheView* cache,
                              const AttendItem& item) {
  return carve(layer, cache, item, nullptr, nullptr);
}

extern const Kernels kKernels;
const Kernels kKernels = {update, attend, merge, merge_results, scratch_floats};

}  // namespace broadhead::cpu::BH_TIER
