// SPDX-License-Identifier: Apache-2.0
package io.broadhead.job;

import java.util.ArrayList;
import java.util.List;
import java.util.Map;

/** The packages of the JDK that must be open, and who needs them. */
final class JvmAccess {
  private static final Map<String, String> NEEDED_BY =
      Map.of(
          "java.nio", "Arrow",
          "java.util", "Flink's client",
          "java.lang", "JavaCPP where it and its bindings are in different class loaders");

  private JvmAccess() {}

  /** A flag this JVM was started without. */
  record Missing(String flag, String neededBy) {}

  /** What is missing here, in the order of the package names. */
  static List<Missing> missing() {
    List<Missing> missing = new ArrayList<>();
    NEEDED_BY.keySet().stream()
        .sorted()
        .filter(name -> !Object.class.getModule().isOpen(name, JvmAccess.class.getModule()))
        .forEach(
            name ->
                missing.add(
                    new Missing(
                        "--add-opens=java.base/" + name + "=ALL-UNNAMED", NEEDED_BY.get(name))));
    return missing;
  }
}
