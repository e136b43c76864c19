// SPDX-License-Identifier: Apache-2.0
package io.broadhead.job.bench;

import java.nio.ByteBuffer;
import java.util.Optional;

/**
 * Another library that attends to the same shapes, over memory laid out as it likes best. Found by
 * {@link java.util.ServiceLoader} in a folder of jars, since none of these libraries is needed by
 * anybody who does not compare. Used by one thread.
 */
public interface Peer {
  /** What tables call it. */
  String name();

  /** Library, version and what of it is called. */
  String description();

  /** Why it cannot do steps of {@code shape}, or empty if it can. */
  Optional<String> refusal(StepShape shape);

  /**
   * Prepares {@link StepShape#copies()} steps of {@code shape}, all of whose sequences are alike.
   *
   * @param inputs fills queries, keys and values
   */
  Steps open(StepShape shape, int threads, Inputs inputs);

  /** Steps that take turns. */
  interface Steps extends AutoCloseable {
    /** Does the next one. */
    void run();

    @Override
    void close();
  }

  /** Where the numbers come from. */
  interface Inputs {
    /** Fills what remains of {@code target} with elements of {@link StepShape#dtype()}. */
    void fill(ByteBuffer target);
  }
}
