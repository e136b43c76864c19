// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

#include "gpu/device_api.h"

namespace broadhead::gpu {

/// The library of a GPU backend, opened once and never closed.
struct Library {
  const DeviceApi* api = nullptr;
  std::string reason;  ///< why there is none
};

/// Opens libbroadhead_NAME.so, by absolute path: from the folder that BROADHEAD_LIBRARY_PATH names,
/// or else from beside the library that this code is in.
const Library& library(const char* name);

/// Throws what went wrong as Failure, with `what` in front of the library's own words.
void check(const DeviceApi& api, int32_t status, const char* what);

}  // namespace broadhead::gpu
