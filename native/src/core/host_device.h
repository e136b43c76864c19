// SPDX-License-Identifier: Apache-2.0
#pragma once

/// Marks functions that device code calls too; nothing where no GPU compiler reads it.
#if defined(__CUDACC__) || defined(__HIP__)
#define BH_HOST_DEVICE __host__ __device__
#else
#define BH_HOST_DEVICE
#endif
