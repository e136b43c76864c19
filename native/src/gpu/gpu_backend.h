// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "core/backend.h"

namespace broadhead {

/// NVIDIA GPUs: libbroadhead_cuda.so.
const Backend& cuda_backend();

/// AMD GPUs: libbroadhead_hip.so.
const Backend& hip_backend();

}  // namespace broadhead
