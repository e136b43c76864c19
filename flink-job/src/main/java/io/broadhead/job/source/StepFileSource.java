// SPDX-License-Identifier: Apache-2.0
package io.broadhead.job.source;

import io.broadhead.arrow.ArrowBatch;
import io.broadhead.flink.PagedAttentionMetrics;
import java.io.IOException;
import java.time.Clock;
import java.time.Duration;
import java.util.Collection;
import java.util.List;
import java.util.concurrent.CompletableFuture;
import org.apache.flink.api.connector.source.ReaderOutput;
import org.apache.flink.api.connector.source.SourceEvent;
import org.apache.flink.api.connector.source.SourceReader;
import org.apache.flink.api.connector.source.SourceReaderContext;
import org.apache.flink.api.connector.source.SplitEnumerator;
import org.apache.flink.api.connector.source.SplitEnumeratorContext;
import org.apache.flink.connector.file.src.AbstractFileSource;
import org.apache.flink.connector.file.src.ContinuousEnumerationSettings;
import org.apache.flink.connector.file.src.FileSourceSplit;
import org.apache.flink.connector.file.src.FileSourceSplitSerializer;
import org.apache.flink.connector.file.src.PendingSplitsCheckpoint;
import org.apache.flink.connector.file.src.impl.FileSourceReader;
import org.apache.flink.core.fs.Path;
import org.apache.flink.core.io.InputStatus;
import org.apache.flink.core.io.SimpleVersionedSerializer;

/**
 * Flink's file source over step files: each record batch of an Arrow IPC file or stream is one
 * element, files and batches come in order where the source has parallelism 1.
 *
 * <p>Beyond Flink's own file source it only owns the readers' off-heap memory: a batch belongs to
 * the source until the next one is asked for, and a cancelled task leaves none behind, nor a
 * thread.
 *
 * <p>In jobs with unaligned checkpoints {@code execution.checkpointing.aligned-checkpoint-timeout}
 * must be at least a millisecond: Flink 2.3 loses splits of any source that asks for them one by
 * one where it is zero.
 */
public final class StepFileSource extends AbstractFileSource<ArrowBatch, FileSourceSplit> {
  private static final long serialVersionUID = 1L;

  /** Size at which a local IPC file becomes several splits. */
  public static final long DEFAULT_SPLIT_BYTES = 1L << 30;

  /** Counter of the batches that were read, in the group of the attention operator's metrics. */
  public static final String BATCHES_READ = "batchesRead";

  private final Path input;

  private StepFileSource(Path input, long splitBytes, ContinuousEnumerationSettings watching) {
    super(
        new Path[] {input},
        () -> new StepFileEnumerator(splitBytes),
        OrderedSplitAssigner::new,
        new ArrowIpcFormat(),
        watching);
    this.input = input;
  }

  /** Reads the file, or the files of the folder, that {@code input} names, and ends. */
  public static StepFileSource bounded(Path input) {
    return bounded(input, DEFAULT_SPLIT_BYTES);
  }

  /** Like {@link #bounded(Path)}, with splits of {@code splitBytes}. */
  public static StepFileSource bounded(Path input, long splitBytes) {
    return new StepFileSource(input, splitBytes, null);
  }

  /**
   * Reads the files of a folder, then looks for new ones at every {@code interval} and never ends.
   * A file is read once, so it must be complete when it appears: move it into the folder. Its path
   * is remembered until it has been gone for a day.
   */
  public static StepFileSource watching(Path folder, Duration interval) {
    // A path is what is remembered, so all splits of a file but one would be dropped.
    return new StepFileSource(
        folder, StepFileEnumerator.WHOLE_FILES, new ContinuousEnumerationSettings(interval));
  }

  /**
   * Whether {@code input} is a folder without step files, as this process sees it.
   *
   * @throws java.io.FileNotFoundException if there is no such file or folder
   */
  public static boolean isEmpty(Path input) throws IOException {
    return new StepFileEnumerator(StepFileEnumerator.WHOLE_FILES)
        .enumerateSplits(new Path[] {input}, 1)
        .isEmpty();
  }

