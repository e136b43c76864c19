// SPDX-License-Identifier: Apache-2.0
package io.broadhead.cluster;

import static org.assertj.core.api.Assertions.assertThat;

import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import org.junit.jupiter.api.AfterAll;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/** The job on a cluster of separate processes, some of which are killed. */
class ClusterIT {
  private static final int PARALLELISM = 4;
  private static final int SHARDS = 8;
  private static final int STEP_MILLIS = 200;

  @TempDir private static Path clusterFolder;
  private static Cluster cluster;

  @TempDir private Path folder;

  /** Jobs of a test that failed do not disturb the next one. */
  @AfterEach
  void cancelJobs() throws Exception {
    cluster.cancelAll();
  }

  @BeforeAll
  static void start() throws Exception {
    FakeGpuDriverFactory.install(clusterFolder.resolve("plugins"));
    cluster = new Cluster(clusterFolder, PARALLELISM + 1, FakeGpuDriverFactory.properties());
  }

  @AfterAll
  static void stop() throws Exception {
    if (cluster != null) {
      cluster.close();
    }
  }

  private static Object[] arguments(
      DecodingWorkload workload, Path output, int numBlocks, int parallelism, Object... more)
      throws Exception {
    List<Object> arguments =
        new ArrayList<>(
            List.of(
                "run",
                "--job",
                workload.jobFile(numBlocks),
                "--input",
                workload.input(),
                "--output",
                output,
                "--parallelism",
                parallelism,
                "--shards",
                SHARDS,
                "--threads",
                1));
    arguments.addAll(List.of(more));
    return arguments.toArray();
  }

  private static Object[] watching(DecodingWorkload workload, int numBlocks, int parallelism)
      throws Exception {
    return arguments(
        workload,
        workload.output(),
        numBlocks,
        parallelism,
        "--watch",
        "--watch-interval",
        0.2,
        "--checkpoint-interval",
        1);
  }

  private static void steps(DecodingWorkload workload, int count) throws Exception {
    for (int i = 0; i < count; i++) {
      workload.step();
      Thread.sleep(STEP_MILLIS);
    }
  }

  /** Steps go on until {@code rows} are committed beyond those of now. */
  private static void stepsUntilCommitted(DecodingWorkload workload, int rows) throws Exception {
    int enough = workload.committedRows() + rows;
    Cluster.await(
        "committed rows",
        () -> {
          try {
            steps(workload, 2);
          } catch (Exception e) {
            throw new IllegalStateException(e);
          }
          return workload.committedRows() >= enough;
        });
  }

  private static void awaitAll(DecodingWorkload workload) throws Exception {
    Cluster.await("all rows", () -> workload.committedRows() >= workload.expectedRows());
  }

  @Test
  void killedTaskManagersLoseNothing() throws Exception {
    DecodingWorkload workload = new DecodingWorkload(folder, 240);
    String job = cluster.submit(watching(workload, 1000, PARALLELISM));
    for (int kill = 0; kill < 3; kill++) {
      stepsUntilCommitted(workload, 1000);
      cluster.killTaskManager(kill + 1);
    }
    stepsUntilCommitted(workload, 1000);
    awaitAll(workload);
    cluster.cancelAll();
    workload.assertResults();
    assertThat(workload.sequences()).isGreaterThan(240);
  }

  @Test
  void savepointsCarrySequencesToOtherParallelismsWithAPoolAQuarterOfTheNeed() throws Exception {
    DecodingWorkload workload = new DecodingWorkload(folder, 160);
    String savepoint = null;
    for (int parallelism : new int[] {2, 4, 1}) {
      int quarter = Math.max(40, workload.blocks() / 4) / parallelism;
      Object[] arguments = watching(workload, Math.max(20, quarter), parallelism);
      String job =
          savepoint == null
              ? cluster.submit(arguments)
              : cluster.submit(from(savepoint, arguments));
      stepsUntilCommitted(workload, 2000);
      steps(workload, 10);
      savepoint = cluster.savepoint(job);
      steps(workload, 2); // while nobody runs
    }
    String job = cluster.submit(from(savepoint, watching(workload, 500, 1)));
    awaitAll(workload);
    cluster.cancelAll();
    workload.assertResults();
  }

  private static Object[] from(String savepoint, Object[] arguments) {
    List<Object> all = new ArrayList<>(List.of("--from", savepoint));
    all.addAll(List.of(arguments));
    return all.toArray();
  }

  @Test
  void tenSubmissionsShareOneLibrary() throws Exception {
    DecodingWorkload workload = new DecodingWorkload(folder, 40);
    for (int i = 0; i < 10; i++) {
      workload.step();
    }
    for (int i = 0; i < 10; i++) {
      String job =
          cluster.submit(arguments(workload, folder.resolve("results-" + i), 500, PARALLELISM));
      Cluster.await("the job's end", () -> cluster.state(job).equals("FINISHED"));
    }
    int used = 0;
    for (int number : cluster.taskManagers()) {
      List<String> libraries = cluster.mapped(number, "jnibroadhead");
      assertThat(libraries.size()).as("mapped: %s", libraries).isLessThanOrEqualTo(1);
      Cluster.await("class loaders to go", () -> cluster.userClassLoaders(number) <= 1);
      used += libraries.size();
    }
    assertThat(used).as("TaskManagers that ran the job").isPositive();
  }

  @Test
  void operatorsTakeTheDeviceOfAnExternalResource() throws Exception {
    DecodingWorkload workload = new DecodingWorkload(folder, 40);
    workload.step();
    String job =
        cluster.submit(
            arguments(workload, workload.output(), 500, PARALLELISM, "--device-resource", "gpu"));
    Cluster.await("the job's end", () -> cluster.state(job).equals("FINISHED"));
    workload.assertResults();
    String taken = "device " + FakeGpuDriverFactory.INDEX + " of external resource gpu";
    long operators = 0;
    for (int number : cluster.taskManagers()) {
      operators += cluster.log(number).filter(line -> line.endsWith(taken)).count();
    }
    assertThat(operators).isEqualTo(PARALLELISM);
  }
}
