// SPDX-License-Identifier: Apache-2.0
package io.broadhead.job.source;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Clock;
import java.time.Duration;
import java.time.Instant;
import java.time.ZoneId;
import java.time.ZoneOffset;
import java.util.ArrayList;
import java.util.Collection;
import java.util.List;
import java.util.Map;
import java.util.concurrent.Callable;
import java.util.function.BiConsumer;
import org.apache.flink.api.connector.source.ReaderInfo;
import org.apache.flink.api.connector.source.SourceEvent;
import org.apache.flink.api.connector.source.SplitEnumeratorContext;
import org.apache.flink.api.connector.source.SplitsAssignment;
import org.apache.flink.connector.file.src.FileSourceSplit;
import org.apache.flink.connector.file.src.PendingSplitsCheckpoint;
import org.apache.flink.metrics.groups.SplitEnumeratorMetricGroup;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

class WatchingEnumeratorTest {
  private static final Duration SHORT_OF_A_DAY = Duration.ofHours(23);

  @TempDir Path temp;

  private final Coordinator coordinator = new Coordinator();
  private final ManualClock clock = new ManualClock();
  private Path folder;
  private WatchingEnumerator enumerator;

  @BeforeEach
  void start() throws IOException {
    folder = Files.createDirectory(temp.resolve("steps"));
    enumerator = enumerator(List.of(), List.of());
    enumerator.start();
  }

  private WatchingEnumerator enumerator(
      Collection<FileSourceSplit> pending, Collection<org.apache.flink.core.fs.Path> known) {
    return StepFileSource.watching(
            new org.apache.flink.core.fs.Path(folder.toUri()), Duration.ofSeconds(1))
        .watch(coordinator, pending, known, clock);
  }

  private void write(String... names) throws IOException {
    for (String name : names) {
      Files.writeString(folder.resolve(name), name);
    }
  }

  private PendingSplitsCheckpoint<FileSourceSplit> checkpoint() {
    return enumerator.snapshotState(1);
  }

  @Test
  void readersGetNewFilesByNameWhenThereAreSome() throws IOException {
    enumerator.handleSplitRequest(0, "host");
    coordinator.look();
    assertThat(coordinator.assigned).isEmpty();

    write("b", "a");
    coordinator.look();
    assertThat(coordinator.assigned).containsExactly("a");

    coordinator.look();
    assertThat(coordinator.assigned).as("nobody asked for another").containsExactly("a");
    enumerator.handleSplitRequest(0, "host");
    enumerator.handleSplitRequest(0, "host");
    assertThat(coordinator.assigned).containsExactly("a", "b");
  }

  @Test
  void aReaderThatHasGoneGetsNothing() throws IOException {
    enumerator.handleSplitRequest(0, "host");
    coordinator.readers = Map.of();
    write("a");
    coordinator.look();
    assertThat(coordinator.assigned).isEmpty();
    assertThat(checkpoint().getSplits()).hasSize(1);
  }

  @Test
  void pathsAreForgottenADayAfterTheirFiles() throws IOException {
    write("a", "b");
    coordinator.look();
    Files.delete(folder.resolve("a"));
    clock.pass(SHORT_OF_A_DAY);
    coordinator.look();
    assertThat(checkpoint().getAlreadyProcessedPaths()).hasSize(2);

    clock.pass(SHORT_OF_A_DAY);
    coordinator.look();
    assertThat(checkpoint().getAlreadyProcessedPaths())
        .extracting(org.apache.flink.core.fs.Path::getName)
        .containsExactly("b");
  }

  @Test
  void aFolderThatSeemsEmptyForAWhileIsNotReadAgain() throws IOException {
    write("a");
    coordinator.look();
    enumerator.handleSplitRequest(0, "host");
    Files.delete(folder.resolve("a"));
    coordinator.look();
    clock.pass(SHORT_OF_A_DAY);
    write("a");
    coordinator.look();
    enumerator.handleSplitRequest(0, "host");
    assertThat(coordinator.assigned).containsExactly("a");
  }

