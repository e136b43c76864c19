// SPDX-License-Identifier: Apache-2.0
package io.broadhead.job;

import static org.assertj.core.api.Assertions.assertThat;

import java.nio.file.Files;
import java.nio.file.Path;
import org.apache.flink.api.common.JobExecutionResult;
import org.apache.flink.configuration.Configuration;
import org.apache.flink.configuration.DeploymentOptions;
import org.apache.flink.streaming.api.environment.StreamExecutionEnvironment;
import org.apache.flink.streaming.api.graph.StreamGraph;
import org.apache.flink.streaming.api.graph.StreamNode;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.ValueSource;

/** What {@code run} refuses before Flink's client submits its job. */
class RunOnAClusterTest {
  @TempDir Path temp;

  private Path job;

  /** As a client of Flink's makes it, but nothing is submitted. */
  private static final class ClusterEnvironment extends StreamExecutionEnvironment {
    static int submitted;
    static StreamGraph graph;

    ClusterEnvironment(String target) {
      super(new Configuration().set(DeploymentOptions.TARGET, target));
    }

    /** {@code target} is Flink's {@code execution.target}. */
    static void install(String target) {
      submitted = 0;
      initializeContextEnvironment(configuration -> new ClusterEnvironment(target));
    }

    static void remove() {
      resetContextEnvironment();
    }

    @Override
    public JobExecutionResult execute(StreamGraph job) {
      submitted++;
      graph = job;
      return null;
    }
  }

  @BeforeEach
  void install() {
    job = Steps.small(1).writeJob(temp.resolve("job.yaml"));
    ClusterEnvironment.install("remote");
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
    assertThat(ClusterEnvironment.graph.getStreamNodes())
        .extracting(StreamNode::getOperatorName)
        .contains("paged-attention")
        .as("who keeps all ids, for a summary that nobody prints")
        .doesNotContain("result-counter");
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
  void aBackendThatThereIsNotIsRefused() {
    Cli cli = run("/steps", "/results", "--backend", "cdua");

    assertThat(cli.code()).isEqualTo(2);
    assertThat(cli.err()).contains("--backend: expected one of auto, cuda, hip, cpu, got cdua");
    assertThat(ClusterEnvironment.submitted).isZero();
  }

  @ParameterizedTest
  @ValueSource(strings = {"--output", "--refused"})
  void theNextJobWouldReadWhatIsWrittenToTheInput(String option) {
    Cli cli =
        run("/steps", option.equals("--output") ? "/steps/" : "/results", "--refused", "/steps");

    assertThat(cli.code()).isEqualTo(2);
    assertThat(cli.err())
        .contains(option + ": expected a folder other than that of the input, got /steps");
    assertThat(ClusterEnvironment.submitted).isZero();
  }

  @ParameterizedTest
  @CsvSource({
    "missing, false, no such file or folder",
    "empty, false, 'expected step files, got an empty folder'",
    "job.yaml, true, 'expected a folder with --watch, got a file'",
  })
  void theJobManagerKnowsWhatIsThereToRead(String name, boolean watch, String problem)
      throws Exception {
    String input = temp.resolve(name).toString();
    Files.createDirectories(temp.resolve("empty"));
    Object[] more = watch ? new Object[] {"--watch"} : new Object[0];

    ClusterEnvironment.install("embedded");
    Cli inJobManager = run(input, "/results", more);

    assertThat(inJobManager.code()).isOne();
    assertThat(inJobManager.err())
        .isEqualToIgnoringNewLines("broadhead run: --input " + input + ": " + problem);
    assertThat(ClusterEnvironment.submitted).isZero();

    ClusterEnvironment.install("remote");
    Cli elsewhere = run(input, "/results", more);

    assertThat(elsewhere.code()).isZero();
    assertThat(elsewhere.err()).contains(problem + " as seen from here");
    assertThat(ClusterEnvironment.submitted).isOne();
  }

  @Test
  void whatIsThereIsSubmittedWithoutAWord() {
    ClusterEnvironment.install("embedded");
    Cli cli = run(temp.toString(), "/results");

    assertThat(cli.err()).isEmpty();
    assertThat(ClusterEnvironment.submitted).isOne();
  }

  @Test
  void resultsAreNotRemovedFromHere() {
    Cli cli = run("/steps", "/results", "--overwrite");

    assertThat(cli.code()).isEqualTo(2);
    assertThat(cli.err()).contains("--overwrite: not on a cluster");
  }
}
