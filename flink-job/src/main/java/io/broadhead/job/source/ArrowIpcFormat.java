// SPDX-License-Identifier: Apache-2.0
package io.broadhead.job.source;

import io.broadhead.arrow.ArrowBatch;
import io.broadhead.arrow.ArrowFile;
import io.broadhead.arrow.ArrowStreamBatches;
import io.broadhead.flink.ArrowBatchTypeInfo;
import java.io.BufferedInputStream;
import java.io.Closeable;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import org.apache.flink.api.common.typeinfo.TypeInformation;
import org.apache.flink.configuration.Configuration;
import org.apache.flink.connector.file.src.FileSourceSplit;
import org.apache.flink.connector.file.src.reader.BulkFormat;
import org.apache.flink.connector.file.src.util.CheckpointedPosition;
import org.apache.flink.connector.file.src.util.RecordAndPosition;
import org.apache.flink.core.fs.FSDataInputStream;
import org.apache.flink.core.fs.FileSystem;

/**
 * Arrow IPC for Flink's file source: each record batch is one element. A local IPC file is mapped,
 * so that the buffers of uncompressed batches are the file's pages; the split's reader takes the
 * batches whose block starts in the split's byte range. Everything else is read as a stream, whole.
 *
 * <p>A position is the number of batches of the split that were emitted. Batches belong to the
 * {@link SourceMemory} of the reader they were read for, and are released when the next is asked
 * for.
 */
final class ArrowIpcFormat implements BulkFormat<ArrowBatch, FileSourceSplit> {
  private static final long serialVersionUID = 1L;

  private static final int READ_AHEAD = 64 * 1024;

  /** Magic and padding in front of the stream that an IPC file contains. */
  private static final int FILE_HEAD = 8;

  private final transient SourceMemory memory;
  private final transient FetcherThreads threads;

  /** One that only tells its type and makes no readers. */
  ArrowIpcFormat() {
    this(null, null);
  }

  /**
   * @param threads gets those in which readers are made
   */
  ArrowIpcFormat(SourceMemory memory, FetcherThreads threads) {
    this.memory = memory;
    this.threads = threads;
  }

  @Override
  public boolean isSplittable() {
    return true;
  }

  @Override
  public TypeInformation<ArrowBatch> getProducedType() {
    return ArrowBatchTypeInfo.INSTANCE;
  }

  @Override
  public Reader<ArrowBatch> createReader(Configuration configuration, FileSourceSplit split)
      throws IOException {
    return open(split, 0);
  }

  @Override
  public Reader<ArrowBatch> restoreReader(Configuration configuration, FileSourceSplit split)
      throws IOException {
    return open(
        split,
        split.getReaderPosition().map(CheckpointedPosition::getRecordsAfterOffset).orElse(0L));
  }

  private Reader<ArrowBatch> open(FileSourceSplit split, long skip) throws IOException {
    threads.add();
    Batches batches = StepFiles.isLocal(split.path()) ? openLocal(split) : openRemote(split);
    try {
      for (long i = 0; i < skip; i++) {
        batches.skip();
      }
      return new BatchReader(batches, skip, memory);
    } catch (IOException | RuntimeException e) {
      batches.close();
      throw e;
    }
  }

  private Batches openLocal(FileSourceSplit split) throws IOException {
    Path path = Path.of(split.path().getPath());
    if (ArrowFile.isFile(path)) {
      boolean whole = split.offset() == 0 && split.length() == split.fileSize();
      if (!whole && Files.size(path) != split.fileSize()) {
        throw new IOException(
            path
                + ": expected "
                + split.fileSize()
                + " bytes as when the file was found, got "
                + Files.size(path)
                + "; it is read in ranges");
      }
      // One that is read whole may have been replaced since it was found.
      return new FileBatches(
          ArrowFile.open(path, memory.allocator()),
          split.offset(),
          whole ? Long.MAX_VALUE : split.offset() + split.length());
    }
    return openStream(split, false);
  }

  private Batches openRemote(FileSourceSplit split) throws IOException {
    return openStream(split, StepFiles.isIpcFile(split.path()));
  }

