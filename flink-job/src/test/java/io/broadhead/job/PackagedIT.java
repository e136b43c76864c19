// SPDX-License-Identifier: Apache-2.0
package io.broadhead.job;

import static org.assertj.core.api.Assertions.assertThat;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardCopyOption;
import java.time.Duration;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.concurrent.TimeUnit;
import java.util.jar.JarFile;
import java.util.stream.Stream;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/**
 * What is shipped, as it is shipped: {@code java -jar} from another folder, and the cluster's jars.
 */
class PackagedIT {
  private static final Path TARGET = Path.of(System.getProperty("broadhead.target"));
  private static final Duration PATIENCE = Duration.ofMinutes(3);

  @TempDir Path temp;

  private Process start(Object... args) throws IOException {
    List<String> command =
        new ArrayList<>(
            List.of(
                Path.of(System.getProperty("java.home"), "bin", "java").toString(),
                "-Xlog:class+load:file=" + temp.resolve("classes"),
                "-Dorg.bytedeco.javacpp.cachedir=" + temp.resolve("unpacked"),
                "-jar",
                TARGET.resolve("broadhead.jar").toString()));
    Arrays.stream(args).map(Object::toString).forEach(command::add);
    return new ProcessBuilder(command)
        .directory(temp.toFile())
        .redirectOutput(temp.resolve("stdout").toFile())
        .redirectError(temp.resolve("stderr").toFile())
        .start();
  }

  private Cli java(Object... args) throws IOException, InterruptedException {
    Process process = start(args);
    assertThat(process.waitFor(PATIENCE.toSeconds(), TimeUnit.SECONDS)).isTrue();
    return finished(process);
  }

  private Cli finished(Process process) throws IOException {
    return new Cli(
        process.exitValue(),
        Files.readString(temp.resolve("stdout")),
        Files.readString(temp.resolve("stderr")));
  }

  @Test
  void doctorMissesNoFlag() throws Exception {
    Cli cli = java("doctor");

    assertThat(cli.code()).as(cli.err()).isZero();
    assertThat(cli.err()).isEmpty();
    assertThat(cli.out()).contains("jvm flags  nothing is missing", "chosen     backend cpu");
    assertNoFlink();
  }

  /** JavaCPP would take the library of an older build of the same size for this one. */
  @Test
  void theLibraryIsUnpackedForItsBuild() throws Exception {
    assertThat(java("doctor").code()).isZero();
    assertThat(temp.resolve("unpacked")).isDirectoryContaining("glob:**/broadhead-????????");
  }

  /** Flink's classes would double the time to start. */
  private void assertNoFlink() throws IOException {
    assertThat(Files.readString(temp.resolve("classes")))
        .contains("io.broadhead.job.Main")
        .doesNotContain(" org.apache.flink.");
  }

  @Test
  void attendAndRunWithRelativePaths() throws Exception {
    Steps steps = Steps.small(1);
    steps.writeJob(temp.resolve("job.yaml"));
    steps.writeFile(temp.resolve("steps.arrow"));

    Cli attend =
        java("attend", "--job", "job.yaml", "--input", "steps.arrow", "--output", "out.arrow");
    assertThat(attend.code()).as(attend.err()).isZero();
    assertThat(attend.err().lines()).singleElement().asString().startsWith("broadhead attend: ");
    assertThat(attend.out().lines()).singleElement().asString().contains(" bytes_copied=0 ");
    assertNoFlink();
    Results.assertClose(Results.read(temp.resolve("out.arrow")), Results.expected(steps), 1e-5);

    Cli run =
        java(
            "run",
            "--job",
            "job.yaml",
            "--input",
            "steps.arrow",
            "--output",
            "results",
            "--parallelism",
            2,
            "--shards",
            4);
    assertThat(run.code()).as(run.err()).isZero();
    assertThat(run.err().lines()).singleElement().asString().startsWith("broadhead run: ");
    assertThat(run.out().lines()).singleElement().asString().startsWith("done: ");
    Results.assertClose(Results.read(temp.resolve("results")), Results.expected(steps), 1e-5);
  }

  @Test
  void aFailingRunSaysOneThing() throws Exception {
    Steps steps = Steps.small(2);
    steps.steps.get(2).rows().get(1).table[0] = -1;
    steps.writeJob(temp.resolve("job.yaml"));
    steps.writeFile(temp.resolve("steps.arrow"));

    Cli run =
        java("run", "-q", "--job", "job.yaml", "--input", "steps.arrow", "--output", "results");

    assertThat(run.code()).isEqualTo(1);
    assertThat(run.out()).isEmpty();
    assertThat(run.err().lines())
        .singleElement()
        .asString()
        .startsWith("broadhead run: steps.arrow, batch 2, ")
        .contains("row 1", "column block_table", "expected");
    assertThat(temp.resolve("results")).doesNotExist();
  }

