// SPDX-License-Identifier: Apache-2.0
package io.broadhead.arrow;

import java.io.IOException;
import java.nio.file.FileSystemException;

/** Failed writes with the name of their file: the system's own message of a full disk has none. */
public final class FileFailure {
  private FileFailure() {}

  /** {@code failure}, or one that names {@code file} if that does not. */
  public static IOException of(String file, IOException failure) {
    if (failure instanceof FileSystemException) {
      return failure;
    }
    FileSystemException named = new FileSystemException(file, null, failure.getMessage());
    named.addSuppressed(failure);
    return named;
  }
}
