// SPDX-License-Identifier: Apache-2.0
package io.broadhead.job.source;

import java.io.IOException;
import java.time.Clock;
import java.time.Duration;
import java.util.Collection;
import java.util.HashMap;
import java.util.Iterator;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.Set;
import java.util.stream.Collectors;
import org.apache.flink.api.connector.source.SplitEnumerator;
import org.apache.flink.api.connector.source.SplitEnumeratorContext;
import org.apache.flink.connector.file.src.FileSourceSplit;
import org.apache.flink.connector.file.src.PendingSplitsCheckpoint;
import org.apache.flink.connector.file.src.assigners.FileSplitAssigner;
import org.apache.flink.connector.file.src.enumerate.FileEnumerator;
import org.apache.flink.core.fs.Path;
import org.apache.flink.util.FlinkRuntimeException;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;

/**
 * Looks for new files in a folder again and again. Flink's own enumerator keeps every path that it
 * ever saw, in memory and in every checkpoint; this one forgets those whose files have been gone
 * for {@link #REMEMBERED}. Checkpoints of the two are alike.
 *
 * <p>Used by the source coordinator's thread; the folder is listed in another.
 */
final class WatchingEnumerator
    implements SplitEnumerator<FileSourceSplit, PendingSplitsCheckpoint<FileSourceSplit>> {
  /** A file system that shows a folder empty for a while must not have all files read again. */
  static final Duration REMEMBERED = Duration.ofDays(1);

  private static final Logger LOG = LoggerFactory.getLogger(WatchingEnumerator.class);

  private final SplitEnumeratorContext<FileSourceSplit> context;
  private final FileEnumerator files;
  private final FileSplitAssigner pending;
  private final Path folder;
  private final Duration interval;
  private final Clock clock;
  private final Set<Integer> waitingReaders = new LinkedHashSet<>();

  /** When each file was there last, in milliseconds; in checkpoints, as Flink's are, it is not. */
  private final Map<Path, Long> known = new HashMap<>();

  private boolean listed;

  /**
   * @param pending splits that are to be read first
   * @param known paths that are not to be read again
   */
  WatchingEnumerator(
      SplitEnumeratorContext<FileSourceSplit> context,
      FileEnumerator files,
      FileSplitAssigner pending,
      Collection<Path> known,
      Path folder,
      Duration interval,
      Clock clock) {
    this.context = context;
    this.files = files;
    this.pending = pending;
    this.folder = folder;
    this.interval = interval;
    this.clock = clock;
    known.forEach(path -> this.known.put(path, clock.millis()));
  }

  @Override
  public void start() {
    context.callAsync(
        () -> files.enumerateSplits(new Path[] {folder}, 1), this::found, 0, interval.toMillis());
  }

  private void found(Collection<FileSourceSplit> splits, Throwable failure) {
    if (failure != null) {
      if (!listed) {
        throw new FlinkRuntimeException(folder + ": cannot be listed", failure);
      }
      LOG.error("{}: cannot be listed; tried again every {}", folder, interval, failure);
      return;
    }
    listed = true;
    long now = clock.millis();
    pending.addSplits(
        splits.stream()
            .filter(split -> known.put(split.path(), now) == null)
            .collect(Collectors.toList()));
    known.values().removeIf(last -> last < now - REMEMBERED.toMillis());
    assign();
  }

  private void assign() {
    waitingReaders.retainAll(context.registeredReaders().keySet());
    Iterator<Integer> readers = waitingReaders.iterator();
    while (readers.hasNext()) {
      Optional<FileSourceSplit> next = pending.getNext(null);
      if (next.isEmpty()) {
        return;
      }
      context.assignSplit(next.get(), readers.next());
      readers.remove();
    }
  }

  @Override
  public void handleSplitRequest(int reader, String hostname) {
    waitingReaders.add(reader);
    assign();
  }

  @Override
  public void addSplitsBack(List<FileSourceSplit> splits, int reader) {
    pending.addSplits(splits);
  }

  @Override
  public void addReader(int reader) {
    // It asks for splits.
  }

  @Override
  public PendingSplitsCheckpoint<FileSourceSplit> snapshotState(long checkpointId) {
    return PendingSplitsCheckpoint.fromCollectionSnapshot(
        pending.remainingSplits(), known.keySet());
  }

  @Override
  public void close() throws IOException {
    // Nothing is open.
  }
}