  /** The first line comes before the cluster is started. */
  @Test
  void aRunThatIsStoppedAtItsStartLeavesNothing() throws Exception {
    Steps steps = Steps.small(4);
    steps.writeJob(temp.resolve("job.yaml"));
    steps.writeFile(temp.resolve("steps.arrow"));
    Process process =
        start("run", "--job", "job.yaml", "--input", "steps.arrow", "--output", "results");
    try {
      while (readError().isEmpty()) {
        assertThat(process.isAlive()).isTrue();
        Thread.sleep(5);
      }
    } finally {
      process.destroy();
      assertThat(process.waitFor(PATIENCE.toSeconds(), TimeUnit.SECONDS)).isTrue();
    }
    Cli run = finished(process);
    assertThat(run.out()).as("the end of a run that was not stopped").isEmpty();
    assertThat(run.err().lines()).singleElement();
    assertThat(temp.resolve("results")).doesNotExist();
  }

  @Test
  void watchingCommitsWithCheckpointsUntilItIsStopped() throws Exception {
    Steps steps = Steps.small(3);
    steps.writeJob(temp.resolve("job.yaml"));
    Path incoming = Files.createDirectory(temp.resolve("incoming"));
    Path prepared = steps.writeFolder(temp.resolve("prepared"));
    Process process =
        start(
            "run",
            "--job",
            "job.yaml",
            "--input",
            "incoming",
            "--output",
            "results",
            "--watch",
            "--watch-interval",
            0.2,
            "--checkpoint-interval",
            0.5);
    try {
      for (Path file : Results.files(prepared)) {
        Files.move(file, incoming.resolve(file.getFileName()), StandardCopyOption.ATOMIC_MOVE);
        Thread.sleep(100);
      }
      long deadline = System.nanoTime() + PATIENCE.toNanos();
      while (Results.read(temp.resolve("results")).size() < Results.expected(steps).size()) {
        assertThat(process.isAlive()).as(() -> readError()).isTrue();
        assertThat(System.nanoTime()).isLessThan(deadline);
        Thread.sleep(200);
      }
    } finally {
      process.destroy();
      assertThat(process.waitFor(PATIENCE.toSeconds(), TimeUnit.SECONDS)).isTrue();
    }
    assertThat(finished(process).err().lines()).singleElement();
    Results.assertClose(Results.read(temp.resolve("results")), Results.expected(steps), 1e-5);
    try (Stream<Path> left = Files.walk(temp.resolve("results"))) {
      assertThat(left.map(Path::getFileName).map(Path::toString)).noneMatch(n -> n.startsWith("."));
    }
  }

  private String readError() {
    try {
      return Files.readString(temp.resolve("stderr"));
    } catch (IOException e) {
      return e.toString();
    }
  }

  @Test
  void theClustersLibrariesAreOursAndArrowsAlone() throws Exception {
    try (Stream<Path> files = Files.list(TARGET.resolve("cluster/lib"))) {
      List<String> names = files.map(file -> file.getFileName().toString()).sorted().toList();
      assertThat(names)
          .anyMatch(name -> name.startsWith("broadhead-native-"))
          .anyMatch(name -> name.startsWith("broadhead-arrow-bridge-"))
          .anyMatch(name -> name.startsWith("arrow-vector-"))
          .anyMatch(name -> name.startsWith("arrow-memory-unsafe-"))
          .anyMatch(name -> name.startsWith("arrow-compression-"))
          .anyMatch(name -> name.startsWith("flatbuffers-java-"))
          .anyMatch(name -> name.startsWith("javacpp-"))
          .noneMatch(name -> name.startsWith("flink-"))
          .noneMatch(name -> name.startsWith("slf4j-") || name.startsWith("log4j-"))
          .noneMatch(name -> name.startsWith("broadhead-operator-"));
    }
  }

  @Test
  void theClustersJobJarIsThin() throws Exception {
    try (JarFile jar = new JarFile(TARGET.resolve("cluster/broadhead-job.jar").toFile())) {
      assertThat(jar.getManifest().getMainAttributes().getValue("Main-Class"))
          .isEqualTo("io.broadhead.job.Main");
      assertThat(jar.getManifest().getMainAttributes().getValue("Class-Path")).isNull();
      assertThat(jar.stream().map(Object::toString))
          .contains(
              "io/broadhead/job/Main.class",
              "io/broadhead/attention/PagedAttention.class",
              "io/broadhead/flink/PagedAttentionOperator.class",
              "picocli/CommandLine.class",
              "org/apache/flink/connector/file/sink/FileSink.class")
          .noneMatch(name -> name.startsWith("META-INF/services/"))
          .noneMatch(name -> name.startsWith("io/broadhead/arrow/"))
          .noneMatch(name -> name.startsWith("io/broadhead/kernel/"))
          .noneMatch(name -> name.startsWith("io/broadhead/nativelib/"))
          .noneMatch(name -> name.startsWith("org/apache/arrow/"))
          .noneMatch(name -> name.startsWith("org/slf4j/"))
          .noneMatch(name -> name.startsWith("org/apache/flink/streaming/api/datastream/"));
    }
  }
}
