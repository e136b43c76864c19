// SPDX-License-Identifier: Apache-2.0
#include "cpu/tier.h"

#include <sys/syscall.h>
#include <unistd.h>

#include <cstdlib>

#include "core/failure.h"

namespace broadhead::cpu {
namespace {

constexpr const char* kOverride = "BROADHEAD_CPU_TIER";

#if defined(__x86_64__)
bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
         __builtin_cpu_supports("f16c");
}

bool has_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("fma");
}

#if defined(BH_EMULATED_AMX)
bool has_amx() { return has_avx2(); }
constexpr bool kEmulatesAmx = true;
#else
/// Linux lets a process use matrix registers that asks for them.
bool has_amx() {
  constexpr int kRequestPermission = 0x1023;  // ARCH_REQ_XCOMP_PERM
  constexpr int kMatrixData = 18;             // XFEATURE_XTILEDATA
  return has_avx512() && __builtin_cpu_supports("amx-tile") && __builtin_cpu_supports("amx-bf16") &&
         syscall(SYS_arch_prctl, kRequestPermission, kMatrixData) == 0;
}
constexpr bool kEmulatesAmx = false;
#endif
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
  constexpr auto always = [] { return true; };
  static const std::vector<Tier> all = {
#if defined(__x86_64__)
    {"amx", &amx::kKernels, has_amx, [] { return !kEmulatesAmx; }},
    // On Sapphire Rapids a product of pairs takes longer than the two that it replaces.
    {"avx512_bf16", &avx512_bf16::kKernels,
     [] {
       return has_avx512() && __builtin_cpu_supports("avx512bf16") &&
              __builtin_cpu_supports("avx512vbmi");
     },
     [] { return __builtin_cpu_is("amd") != 0; }},
    {"avx512", &avx512::kKernels, has_avx512, always},
    {"avx2", &avx2::kKernels, has_avx2, always},
#endif
#if defined(__aarch64__)
    {"neon", &neon::kKernels, always, always},
#else
    {"baseline", &baseline::kKernels, always, always},
#endif
  };
  return all;
}

TierChoice choose_tier() {
  const char* wanted = std::getenv(kOverride);
  const bool any = !wanted || !*wanted;
  for (const Tier& tier : tiers()) {
    if (!tier.runs_here()) continue;
    if (any && tier.pays_here()) {
      return {&tier, "fastest of those that run here: " + names_that_run()};
    }
    if (!any && std::string(tier.name) == wanted) {
      return {&tier, std::string(kOverride) + "=" + wanted};
    }
  }
  throw Failure(BH_INVALID_ARGUMENT, kNoRow, "%s must be one of %s (those that run here), got '%s'",
                kOverride, names_that_run().c_str(), wanted);
}

}  // namespace broadhead::cpu
