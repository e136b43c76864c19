// SPDX-License-Identifier: Apache-2.0
package io.broadhead.attention.testing;

import static org.assertj.core.api.Assertions.assertThat;
import static org.junit.jupiter.api.Assumptions.assumeTrue;

import io.broadhead.kernel.EngineConfig;
import io.broadhead.kernel.EngineInfo;
import io.broadhead.kernel.KernelEngine;

/** Whether steps overlap on the backend that tests get here, a GPU or the emulator of one. */
public final class Overlap {
  private Overlap() {}

  public static boolean isHere() {
    return engine().overlaps();
  }

  /** The name of the device that tests get here. */
  static String device() {
    return engine().device();
  }

  private static EngineInfo engine() {
    try (KernelEngine engine = KernelEngine.open(new EngineConfig("auto", 1, 0))) {
      return engine.info();
    }
  }

  /** Skips a test where they do not; fails it where somebody named libraries that should do it. */
  public static void assumeHere() {
    if (System.getenv("BROADHEAD_LIBRARY_PATH") != null) {
      assertThat(isHere()).as("steps overlap on the backend in BROADHEAD_LIBRARY_PATH").isTrue();
    }
    assumeTrue(
        isHere(), "steps overlap only on a GPU, or on the emulator in BROADHEAD_LIBRARY_PATH");
  }
}
