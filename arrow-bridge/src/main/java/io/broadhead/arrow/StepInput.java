// SPDX-License-Identifier: Apache-2.0
package io.broadhead.arrow;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.NoSuchFileException;
import java.nio.file.Path;
import java.util.Comparator;
import java.util.List;
import java.util.stream.Stream;
import org.apache.arrow.memory.BufferAllocator;

/**
 * The step batches at a path: an IPC file, an IPC stream, or a folder of them in the order of their
 * names. In a folder, names that start with a dot or an underscore and unfinished files are passed
 * over. Its owner closes it; used by one thread.
 */
public final class StepInput implements AutoCloseable {
  private final List<Path> files;
  private final BufferAllocator allocator;
  private int nextFile;
  private ArrowFile file;
  private int nextBatch;
  private ArrowStreamBatches stream;
  private Origin origin;

  /**
   * Where a batch came from.
   *
   * @param batch index in the file
   */
  public record Origin(Path file, int batch) {
    @Override
    public String toString() {
      return file + ", batch " + batch;
    }
  }

  private StepInput(List<Path> files, BufferAllocator allocator) {
    this.files = files;
    this.allocator = allocator;
  }

  /** Opens {@code path}; files are opened as they are reached. */
  public static StepInput open(Path path, BufferAllocator allocator) throws IOException {
    return new StepInput(files(path), allocator);
  }

  /**
   * The files that {@code path} stands for.
   *
   * @throws NoSuchFileException if there is nothing at {@code path}
   */
  public static List<Path> files(Path path) throws IOException {
    if (!Files.isDirectory(path)) {
      if (!Files.exists(path)) {
        throw new NoSuchFileException(
            path.toString(), null, "expected an Arrow IPC file, stream or folder");
      }
      return List.of(path);
    }
    try (Stream<Path> entries = Files.list(path)) {
      return entries
          .filter(Files::isRegularFile)
          .filter(entry -> isVisible(entry.getFileName().toString()))
          .sorted(Comparator.comparing(entry -> entry.getFileName().toString()))
          .toList();
    }
  }

  private static boolean isVisible(String name) {
    return !name.startsWith(".")
        && !name.startsWith("_")
        && !name.contains(ArrowBatchFileWriter.UNFINISHED);
  }

  /** The next batch, which the caller closes, or null behind the last. */
  public ArrowBatch next() throws IOException {
    while (true) {
      if (file != null) {
        if (nextBatch < file.batchCount()) {
          origin = new Origin(file.path(), nextBatch);
          return file.read(nextBatch++);
        }
        file.close();
        file = null;
      } else if (stream != null) {
        ArrowBatch batch = stream.next();
        if (batch != null) {
          origin = new Origin(files.get(nextFile - 1), stream.index());
          return batch;
        }
        stream.close();
        stream = null;
      } else if (nextFile < files.size()) {
        openNext();
      } else {
        return null;
      }
    }
  }

  private void openNext() throws IOException {
    Path path = files.get(nextFile++);
    nextBatch = 0;
    if (ArrowFile.isFile(path)) {
      file = ArrowFile.open(path, allocator);
    } else {
      stream = new ArrowStreamBatches(path.toString(), Files.newInputStream(path), allocator);
    }
  }

  /** Where the batch that {@link #next()} returned last came from; null before the first. */
  public Origin origin() {
    return origin;
  }

  @Override
  public void close() throws IOException {
    try (ArrowFile openFile = file;
        ArrowStreamBatches openStream = stream) {
      file = null;
      stream = null;
    }
  }
}
