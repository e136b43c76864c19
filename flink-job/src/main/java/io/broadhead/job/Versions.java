// SPDX-License-Identifier: Apache-2.0
package io.broadhead.job;

import java.io.IOException;
import java.io.InputStream;
import java.io.UncheckedIOException;
import java.util.LinkedHashMap;
import java.util.Map;
import java.util.Properties;

/** The versions this build was made of. */
final class Versions {
  private Versions() {}

  /** Versions by name, in the order in which they are printed. */
  static Map<String, String> load() {
    Properties build = new Properties();
    try (InputStream in = Versions.class.getResourceAsStream("versions.properties")) {
      build.load(in);
    } catch (IOException e) {
      throw new UncheckedIOException(e);
    }
    Map<String, String> versions = new LinkedHashMap<>();
    versions.put("broadhead", build.getProperty("broadhead"));
    versions.put("java", System.getProperty("java.runtime.version"));
    for (String library : new String[] {"arrow", "flink", "javacpp"}) {
      versions.put(library, build.getProperty(library));
    }
    return versions;
  }
}
