// SPDX-License-Identifier: Apache-2.0
package io.broadhead.attention;

import java.io.Serializable;
import java.util.Objects;

/**
 * Where attention runs. Immutable.
 *
 * @param backend {@code auto}, or a backend's name
 * @param threads CPU threads of one step, the calling one included; 0: one per core
 * @param device device index for GPU backends; the CPU ignores it
 */
public record AttentionConfig(String backend, int threads, int device) implements Serializable {
  public AttentionConfig {
    Objects.requireNonNull(backend, "backend");
  }

  /** The best backend that works here, with one thread per core. */
  public static AttentionConfig auto() {
    return new AttentionConfig("auto", 0, 0);
  }
}
