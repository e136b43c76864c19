// SPDX-License-Identifier: Apache-2.0
package io.broadhead.job.bench;

import com.sun.management.HotSpotDiagnosticMXBean;
import io.broadhead.job.text.Units;
import java.io.IOException;
import java.lang.management.ManagementFactory;
import java.nio.file.Files;
import java.nio.file.Path;

/** What the system can give without swapping, and the JVM at all. */
final class AvailableMemory {
  private static final Path INFO = Path.of("/proc/meminfo");
  private static final String KEY = "MemAvailable:";

  /** For heaps, scratch and whoever else is here. */
  private static final long RESERVE = 1L << 30;

  private AvailableMemory() {}

  /** Bytes, or all that there can be where the system does not say. */
  static long bytes() {
    try {
      return Files.readAllLines(INFO).stream()
          .filter(line -> line.startsWith(KEY))
          .mapToLong(line -> Long.parseLong(line.replaceAll("\\D", "")) * 1024 - RESERVE)
          .findFirst()
          .orElse(Long.MAX_VALUE);
    } catch (IOException e) {
      return Long.MAX_VALUE;
    }
  }

  /** Bytes of direct buffers that this JVM may have. */
  static long directBytes() {
    String option =
        ManagementFactory.getPlatformMXBean(HotSpotDiagnosticMXBean.class)
            .getVMOption("MaxDirectMemorySize")
            .getValue();
    long set = Long.parseLong(option);
    return set > 0 ? set : Runtime.getRuntime().maxMemory();
  }

  static String directRefusal(long needed, long available) {
    return "peers need "
        + Units.bytes(needed)
        + " of direct buffers, this JVM may have "
        + Units.bytes(available)
        + "; -XX:MaxDirectMemorySize raises it";
  }

  static String refusal(long needed, long available) {
    return "needs "
        + Units.bytes(needed)
        + " for keys and values, "
        + Units.bytes(Math.max(0, available))
        + " are available";
  }
}
