// SPDX-License-Identifier: Apache-2.0
package io.broadhead.job;

import static org.assertj.core.api.Assertions.assertThat;

import java.nio.file.Path;
import org.apache.flink.api.common.JobExecutionResult;
import org.apache.flink.streaming.api.environment.StreamExecutionEnvironment;
import org.apache.flink.streaming.api.graph.StreamGraph;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;

/** What {@code run} refuses before Flink's client submits its job. */
class RunOnAClusterTest {
  @TempDir Path temp;

  private Path job;

  /** As a client of Flink's makes it, but nothing is submitted. */
  private static final class ClusterEnvironment extends StreamExecutionEnvironment {
    static int submitted;

    static void install() {
      submitted = 0;
      initializeContextEnvironment(configuration -> new ClusterEnvironment());
    }

    static void remove() {
      resetContextEnvironment();
    }

    @Override
    public JobExecutionResult execute(StreamGraph graph) {
      submitted++;
      return null;
    }
  }

  @BeforeEach
  void install() {
    job = Steps.small(1).writeJob(temp.resolve("job.yaml"));
    ClusterEnvironment.install();
  }

  @AfterEach
  void remove() {
    ClusterEnvironment.remove();
  }

  private Cli run(String input, String output, Object... more) {
    return Cli.command("run", job, Path.of(input), Path.of(output), more);
  }

  @Test
  void aJobIsSubmitted() {
    Cli cli = run("/steps", "/results");

    assertThat(cli.code()).as(cli.err()).isZero();
    assertThat(ClusterEnvironment.submitted).isOne();
  }

  @ParameterizedTest
  @ValueSource(strings = {"--input", "--output", "--refused"})
  void eachProcessWouldUnderstandARelativePathInItsOwnWay(String option) {
    Cli cli =
        switch (option) {
          case "--input" -> run("steps", "/results");
          case "--output" -> run("/steps", "results");
          default -> run("/steps", "/results", "--refused", "refused");
        };

    assertThat(cli.code()).isEqualTo(2);
    assertThat(cli.err())
        .startsWith(
            "broadhead run: " + option + ": expected an absolute path or a URI on a cluster");
    assertThat(ClusterEnvironment.submitted).isZero();
  }

  @Test
  void resultsAreNotRemovedFromHere() {
    Cli cli = run("/steps", "/results", "--overwrite");

    assertThat(cli.code()).isEqualTo(2);
    assertThat(cli.err()).contains("--overwrite: not on a cluster");
  }
}
