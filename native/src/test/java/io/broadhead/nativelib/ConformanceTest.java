// SPDX-License-Identifier: Apache-2.0
package io.broadhead.nativelib;

import static org.assertj.core.api.Assertions.assertThat;
import static org.junit.jupiter.api.Assumptions.assumeTrue;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Duration;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.TimeUnit;
import org.junit.jupiter.api.Test;

/**
 * Runs the C++ conformance suite, so that {@code mvn verify} covers the kernels too: a process for
 * each processor takes its share of the tests.
 */
class ConformanceTest {
  private static final Path BUILD = Path.of("target", "cmake");
  private static final Duration LIMIT = Duration.ofMinutes(15);

  private record Shard(Process process, Path log) {}

  @Test
  void cppSuitePasses() throws IOException, InterruptedException {
    Path suite = BUILD.resolve("broadhead_conformance");
    assumeTrue(Files.isExecutable(suite), "GoogleTest not found by CMake (Debian: libgtest-dev)");
    int count = Runtime.getRuntime().availableProcessors();
    List<Shard> shards = new ArrayList<>();
    try {
      for (int i = 0; i < count; i++) {
        shards.add(start(suite, i, count));
      }
      long deadline = System.nanoTime() + LIMIT.toNanos();
      for (Shard shard : shards) {
        assertThat(shard.process.waitFor(deadline - System.nanoTime(), TimeUnit.NANOSECONDS))
            .as("the suite ended within %s; its output is in %s", LIMIT, shard.log)
            .isTrue();
        assertThat(shard.process.exitValue()).as(Files.readString(shard.log)).isZero();
      }
    } finally {
      for (Shard shard : shards) {
        shard.process.destroyForcibly().waitFor();
      }
    }
  }

  private static Shard start(Path suite, int index, int count) throws IOException {
    Path log = BUILD.resolve("broadhead_conformance." + index + ".log");
    ProcessBuilder builder =
        new ProcessBuilder(suite.toAbsolutePath().toString(), "--gtest_brief=1")
            .redirectErrorStream(true)
            .redirectOutput(log.toFile());
    builder.environment().put("GTEST_TOTAL_SHARDS", Integer.toString(count));
    builder.environment().put("GTEST_SHARD_INDEX", Integer.toString(index));
    return new Shard(builder.start(), log);
  }
}
