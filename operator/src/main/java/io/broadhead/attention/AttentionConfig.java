// SPDX-License-Identifier: Apache-2.0
package io.broadhead.attention;

import io.broadhead.kernel.EngineConfig;
import io.broadhead.kernel.KernelEngine;
import java.io.Serializable;
import java.util.Objects;

/**
 * Where and how attention runs. Immutable.
 *
 * @param backend {@code auto}, or a backend's name
 * @param threads CPU threads of one step, the calling one included; 0: one per core
 * @param device device index for GPU backends, -1: the one with the most free memory; the CPU
 *     ignores it
 * @param outOfBlocks what happens when the pool of managed block tables is full
 */
public record AttentionConfig(String backend, int threads, int device, OutOfBlocks outOfBlocks)
    implements Serializable {
  public AttentionConfig {
    Objects.requireNonNull(backend, "backend");
    Objects.requireNonNull(outOfBlocks, "outOfBlocks");
  }

  /** As above; sequences are swapped when the pool is full. */
  public AttentionConfig(String backend, int threads, int device) {
    this(backend, threads, device, OutOfBlocks.SWAP);
  }

  /** The same on another device. */
  public AttentionConfig onDevice(int index) {
    return new AttentionConfig(backend, threads, index, outOfBlocks);
  }

  /** The best backend that works here, with one thread per core. */
  public static AttentionConfig auto() {
    return new AttentionConfig("auto", 0, 0);
  }

  /**
   * Opens the backend; the caller closes it.
   *
   * @throws io.broadhead.kernel.KernelException with the reason if it cannot be used
   */
  public KernelEngine openEngine() {
    return KernelEngine.open(new EngineConfig(backend, threads, device));
  }
}
