// SPDX-License-Identifier: Apache-2.0
package io.broadhead.job;

import io.broadhead.attention.job.Job;
import io.broadhead.job.text.Units;
import io.broadhead.kernel.EngineInfo;
import java.util.OptionalLong;

/** What was chosen and why, in one line. */
final class EngineLine {
  private EngineLine() {}

  /** What {@code command} starts with. */
  static String start(String command, EngineInfo engine, Job job, int instances) {
    return "broadhead " + command + ": " + engine.describe() + "; " + memory(job, instances);
  }

  /** The memory of {@code instances} parallel instances of the job. */
  private static String memory(Job job, int instances) {
    OptionalLong cache = job.cacheBytes();
    String blocks =
        (job.kvCache().isFraction()
                ? job.kvCache().memoryFraction() + " of the GPU's free memory in blocks of "
                : job.kvCache().numBlocks() + " blocks of ")
            + job.kvCache().blockSize()
            + " tokens for each of "
            + job.layers().size()
            + (job.layers().size() == 1 ? " layer" : " layers")
            + (instances == 1 ? "" : " in each of " + instances + " instances");
    return "KV cache "
        + (cache.isPresent()
            ? Units.bytes(Math.multiplyExact(cache.getAsLong(), (long) instances)) + ", " + blocks
            : blocks + (job.kvCache().isFraction() ? "" : ", of the first batch's dtype"))
        + "; Java heap up to "
        + Units.bytes(Runtime.getRuntime().maxMemory());
  }
}
