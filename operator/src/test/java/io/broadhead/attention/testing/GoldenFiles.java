// SPDX-License-Identifier: Apache-2.0
package io.broadhead.attention.testing;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;

/**
 * What earlier versions wrote, and later ones must read. {@code -Dbroadhead.golden.update=true}
 * writes the files anew, which is right only together with a new version and new names.
 */
public final class GoldenFiles {
  private static final Path FOLDER = Path.of("src/test/resources/golden");

  private GoldenFiles() {}

  /** What the golden file of a format that is not written any more holds. */
  public static byte[] read(String name) throws IOException {
    return Files.readAllBytes(FOLDER.resolve(name));
  }

  /**
   * What the golden file holds.
   *
   * @param current what the current version writes, in case that the file is to be written
   */
  public static byte[] read(String name, byte[] current) throws IOException {
    Path file = FOLDER.resolve(name);
    if (Boolean.getBoolean("broadhead.golden.update")) {
      Files.createDirectories(FOLDER);
      Files.write(file, current);
    }
    return read(name);
  }
}
