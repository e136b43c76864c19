// SPDX-License-Identifier: Apache-2.0
#include "core/backend.h"

#include <cstring>
#include <string>

#include "core/failure.h"
#include "cpu/cpu_backend.h"
#include "gpu/gpu_backend.h"

namespace broadhead {

std::span<const Backend* const> backends() {
  static const Backend* const all[] = {&cuda_backend(), &hip_backend(), &cpu_backend()};
  return all;
}

std::unique_ptr<Engine> open_engine(const bh_engine_options& options) {
  const char* wanted = options.backend ? options.backend : "auto";
  const bool any = std::strcmp(wanted, "auto") == 0;
  std::string known = "auto";
  std::string reasons;
  for (const Backend* backend : backends()) {
    const bh_backend_info info = backend->describe();
    known += std::string(", ") + info.name;
    if (!any && std::strcmp(wanted, info.name) != 0) continue;
    if (info.usable) return backend->open(options);
    if (!any) {
      throw Failure(BH_UNSUPPORTED, kNoRow, "backend %s is not usable here: %s", info.name,
                    info.reason);
    }
    reasons += std::string("; ") + info.name + ": " + info.reason;
  }
  if (any) throw Failure(BH_UNSUPPORTED, kNoRow, "no backend is usable here%s", reasons.c_str());
  throw Failure(BH_INVALID_ARGUMENT, kNoRow, "backend must be one of %s, got '%s'", known.c_str(),
                wanted);
}

}  // namespace broadhead
