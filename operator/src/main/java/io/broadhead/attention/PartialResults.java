// SPDX-License-Identifier: Apache-2.0
package io.broadhead.attention;

import io.broadhead.arrow.ArrowBatch;
import io.broadhead.kernel.ErrorCode;
import io.broadhead.kernel.KernelEngine;
import io.broadhead.kernel.KernelException;
import io.broadhead.kernel.ResultMerger;
import java.util.List;
import org.apache.arrow.memory.BufferAllocator;

/**
 * Joins results of attention over disjoint parts of the keys: split attention over several workers,
 * or a shared prefix that is attended to once. Each part comes from a layer with {@code
 * return_lse}.
 *
 * <p>Needs no job, only a backend, which {@link #close} frees. The caller owns the parts and the
 * result. One thread at a time.
 */
public final class PartialResults implements AutoCloseable {
  private final KernelEngine engine;
  private final ResultMerger merger;

  private PartialResults(KernelEngine engine, BufferAllocator allocator) {
    this.engine = engine;
    this.merger = new ResultMerger(engine, allocator);
  }

  /**
   * Opens a backend.
   *
   * @param allocator results are allocated from it; stays the caller's
   * @throws KernelException with the reason if the backend cannot be used
   */
  public static PartialResults open(AttentionConfig config, BufferAllocator allocator) {
    return new PartialResults(config.openEngine(), allocator);
  }

  /**
   * The result over the keys of all parts, row for row; zeros, and -inf in {@code lse}, where no
   * part saw a key. Columns other than {@code output} and {@code lse} are those of the first part.
   *
   * @param parts result batches of the same sequences, layers and tokens, with {@code lse}
   * @throws InvalidBatchException naming the part (from 1), row and column that do not fit
   */
  public ArrowBatch merge(List<ArrowBatch> parts) {
    return merge(merger, parts);
  }

  static ArrowBatch merge(ResultMerger merger, List<ArrowBatch> parts) {
    try {
      return merger.merge(parts);
    } catch (KernelException e) {
      if (e.code() == ErrorCode.INVALID_ROW || e.code() == ErrorCode.SCHEMA_MISMATCH) {
        throw new InvalidBatchException(e.code(), e.row(), e.getMessage(), e);
      }
      throw e;
    }
  }

  /** Frees the backend; idempotent. Results stay valid. */
  @Override
  public void close() {
    engine.close();
  }
}
