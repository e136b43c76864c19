// SPDX-License-Identifier: Apache-2.0
package io.broadhead.attention.testing;

import static org.junit.jupiter.api.Assumptions.assumeTrue;

import java.io.IOException;
import java.io.UncheckedIOException;
import java.nio.file.Files;
import java.nio.file.Path;

/** A device that fails on purpose. */
public final class EmulatedDevice {
  private EmulatedDevice() {}

  /** Skips a test where the device is a real one, or none. */
  public static void assumeHere() {
    assumeTrue(Overlap.device().startsWith("emulated"), "no real device fails on purpose");
  }

  /** Whoever waits for the device next is told that it failed. */
  public static void fail() {
    try {
      Files.createFile(Path.of(System.getenv("BROADHEAD_LIBRARY_PATH"), "fails"));
    } catch (IOException e) {
      throw new UncheckedIOException(e);
    }
  }
}