  private Batches openStream(FileSourceSplit split, boolean insideFile) throws IOException {
    FileSystem fileSystem = split.path().getFileSystem();
    FSDataInputStream in = fileSystem.open(split.path());
    try {
      if (insideFile) {
        in.seek(FILE_HEAD);
      }
      return new StreamBatches(
          new ArrowStreamBatches(
              split.path().getPath(), new BufferedInputStream(in, READ_AHEAD), memory.allocator()));
    } catch (IOException | RuntimeException e) {
      in.close();
      throw e;
    }
  }

  /** The batches of a split in order. */
  private interface Batches extends Closeable {
    /** The next batch, which the caller closes, or null behind the last. */
    ArrowBatch next() throws IOException;

    /** Passes over the next batch. */
    void skip() throws IOException;
  }

  private static final class FileBatches implements Batches {
    private final ArrowFile file;
    private final long start;
    private final long end;
    private int index;

    /** Those that begin from {@code start} on and before {@code end}. */
    FileBatches(ArrowFile file, long start, long end) {
      this.file = file;
      this.start = start;
      this.end = end;
      toNextInRange();
    }

    private void toNextInRange() {
      while (index < file.batchCount()
          && (file.blockOffset(index) < start || file.blockOffset(index) >= end)) {
        index++;
      }
    }

    @Override
    public ArrowBatch next() throws IOException {
      if (index >= file.batchCount()) {
        return null;
      }
      ArrowBatch batch = file.read(index);
      skip();
      return batch;
    }

    @Override
    public void skip() throws IOException {
      if (index >= file.batchCount()) {
        throw new IOException(file.path() + " has become shorter since the checkpoint");
      }
      index++;
      toNextInRange();
    }

    @Override
    public void close() throws IOException {
      file.close();
    }
  }

  private record StreamBatches(ArrowStreamBatches stream) implements Batches {
    @Override
    public ArrowBatch next() throws IOException {
      return stream.next();
    }

    @Override
    public void skip() throws IOException {
      try (ArrowBatch skipped = stream.next()) {
        if (skipped == null) {
          throw new IOException("the stream has become shorter since the checkpoint");
        }
      }
    }

    @Override
    public void close() throws IOException {
      stream.close();
    }
  }

  /**
   * Used by the fetcher thread. Small batches go to the task thread several at a time: each time
   * wakes a thread.
   */
  private static final class BatchReader implements Reader<ArrowBatch> {
    private static final long ENOUGH_BYTES = 256 * 1024;
    private static final int MOST_BATCHES = 64;

    private final Batches batches;
    private final SourceMemory memory;
    private long position;

    BatchReader(Batches batches, long position, SourceMemory memory) {
      this.batches = batches;
      this.position = position;
      this.memory = memory;
    }

    @Override
    public RecordIterator<ArrowBatch> readBatch() throws IOException {
      List<ArrowBatch> read = new ArrayList<>();
      long bytes = 0;
      while (bytes < ENOUGH_BYTES && read.size() < MOST_BATCHES) {
        ArrowBatch batch = batches.next();
        if (batch == null) {
          break;
        }
        memory.hold(batch);
        read.add(batch);
        bytes += batch.byteSize();
      }
      if (read.isEmpty()) {
        return null;
      }
      RecordIterator<ArrowBatch> records = new Records(read, position, memory);
      position += read.size();
      return records;
    }

    @Override
    public void close() throws IOException {
      batches.close();
    }
  }

  /** Used by the task thread. */
  private static final class Records implements RecordIterator<ArrowBatch> {
    private final List<ArrowBatch> batches;
    private final long position;
    private final SourceMemory memory;
    private int taken;

    /**
     * @param position of the first batch
     */
    Records(List<ArrowBatch> batches, long position, SourceMemory memory) {
      this.batches = batches;
      this.position = position;
      this.memory = memory;
    }

    @Override
    public RecordAndPosition<ArrowBatch> next() {
      if (taken > 0) {
        // Flink asks again only after collect() has returned.
        memory.release(batches.get(taken - 1));
      }
      if (taken == batches.size()) {
        return null;
      }
      ArrowBatch batch = batches.get(taken++);
      return new RecordAndPosition<>(batch, RecordAndPosition.NO_OFFSET, position + taken);
    }

    @Override
    public void releaseBatch() {
      batches.forEach(memory::release);
    }
  }
}
