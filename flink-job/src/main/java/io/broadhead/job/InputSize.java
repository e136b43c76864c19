// SPDX-License-Identifier: Apache-2.0
package io.broadhead.job;

import io.broadhead.arrow.ArrowFile;
import io.broadhead.arrow.StepInput;
import java.io.IOException;
import java.nio.file.Path;
import org.apache.arrow.memory.BufferAllocator;

/** How much input there is, for the time left. */
final class InputSize {
  /** Nobody knows. */
  static final long UNKNOWN = -1;

  private InputSize() {}

  /** Batches at {@code path}; unknown where a stream does not tell or a file is damaged. */
  static long batches(Path path, BufferAllocator allocator) {
    long batches = 0;
    try {
      for (Path file : StepInput.files(path)) {
        if (!ArrowFile.isFile(file)) {
          return UNKNOWN;
        }
        try (ArrowFile open = ArrowFile.open(file, allocator)) {
          batches += open.batchCount();
        }
      }
      return batches;
    } catch (IOException e) {
      return UNKNOWN;
    }
  }
}
