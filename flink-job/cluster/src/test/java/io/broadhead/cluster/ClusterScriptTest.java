// SPDX-License-Identifier: Apache-2.0
package io.broadhead.cluster;

import static java.nio.charset.StandardCharsets.UTF_8;
import static org.assertj.core.api.Assertions.assertThat;

import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import java.util.stream.Stream;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

/** What the script {@code cluster} does without a cluster. */
class ClusterScriptTest {
  @TempDir Path temp;

  /**
   * @param code exit code
   */
  private record Result(int code, String text) {}

  private Result script(String... arguments) throws Exception {
    List<String> command =
        Stream.concat(
                Stream.of(Path.of("cluster").toAbsolutePath().toString()), Stream.of(arguments))
            .toList();
    ProcessBuilder builder = new ProcessBuilder(command).redirectErrorStream(true);
    builder.environment().put("BROADHEAD_CLUSTER_DIR", temp.toString());
    Process process = builder.start();
    String text = new String(process.getInputStream().readAllBytes(), UTF_8);
    return new Result(process.waitFor(), text);
  }

  @ParameterizedTest
  @CsvSource({
    "state, 2, expected JOB",
    "savepoint 1, 2, expected JOB FOLDER",
    "submit --from, 2, expected [--from SAVEPOINT] ARGUMENT ...",
    "start --taskmanagers, 2, expected --taskmanagers N or -D KEY=VALUE",
    "start -D key, 2, expected --taskmanagers N or -D KEY=VALUE",
    "status, 1, there is no cluster in",
    "taskmanager, 1, there is no cluster in",
  })
  void whatIsWrongIsToldInOneLine(String arguments, int code, String told) throws Exception {
    Result result = script(arguments.split(" "));

    assertThat(result.code()).isEqualTo(code);
    assertThat(result.text()).startsWith("cluster").contains(told).hasLineCount(1);
  }

  @Test
  void stopLeavesAProcessAloneThatHasTheNumberNow() throws Exception {
    Process other = new ProcessBuilder("sleep", "600").start();
    try {
      Path pid = Files.writeString(temp.resolve("jobmanager.pid"), Long.toString(other.pid()));

      assertThat(script("stop")).isEqualTo(new Result(0, ""));
      assertThat(pid).doesNotExist();
      assertThat(other.isAlive()).isTrue();
    } finally {
      other.destroyForcibly().waitFor();
    }
  }
}
