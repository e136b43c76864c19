// SPDX-License-Identifier: Apache-2.0
package io.broadhead.job.source;

import io.broadhead.arrow.ArrowBatchFileWriter;
import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.util.Arrays;
import org.apache.flink.core.fs.FSDataInputStream;
import org.apache.flink.core.fs.Path;

/** What the source asks about files. */
final class StepFiles {
  private static final byte[] FILE_MAGIC = "ARROW1".getBytes(StandardCharsets.US_ASCII);

  private StepFiles() {}

  /** Whether a file of that name in a folder is input: it is finished and not hidden. */
  static boolean isInput(String name) {
    return !name.startsWith(".")
        && !name.startsWith("_")
        && !name.contains(ArrowBatchFileWriter.UNFINISHED);
  }

  /** Whether {@code path} is a file of this machine. */
  static boolean isLocal(Path path) throws IOException {
    return !path.getFileSystem().isDistributedFS();
  }

  /** Whether the file at {@code path} starts like an IPC file rather than a stream. */
  static boolean isIpcFile(Path path) throws IOException {
    try (FSDataInputStream in = path.getFileSystem().open(path)) {
      return Arrays.equals(in.readNBytes(FILE_MAGIC.length), FILE_MAGIC);
    }
  }
}
