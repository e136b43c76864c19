// SPDX-License-Identifier: Apache-2.0
package io.broadhead.flink;

import io.broadhead.arrow.ArrowBatch;
import org.apache.flink.api.common.typeutils.TypeSerializer;
import org.apache.flink.api.common.typeutils.TypeSerializerSnapshot;
import org.apache.flink.core.memory.DataInputView;
import org.apache.flink.core.memory.DataOutputView;

/**
 * For test harnesses, which keep what an operator emits after the operator has closed it: a copy is
 * one more reference, which the test closes.
 */
final class RetainingSerializer extends TypeSerializer<ArrowBatch> {
  private static final long serialVersionUID = 1;

  @Override
  public boolean isImmutableType() {
    return false;
  }

  @Override
  public TypeSerializer<ArrowBatch> duplicate() {
    return this;
  }

  @Override
  public ArrowBatch createInstance() {
    return null;
  }

  @Override
  public ArrowBatch copy(ArrowBatch from) {
    return from.retain();
  }

  @Override
  public ArrowBatch copy(ArrowBatch from, ArrowBatch reuse) {
    return copy(from);
  }

  @Override
  public int getLength() {
    return -1;
  }

  @Override
  public void serialize(ArrowBatch batch, DataOutputView target) {
    throw new UnsupportedOperationException();
  }

  @Override
  public ArrowBatch deserialize(DataInputView source) {
    throw new UnsupportedOperationException();
  }

  @Override
  public ArrowBatch deserialize(ArrowBatch reuse, DataInputView source) {
    throw new UnsupportedOperationException();
  }

  @Override
  public void copy(DataInputView source, DataOutputView target) {
    throw new UnsupportedOperationException();
  }

  @Override
  public boolean equals(Object other) {
    return other instanceof RetainingSerializer;
  }

  @Override
  public int hashCode() {
    return 1;
  }

  @Override
  public TypeSerializerSnapshot<ArrowBatch> snapshotConfiguration() {
    throw new UnsupportedOperationException();
  }
}