  @Test
  void goesOnFromACheckpoint() throws IOException {
    write("a", "b", "c");
    coordinator.look();
    enumerator.handleSplitRequest(0, "host");
    PendingSplitsCheckpoint<FileSourceSplit> saved = checkpoint();

    enumerator = enumerator(saved.getSplits(), saved.getAlreadyProcessedPaths());
    enumerator.start();
    write("d");
    coordinator.look();
    for (int i = 0; i < 4; i++) {
      enumerator.handleSplitRequest(0, "host");
    }
    assertThat(coordinator.assigned).containsExactly("a", "b", "c", "d");
  }

  @Test
  void theDayOfAFileThatHasGoneBeginsAnewWithACheckpoint() throws IOException {
    write("a");
    coordinator.look();
    Files.delete(folder.resolve("a"));
    clock.pass(SHORT_OF_A_DAY);
    PendingSplitsCheckpoint<FileSourceSplit> saved = checkpoint();

    enumerator = enumerator(List.of(), saved.getAlreadyProcessedPaths());
    enumerator.start();
    clock.pass(SHORT_OF_A_DAY);
    coordinator.look();
    assertThat(checkpoint().getAlreadyProcessedPaths()).hasSize(1);
    clock.pass(SHORT_OF_A_DAY);
    coordinator.look();
    assertThat(checkpoint().getAlreadyProcessedPaths()).isEmpty();
  }

  @Test
  void splitsThatComeBackAreHandedOutFirst() throws IOException {
    write("a", "b");
    coordinator.look();
    FileSourceSplit a = checkpoint().getSplits().iterator().next();
    enumerator.handleSplitRequest(0, "host");
    enumerator.addSplitsBack(List.of(a), 0);
    enumerator.handleSplitRequest(0, "host");
    assertThat(coordinator.assigned).containsExactly("a", "a");
  }

  @Test
  void aFolderThatIsNotThereFailsTheJobAtItsStartOnly() throws IOException {
    Files.delete(folder);
    assertThatThrownBy(coordinator::look).hasMessageEndingWith("cannot be listed");

    Files.createDirectory(folder);
    coordinator.look();
    Files.delete(folder);
    coordinator.look();
    Files.createDirectory(folder);
    write("a");
    coordinator.look();
    enumerator.handleSplitRequest(0, "host");
    assertThat(coordinator.assigned).containsExactly("a");
  }

  /** Looks for files when it is told to, in the test's thread. */
  private static final class Coordinator implements SplitEnumeratorContext<FileSourceSplit> {
    final List<String> assigned = new ArrayList<>();
    Map<Integer, ReaderInfo> readers = Map.of(0, new ReaderInfo(0, "host"));
    private Runnable work;

    void look() {
      work.run();
    }

    @Override
    public <T> void callAsync(
        Callable<T> callable, BiConsumer<T, Throwable> handler, long delay, long period) {
      work =
          () -> {
            T found;
            try {
              found = callable.call();
            } catch (Exception e) {
              handler.accept(null, e);
              return;
            }
            handler.accept(found, null);
          };
    }

    @Override
    public void assignSplits(SplitsAssignment<FileSourceSplit> assignment) {
      assignment.assignment().get(0).forEach(split -> assigned.add(split.path().getName()));
    }

    @Override
    public Map<Integer, ReaderInfo> registeredReaders() {
      return readers;
    }

    @Override
    public SplitEnumeratorMetricGroup metricGroup() {
      throw new UnsupportedOperationException();
    }

    @Override
    public void sendEventToSourceReader(int subtask, SourceEvent event) {
      throw new UnsupportedOperationException();
    }

    @Override
    public int currentParallelism() {
      return 1;
    }

    @Override
    public void signalNoMoreSplits(int subtask) {
      throw new UnsupportedOperationException();
    }

    @Override
    public <T> void callAsync(Callable<T> callable, BiConsumer<T, Throwable> handler) {
      throw new UnsupportedOperationException();
    }

    @Override
    public void runInCoordinatorThread(Runnable runnable) {
      throw new UnsupportedOperationException();
    }
  }

  private static final class ManualClock extends Clock {
    private Instant now = Instant.EPOCH;

    void pass(Duration time) {
      now = now.plus(time);
    }

    @Override
    public Instant instant() {
      return now;
    }

    @Override
    public ZoneId getZone() {
      return ZoneOffset.UTC;
    }

    @Override
    public Clock withZone(ZoneId zone) {
      throw new UnsupportedOperationException();
    }
  }
}
