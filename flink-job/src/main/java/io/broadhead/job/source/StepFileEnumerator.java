// SPDX-License-Identifier: Apache-2.0
package io.broadhead.job.source;

import java.io.IOException;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collection;
import java.util.Comparator;
import java.util.List;
import org.apache.flink.connector.file.src.FileSourceSplit;
import org.apache.flink.connector.file.src.enumerate.FileEnumerator;
import org.apache.flink.core.fs.FileStatus;
import org.apache.flink.core.fs.FileSystem;
import org.apache.flink.core.fs.Path;

/**
 * Finds step files: a file as it is, or the files of a folder, in the order of their names. Local
 * IPC files are cut into byte ranges of {@code splitBytes}; a reader takes the record batches that
 * start in its range. IPC streams and files that cannot be mapped are one split each.
 *
 * <p>Runs in the job manager; keeps no state.
 */
final class StepFileEnumerator implements FileEnumerator {
  /** For {@code splitBytes}: one split for each file. */
  static final long WHOLE_FILES = Long.MAX_VALUE;

  private final long splitBytes;

  StepFileEnumerator(long splitBytes) {
    if (splitBytes < 1) {
      throw new IllegalArgumentException("splitBytes: expected at least 1, got " + splitBytes);
    }
    this.splitBytes = splitBytes;
  }

  @Override
  public Collection<FileSourceSplit> enumerateSplits(Path[] paths, int minDesiredSplits)
      throws IOException {
    List<FileSourceSplit> found = new ArrayList<>();
    for (Path path : paths) {
      FileSystem fileSystem = path.getFileSystem();
      FileStatus status = fileSystem.getFileStatus(path);
      if (status.isDir()) {
        FileStatus[] children = fileSystem.listStatus(path);
        if (children == null) {
          throw new IOException(path + ": expected a folder that can be listed");
        }
        Arrays.sort(children, Comparator.comparing(child -> child.getPath().getName()));
        for (FileStatus child : children) {
          if (!child.isDir() && StepFiles.isInput(child.getPath().getName())) {
            addSplits(child, found);
          }
        }
      } else {
        addSplits(status, found);
      }
    }
    return found;
  }

  private void addSplits(FileStatus file, List<FileSourceSplit> target) throws IOException {
    long size = file.getLen();
    boolean whole =
        size <= splitBytes
            || !StepFiles.isLocal(file.getPath())
            || !StepFiles.isIpcFile(file.getPath());
    long step = whole ? Math.max(size, 1) : splitBytes;
    for (long offset = 0; offset == 0 || offset < size; offset += step) {
      target.add(
          new FileSourceSplit(
              // Unique also beside splits that come back from a checkpoint.
              file.getPath().getPath() + "@" + offset,
              file.getPath(),
              offset,
              Math.min(step, size - offset),
              file.getModificationTime(),
              size));
    }
  }
}
