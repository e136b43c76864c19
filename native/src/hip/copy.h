// SPDX-License-Identifier: Apache-2.0
// Copies of 16 bytes into shared memory that do not wait, where the machine has them.
#pragma once

#include "hip/wave.h"

namespace broadhead::gpu {

#if BH_TILE == BH_TILE_MMA && defined(__CUDACC__)
BH_INLINE void copy_chunk(char* to, const char* from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;"
               :
               : "r"(static_cast<uint32_t>(__cvta_generic_to_shared(to))), "l"(from)
               : "memory");
}
BH_INLINE void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
/// Waits until at most kGroups of the calling thread's groups are under way.
template <int kGroups = 0>
BH_INLINE void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kGroups) : "memory");
}
#else
BH_INLINE void copy_chunk(char* to, const char* from) {
  *reinterpret_cast<Chunk*>(to) = *reinterpret_cast<const Chunk*>(from);
}
BH_INLINE void commit_copies() {}
template <int kGroups = 0>
BH_INLINE void wait_for_copies() {}
#endif

}  // namespace broadhead::gpu
