// SPDX-License-Identifier: Apache-2.0
package io.broadhead.nativelib;

import static org.assertj.core.api.Assertions.assertThat;
import static org.junit.jupiter.api.Assumptions.assumeTrue;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.concurrent.TimeUnit;
import org.junit.jupiter.api.Test;

/** Runs the C++ conformance suite, so that {@code mvn verify} covers the kernels too. */
class ConformanceTest {
  private static final Path BUILD = Path.of("target", "cmake");

  @Test
  void cppSuitePasses() throws IOException, InterruptedException {
    Path suite = BUILD.resolve("broadhead_conformance");
    assumeTrue(Files.isExecutable(suite), "GoogleTest not found by CMake (Debian: libgtest-dev)");
    Path log = BUILD.resolve("broadhead_conformance.log");
    Process process =
        new ProcessBuilder(suite.toAbsolutePath().toString(), "--gtest_brief=1")
            .redirectErrorStream(true)
            .redirectOutput(log.toFile())
            .start();
    boolean ended = process.waitFor(15, TimeUnit.MINUTES);
    if (!ended) {
      process.destroyForcibly().waitFor();
    }
    assertThat(ended).as("the suite ended within 15 minutes; its output is in " + log).isTrue();
    assertThat(process.exitValue()).as(Files.readString(log)).isZero();
  }
}
