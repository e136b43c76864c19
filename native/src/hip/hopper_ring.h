// SPDX-License-Identifier: Apache-2.0
// Slots of shared memory that some threads of a block fill and others use, in turns.
#pragma once

#include "hip/wgmma.h"

namespace broadhead::gpu::hopper {

/// Whose turn it is at each of a ring's slots: those that fill it, or those that use it.
template <int kCount>
struct Ring {
  uint64_t full[kCount], empty[kCount];

  struct Place {
    int slot = 0;
    uint32_t parity = 0;
    /// This place; then it is the next one.
    BH_INLINE Place take() {
      const Place taken = *this;
      if (++slot == kCount) {
        slot = 0;
        parity ^= 1;
      }
      return taken;
    }
  };

  BH_INLINE void begin(int writers, int readers) {
    for (int s = 0; s < kCount; ++s) {
      init_barrier(&full[s], writers);
      init_barrier(&empty[s], readers);
    }
  }
  BH_INLINE void wait_until_full(const Place& place) { wait(&full[place.slot], place.parity); }
  BH_INLINE void wait_until_empty(const Place& place) {
    wait(&empty[place.slot], place.parity ^ 1);
  }
};

}  // namespace broadhead::gpu::hopper
