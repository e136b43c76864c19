// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <vector>

#include "cpu/kernels.h"

namespace broadhead::cpu {

/// An instruction set tier of the kernels.
struct Tier {
  const char* name;
  const Kernels* kernels;
  bool (*runs_here)();  ///< asks the processor and the operating system
  bool (*pays_here)();  ///< is it faster than the next one?
};

/// The tier to use and why.
struct TierChoice {
  const Tier* tier;
  std::string reason;
};

/// Every tier of this build, the widest first.
const std::vector<Tier>& tiers();

/// The widest tier that runs and pays here, or the one that BROADHEAD_CPU_TIER names. Throws
/// Failure(BH_INVALID_ARGUMENT) for a name that is unknown or does not run here.
TierChoice choose_tier();

}  // namespace broadhead::cpu
