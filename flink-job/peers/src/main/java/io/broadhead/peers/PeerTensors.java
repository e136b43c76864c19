// SPDX-License-Identifier: Apache-2.0
package io.broadhead.peers;

import io.broadhead.job.bench.Heads;
import io.broadhead.job.bench.Peer;
import io.broadhead.job.bench.Rows;
import io.broadhead.job.bench.StepShape;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.util.Optional;

/**
 * The tensors of a shape as other libraries take them: contiguous, all sequences equally long.
 *
 * @param query {@code [batch, heads, tokens, head_size]} or any order of these
 * @param context {@code [batch, kv_heads, context, head_size]}
 */
record PeerTensors(StepShape shape, long query, long context) {
  static PeerTensors of(StepShape shape) {
    Heads heads = shape.heads();
    Rows rows = shape.rows().get(0);
    long batch = (long) rows.count() * heads.headSize();
    return new PeerTensors(
        shape,
        batch * heads.numHeads() * rows.tokens(),
        batch * heads.numKvHeads() * rows.context());
  }

  int batch() {
    return shape.rows().get(0).count();
  }

  int tokens() {
    return shape.rows().get(0).tokens();
  }

  int contextLength() {
    return shape.rows().get(0).context();
  }

  /** Elements of the new keys. */
  long newKeys() {
    return query / shape.heads().groupSize();
  }

  /** Why the keys do not fit into one Java buffer, or empty if they do. */
  Optional<String> refusal() {
    long bytes = context * shape.dtype().byteWidth();
    return bytes <= Integer.MAX_VALUE - 64
        ? Optional.empty()
        : Optional.of("its keys take " + bytes + " bytes, and a Java buffer has 2 GiB at most");
  }

  /** {@code elements} elements from {@code inputs}. */
  ByteBuffer filled(long elements, Peer.Inputs inputs) {
    ByteBuffer buffer = empty(elements);
    inputs.fill(buffer);
    return buffer.rewind();
  }

  /** Room for {@code elements} elements. */
  ByteBuffer empty(long elements) {
    int bytes = Math.toIntExact(elements * shape.dtype().byteWidth());
    return ByteBuffer.allocateDirect(bytes).order(ByteOrder.nativeOrder());
  }
}
