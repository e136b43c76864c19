// SPDX-License-Identifier: Apache-2.0
package io.broadhead.cluster;

import static org.assertj.core.api.Assertions.assertThat;

import java.io.IOException;
import java.net.ServerSocket;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Duration;
import java.util.ArrayList;
import java.util.List;
import java.util.Set;
import java.util.concurrent.TimeUnit;
import java.util.function.BooleanSupplier;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import java.util.stream.Stream;

/** The cluster of the script {@code cluster}, on ports and in a folder of its own. */
final class Cluster implements AutoCloseable {
  private static final Path SCRIPT = Path.of("cluster").toAbsolutePath();
  private static final Duration PATIENCE = Duration.ofMinutes(15);
  private static final long POLL_MILLIS = 200;

  /** Counted, not timed, for the same reason. */
  private static final int MOST_POLLS = 900;

  private static final HttpClient HTTP = HttpClient.newHttpClient();
  private static final Set<String> ENDED = Set.of("FINISHED", "CANCELED", "FAILED");

  private final Path folder;
  private final List<String> jobs = new ArrayList<>();
  private final int restPort;
  private int started;

  /**
   * @param properties Flink's, as key=value
   */
  Cluster(Path folder, int taskManagers, String... properties) throws Exception {
    this.folder = folder;
    this.started = taskManagers;
    this.restPort = freePort();
    List<Object> arguments = new ArrayList<>(List.of("start", "--taskmanagers", taskManagers));
    List<String> all = new ArrayList<>(List.of(properties));
    all.add("rest.port=" + restPort);
    all.add("jobmanager.rpc.port=" + freePort());
    // A machine that stands still for a while is no failure.
    all.add("heartbeat.timeout=10min");
    all.add("pekko.ask.timeout=10min");
    all.forEach(property -> arguments.addAll(List.of("-D", property)));
    boolean done = false;
    try {
      script(arguments.toArray());
      done = true;
    } finally {
      if (!done) {
        close();
      }
    }
  }

  private static int freePort() throws IOException {
    try (ServerSocket socket = new ServerSocket(0)) {
      return socket.getLocalPort();
    }
  }

  private String script(Object... arguments) throws Exception {
    List<String> command = new ArrayList<>(List.of(SCRIPT.toString()));
    Stream.of(arguments).map(Object::toString).forEach(command::add);
    return output(command);
  }

  private String output(List<String> command) throws Exception {
    ProcessBuilder builder = new ProcessBuilder(command);
    builder.environment().put("BROADHEAD_CLUSTER_DIR", folder.toString());
    // Java's own caches refer to classes softly: as if memory were short, so that what counts
    // shows.
    builder.environment().put("JDK_JAVA_OPTIONS", "-XX:SoftRefLRUPolicyMSPerMB=0");
    Path errors = Files.createTempFile("cluster", ".err");
    Path output = Files.createTempFile("cluster", ".out");
    try {
      Process process =
          builder.redirectError(errors.toFile()).redirectOutput(output.toFile()).start();
      assertThat(process.waitFor(PATIENCE.toSeconds(), TimeUnit.SECONDS))
          .as("%s", command)
          .isTrue();
      assertThat(process.exitValue()).as("%s: %s", command, Files.readString(errors)).isZero();
      return Files.readString(output).strip();
    } finally {
      Files.delete(errors);
      Files.delete(output);
    }
  }

  /** Submits the job; returns its id. */
  String submit(Object... arguments) throws Exception {
    String job = script(Stream.concat(Stream.of("submit"), Stream.of(arguments)).toArray());
    jobs.add(job);
    return job;
  }

  /** Stops a job with a savepoint; returns its path. */
  String savepoint(String job) throws Exception {
    return script("savepoint", job, folder.resolve("savepoints").toUri());
  }

  /** Takes a checkpoint; returns Flink's account of it. */
  String checkpoint(String job, boolean full) throws Exception {
    return full ? script("checkpoint", job, "full") : script("checkpoint", job);
  }