  @Override
  public SplitEnumerator<FileSourceSplit, PendingSplitsCheckpoint<FileSourceSplit>>
      createEnumerator(SplitEnumeratorContext<FileSourceSplit> context) {
    return getContinuousEnumerationSettings() == null
        ? super.createEnumerator(context)
        : watch(context, List.of(), List.of(), Clock.systemUTC());
  }

  @Override
  public SplitEnumerator<FileSourceSplit, PendingSplitsCheckpoint<FileSourceSplit>>
      restoreEnumerator(
          SplitEnumeratorContext<FileSourceSplit> context,
          PendingSplitsCheckpoint<FileSourceSplit> state) {
    return getContinuousEnumerationSettings() == null
        ? super.restoreEnumerator(context, state)
        : watch(context, state.getSplits(), state.getAlreadyProcessedPaths(), Clock.systemUTC());
  }

  /** The enumerator of {@link #watching}, which goes on from {@code pending} and {@code known}. */
  WatchingEnumerator watch(
      SplitEnumeratorContext<FileSourceSplit> context,
      Collection<FileSourceSplit> pending,
      Collection<Path> known,
      Clock clock) {
    return new WatchingEnumerator(
        context,
        getEnumeratorFactory().create(),
        getAssignerFactory().create(pending),
        known,
        input,
        getContinuousEnumerationSettings().getDiscoveryInterval(),
        clock);
  }

  @Override
  public SimpleVersionedSerializer<FileSourceSplit> getSplitSerializer() {
    return FileSourceSplitSerializer.INSTANCE;
  }

  @Override
  public SourceReader<ArrowBatch, FileSourceSplit> createReader(SourceReaderContext context) {
    SourceMemory memory =
        new SourceMemory(
            context.metricGroup().addGroup(PagedAttentionMetrics.GROUP).counter(BATCHES_READ));
    FetcherThreads threads = new FetcherThreads();
    return new OwningReader(
        new FileSourceReader<>(
            context, new ArrowIpcFormat(memory, threads), context.getConfiguration()),
        memory,
        threads);
  }

  /** Flink's reader, its threads, and the memory that outlives its last batch. */
  @SuppressWarnings("try") // closing Flink's reader may be interrupted
  private record OwningReader(
      SourceReader<ArrowBatch, FileSourceSplit> reader, SourceMemory memory, FetcherThreads threads)
      implements SourceReader<ArrowBatch, FileSourceSplit> {

    @Override
    public void start() {
      reader.start();
    }

    @Override
    public InputStatus pollNext(ReaderOutput<ArrowBatch> output) throws Exception {
      return reader.pollNext(output);
    }

    @Override
    public List<FileSourceSplit> snapshotState(long checkpointId) {
      return reader.snapshotState(checkpointId);
    }

    @Override
    public CompletableFuture<Void> isAvailable() {
      return reader.isAvailable();
    }

    @Override
    public void addSplits(List<FileSourceSplit> splits) {
      reader.addSplits(splits);
    }

    @Override
    public void notifyNoMoreSplits() {
      reader.notifyNoMoreSplits();
    }

    @Override
    public void handleSourceEvents(SourceEvent event) {
      reader.handleSourceEvents(event);
    }

    @Override
    public void notifyCheckpointComplete(long checkpointId) throws Exception {
      reader.notifyCheckpointComplete(checkpointId);
    }

    @Override
    public void notifyCheckpointAborted(long checkpointId) throws Exception {
      reader.notifyCheckpointAborted(checkpointId);
    }

    @Override
    public void pauseOrResumeSplits(Collection<String> pause, Collection<String> resume) {
      reader.pauseOrResumeSplits(pause, resume);
    }

    @Override
    public void close() throws Exception {
      try (memory) {
        threads.endWaiting();
        reader.close();
      }
    }
  }
}
