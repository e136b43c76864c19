// SPDX-License-Identifier: Apache-2.0
package io.broadhead.job;

import io.broadhead.arrow.FileFailure;
import io.broadhead.arrow.StepInput;
import io.broadhead.attention.RefusedRow;
import io.broadhead.job.sink.RefusedRows;
import java.io.BufferedWriter;
import java.io.IOException;
import java.io.UncheckedIOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardCopyOption;

/**
 * The rows that {@code attend} left out, as JSON lines. The file appears in {@link #finish}, in
 * place of an older one, and only if there is a row. Used by one thread.
 */
final class RefusedFile implements AutoCloseable {
  private final Path file;
  private final Path unfinished;
  private BufferedWriter writer;
  private long count;

  RefusedFile(Path file) throws WorkFailedException {
    Failure.requireWritable(file, "--refused");
    this.file = file;
    this.unfinished = file.resolveSibling(file.getFileName() + ".tmp");
  }

  void add(StepInput.Origin origin, RefusedRow row) {
    try {
      if (writer == null) {
        writer = Files.newBufferedWriter(unfinished);
      }
      writer.write(RefusedRows.json(origin.file().toString(), origin.batch(), row));
      writer.newLine();
      count++;
    } catch (IOException e) {
      throw new UncheckedIOException(FileFailure.of(file.toString(), e));
    }
  }

  long count() {
    return count;
  }

  /** Gives the file its name. */
  void finish() throws IOException {
    if (writer != null) {
      try {
        writer.close();
      } catch (IOException e) {
        throw FileFailure.of(file.toString(), e);
      }
      writer = null;
      Files.move(unfinished, file, StandardCopyOption.REPLACE_EXISTING);
    } else {
      Files.deleteIfExists(file);
    }
  }

  @Override
  public void close() throws IOException {
    if (writer != null) {
      writer.close();
      Files.deleteIfExists(unfinished);
    }
  }
}
