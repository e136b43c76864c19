// SPDX-License-Identifier: Apache-2.0
package io.broadhead.nativelib;

import static org.assertj.core.api.Assertions.assertThat;

import io.broadhead.nativelib.global.broadhead;
import org.junit.jupiter.api.Test;

/** The generated binding loads its library and agrees with it on numbers and structure sizes. */
class BindingTest {
  @Test
  void libraryHasTheAbiVersionOfTheHeader() {
    assertThat(broadhead.bh_abi_version()).isEqualTo(broadhead.BH_ABI_VERSION);
  }

  @Test
  void cpuBackendIsKnownAndUsable() {
    try (bh_backend_info info = new bh_backend_info()) {
      boolean found = false;
      for (int i = 0; i < broadhead.bh_backend_count(); i++) {
        assertThat(broadhead.bh_backend_describe(i, info)).isEqualTo(broadhead.BH_OK);
        if (info.name().getString().equals("cpu")) {
          found = true;
          assertThat(info.usable()).isOne();
        }
      }
      assertThat(found).isTrue();
    }
  }

  @Test
  void allocationsAreAligned() {
    long address = broadhead.bh_alloc(1000, 4096);
    try {
      assertThat(address).isNotZero();
      assertThat(address % 4096).isZero();
    } finally {
      broadhead.bh_free(address);
    }
  }

  @Test
  void stepStatsAreTwelveLongs() {
    try (bh_step_stats stats = new bh_step_stats()) {
      assertThat(stats.sizeof()).isEqualTo(12 * Long.BYTES);
      assertThat(stats.offsetof("output_address")).isEqualTo(7 * Long.BYTES);
      assertThat(stats.offsetof("kernel_nanoseconds")).isEqualTo(10 * Long.BYTES);
      assertThat(stats.offsetof("bytes_transferred")).isEqualTo(11 * Long.BYTES);
    }
  }

  @Test
  void nothingIsAliveAtRest() {
    assertThat(broadhead.bh_live_handles()).isZero();
  }
}
