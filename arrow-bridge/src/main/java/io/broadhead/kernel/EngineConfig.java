// SPDX-License-Identifier: Apache-2.0
package io.broadhead.kernel;

import java.util.List;
import java.util.Objects;

/**
 * Which backend to open.
 *
 * @param backend one of {@link #BACKENDS}
 * @param threads CPU threads of one step, the calling one included; 0: one per core
 * @param device device index for GPU backends, -1: the one with the most free memory; the CPU
 *     ignores it
 */
public record EngineConfig(String backend, int threads, int device) {
  /** What a backend may be called, known without the native library: it may be no use here. */
  public static final List<String> BACKENDS = List.of("auto", "cuda", "hip", "cpu");

  public EngineConfig {
    Objects.requireNonNull(backend, "backend");
  }
}
