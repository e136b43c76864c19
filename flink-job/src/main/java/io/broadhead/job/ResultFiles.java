// SPDX-License-Identifier: Apache-2.0
package io.broadhead.job;

import io.broadhead.arrow.ArrowBatch;
import io.broadhead.arrow.ArrowBatchFileWriter;
import io.broadhead.arrow.Compression;
import io.broadhead.arrow.StepInput;
import io.broadhead.job.sink.ResultLayout;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import org.apache.arrow.memory.BufferAllocator;

/**
 * Where {@code attend} and {@code merge} write: one IPC file, or a folder with one file for each
 * group of results that can share one. Files get their names in {@link #finish}; closing without it
 * removes what was written, and the folder if it was made. Used by one thread.
 */
final class ResultFiles implements AutoCloseable {
  private static final String SUFFIX = ".arrow";
  private static final String ONLY_GROUP = "results";

  private final Path output;
  private final boolean folder;
  private final boolean madeFolder;
  private final ResultLayout layout;
  private final Compression compression;
  private final BufferAllocator allocator;
  private final Map<String, ArrowBatchFileWriter> writers = new LinkedHashMap<>();

  private ResultFiles(
      Path output,
      boolean folder,
      boolean madeFolder,
      ResultLayout layout,
      Compression compression,
      BufferAllocator allocator) {
    this.output = output;
    this.folder = folder;
    this.madeFolder = madeFolder;
    this.layout = layout;
    this.compression = compression;
    this.allocator = allocator;
  }

  /**
   * Prepares {@code output}; nothing is written yet.
   *
   * @param inputs files and folders that must not be overwritten
   * @param layout which results share a file
   */
  static ResultFiles create(
      Path output,
      boolean overwrite,
      List<Path> inputs,
      ResultLayout layout,
      Compression compression,
      BufferAllocator allocator)
      throws IOException, WorkFailedException {
    boolean folder = isFolder(output);
    boolean madeFolder = folder && OutputFolder.prepare(output, overwrite, inputs);
    if (!folder) {
      Failure.requireWritable(output, "--output");
    }
    return new ResultFiles(output, folder, madeFolder, layout, compression, allocator);
  }

  /** A name with an extension is a file, unless there is a folder of that name. */
  static boolean isFolder(Path output) {
    Path name = output.getFileName();
    return Files.isDirectory(output) || name == null || name.toString().lastIndexOf('.') <= 0;
  }

  /** Appends {@code result} of the batch at {@code origin}; it stays the caller's. */
  void write(ArrowBatch result, StepInput.Origin origin) throws IOException, WorkFailedException {
    write(layout.groupOf(result), result, origin);
  }

  /** As above, into the file of {@code group} if this is a folder. */
  void write(String group, ArrowBatch result, StepInput.Origin origin)
      throws IOException, WorkFailedException {
    ArrowBatchFileWriter writer = writers.get(group);
    if (writer == null) {
      if (!folder && !writers.isEmpty()) {
        throw new WorkFailedException(
            origin
                + ": expected a result of the same schema as before, got another ("
                + group
                + "); an Arrow IPC file has one schema: give --output as a folder, such as "
                + withoutSuffix(output)
                + "/, to get a file for each");
      }
      writer = ArrowBatchFileWriter.create(path(group), compression, allocator);
      writers.put(group, writer);
    }
    writer.write(result);
  }

  private Path path(String group) {
    return folder ? output.resolve((group.isEmpty() ? ONLY_GROUP : group) + SUFFIX) : output;
  }

  private static String withoutSuffix(Path file) {
    String path = file.toString();
    return path.substring(0, path.lastIndexOf('.'));
  }

  /** Gives every file its name. */
  void finish() throws IOException {
    for (ArrowBatchFileWriter writer : writers.values()) {
      writer.finish();
    }
  }

  @Override
  public void close() throws IOException {
    IOException failure = null;
    for (ArrowBatchFileWriter writer : writers.values()) {
      try {
        writer.close();
      } catch (IOException e) {
        failure = e;
      }
    }
    if (failure != null) {
      throw failure;
    }
    if (madeFolder && OutputFolder.isEmpty(output)) {
      Files.delete(output);
    }
  }
}
