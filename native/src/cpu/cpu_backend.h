// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "core/backend.h"

namespace broadhead {

/// The backend that is always there.
const Backend& cpu_backend();

}  // namespace broadhead
