// SPDX-License-Identifier: Apache-2.0
package io.broadhead.arrow;

import java.nio.ByteBuffer;
import org.apache.arrow.memory.BufferAllocator;

/** The JVM flags that Arrow needs, checked before Arrow fails in a static initialiser. */
public final class JvmFlags {
  /** Opens the package whose direct buffers Arrow makes. */
  public static final String ADD_OPENS = "--add-opens=java.base/java.nio=ALL-UNNAMED";

  private JvmFlags() {}

  /**
   * Checks that {@code java.nio} is open to Arrow.
   *
   * @throws IllegalStateException naming the flag to add
   */
  public static void requireJavaNioOpen() {
    if (!ByteBuffer.class.getModule().isOpen("java.nio", BufferAllocator.class.getModule())) {
      throw new IllegalStateException(missingFlagMessage());
    }
  }

  static String missingFlagMessage() {
    return "Arrow needs access to java.nio: start this JVM with "
        + ADD_OPENS
        + " (with java -jar, a manifest entry Add-Opens: java.base/java.nio does the same)";
  }
}
