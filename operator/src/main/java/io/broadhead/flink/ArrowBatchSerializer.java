// SPDX-License-Identifier: Apache-2.0
package io.broadhead.flink;

import io.broadhead.arrow.ArrowBatch;
import io.broadhead.arrow.ArrowBatchCodec;
import java.io.IOException;
import org.apache.flink.api.common.typeutils.TypeSerializer;
import org.apache.flink.api.common.typeutils.TypeSerializerSnapshot;
import org.apache.flink.core.memory.DataInputView;
import org.apache.flink.core.memory.DataOutputView;

/**
 * Carries batches over network edges, each with its schema. Batches are immutable, so copies
 * between chained operators are the batch itself. A deserialised batch {@linkplain
 * ArrowBatch#isReceived() is received} and lives in {@link FlinkAllocator#root()}: the operator
 * that takes it closes it. An instance is used by one thread.
 */
public final class ArrowBatchSerializer extends TypeSerializer<ArrowBatch> {
  private static final long serialVersionUID = 1;

  private transient ArrowBatchCodec codec;

  private ArrowBatchCodec codec() {
    if (codec == null) {
      codec = new ArrowBatchCodec();
    }
    return codec;
  }

  @Override
  public boolean isImmutableType() {
    return true;
  }

  @Override
  public TypeSerializer<ArrowBatch> duplicate() {
    return new ArrowBatchSerializer();
  }

  /** No instance to fill in: batches are immutable. */
  @Override
  public ArrowBatch createInstance() {
    return null;
  }

  @Override
  public ArrowBatch copy(ArrowBatch from) {
    return from;
  }

  @Override
  public ArrowBatch copy(ArrowBatch from, ArrowBatch reuse) {
    return from;
  }

  @Override
  public int getLength() {
    return -1;
  }

  @Override
  public void serialize(ArrowBatch batch, DataOutputView target) throws IOException {
    codec().write(batch, target);
  }

  @Override
  public ArrowBatch deserialize(DataInputView source) throws IOException {
    return codec().read(source, FlinkAllocator.root());
  }

  @Override
  public ArrowBatch deserialize(ArrowBatch reuse, DataInputView source) throws IOException {
    return deserialize(source);
  }

  @Override
  public void copy(DataInputView source, DataOutputView target) throws IOException {
    codec().copy(source, target);
  }

  @Override
  public boolean equals(Object other) {
    return other instanceof ArrowBatchSerializer;
  }

  @Override
  public int hashCode() {
    return ArrowBatchSerializer.class.hashCode();
  }

  @Override
  public TypeSerializerSnapshot<ArrowBatch> snapshotConfiguration() {
    return new ArrowBatchSerializerSnapshot();
  }
}