  /** Waits until the source has read {@code count} batches. */
  void awaitBatches(String job, int count) throws Exception {
    String vertex = field(rest("/jobs/" + job), "id");
    String metric = "0.Source__step-files.broadhead.batchesRead";
    String path = "/jobs/" + job + "/vertices/" + vertex + "/metrics?get=" + metric;
    await(count + " batches", () -> count <= number(field(rest(path), "value")));
  }

  private static int number(String text) {
    return text.isEmpty() ? 0 : Integer.parseInt(text);
  }

  /** The first value of {@code key} in an answer, or nothing. */
  private static String field(String json, String key) {
    Matcher matcher = Pattern.compile("\"" + key + "\":\"([^\"]*)\"").matcher(json);
    return matcher.find() ? matcher.group(1) : "";
  }

  private String rest(String path) {
    try {
      return HTTP.send(
              HttpRequest.newBuilder(URI.create("http://localhost:" + restPort + path)).build(),
              HttpResponse.BodyHandlers.ofString())
          .body();
    } catch (IOException | InterruptedException e) {
      throw new IllegalStateException(e);
    }
  }

  /** Ends all jobs. */
  void cancelAll() throws Exception {
    for (String job : jobs) {
      if (!ENDED.contains(state(job))) {
        script("cancel", job);
        await("the job's end", () -> ENDED.contains(state(job)));
      }
    }
    jobs.clear();
  }

  String state(String job) {
    try {
      return script("state", job);
    } catch (Exception e) {
      throw new IllegalStateException(e);
    }
  }

  /** Kills a TaskManager as the system would, and starts another. */
  void killTaskManager(int number) throws Exception {
    long pid = pid(number);
    output(List.of("kill", "-9", Long.toString(pid)));
    script("taskmanager");
    started++;
  }

  private long pid(int number) throws IOException {
    return Long.parseLong(
        Files.readString(folder.resolve("taskmanager-" + number + ".pid")).strip());
  }

  /** The numbers of TaskManagers that run. */
  List<Integer> taskManagers() throws IOException {
    List<Integer> alive = new ArrayList<>();
    for (int number = 1; number <= started; number++) {
      if (ProcessHandle.of(pid(number)).isPresent()) {
        alive.add(number);
      }
    }
    return alive;
  }

  /** Class loaders of jobs that a TaskManager keeps, after it was asked to collect garbage. */
  long userClassLoaders(int number) {
    try {
      return countUserClassLoaders(number);
    } catch (Exception e) {
      throw new IllegalStateException(e);
    }
  }

  private long countUserClassLoaders(int number) throws Exception {
    String pid = Long.toString(pid(number));
    String jcmd = Path.of(System.getProperty("java.home"), "bin", "jcmd").toString();
    output(List.of(jcmd, pid, "GC.run"));
    return output(List.of(jcmd, pid, "VM.classloader_stats"))
        .lines()
        .filter(line -> line.endsWith("org.apache.flink.util.ChildFirstClassLoader"))
        .count();
  }

  /** The lines that a TaskManager has logged. */
  Stream<String> log(int number) throws IOException {
    return Files.readAllLines(folder.resolve("taskmanager-" + number + ".log")).stream();
  }

  /** Different files that a TaskManager has mapped whose names contain {@code name}. */
  List<String> mapped(int number, String name) throws IOException {
    try (Stream<String> lines = Files.lines(Path.of("/proc/" + pid(number) + "/maps"))) {
      return lines
          .filter(line -> line.contains(name))
          .map(line -> line.replaceAll(".* ", ""))
          .distinct()
          .toList();
    }
  }

  static void await(String what, BooleanSupplier condition) throws InterruptedException {
    for (int i = 0; !condition.getAsBoolean(); i++) {
      assertThat(i).as("waiting for %s", what).isLessThan(MOST_POLLS);
      Thread.sleep(POLL_MILLIS);
    }
  }

  @Override
  public void close() throws Exception {
    script("stop");
  }
}
