// SPDX-License-Identifier: Apache-2.0
#include "cpu/tier.h"

#include <cstdlib>

#include "core/failure.h"

namespace broadhead::cpu {
namespace {

constexpr const char* kOverride = "BROADHEAD_CPU_TIER";

#if defined(__x86_64__)
bool has_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("fma");
}
#endif

std::string names_that_run() {
  std::string names;
  for (const Tier& tier : tiers()) {
    if (tier.runs_here()) names += (names.empty() ? "" : ", ") + std::string(tier.name);
  }
  return names;
}

}  // namespace

const std::vector<Tier>& tiers() {
  static const std::vector<Tier> all = {
#if defined(__x86_64__)
    {"avx512_bf16", &avx512_bf16::kKernels,
     [] { return has_avx512() && __builtin_cpu_supports("avx512bf16"); }},
    {"avx512", &avx512::kKernels, has_avx512},
    {"avx2", &avx2::kKernels,
     [] {
       return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
              __builtin_cpu_supports("f16c");
     }},
#endif
#if defined(__aarch64__)
    {"neon", &neon::kKernels, [] { return true; }},
#else
    {"baseline", &baseline::kKernels, [] { return true; }},
#endif
  };
  return all;
}

TierChoice choose_tier() {
  const char* wanted = std::getenv(kOverride);
  const bool any = !wanted || !*wanted;
  for (const Tier& tier : tiers()) {
    if (!tier.runs_here()) continue;
    if (any) return {&tier, std::string("widest of those that run here: ") + names_that_run()};
    if (std::string(tier.name) == wanted) return {&tier, std::string(kOverride) + "=" + wanted};
  }
  throw Failure(BH_INVALID_ARGUMENT, kNoRow, "%s must be one of %s (those that run here), got '%s'",
                kOverride, names_that_run().c_str(), wanted);
}

}  // namespace broadhead::cpu
