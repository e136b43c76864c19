// SPDX-License-Identifier: Apache-2.0
package io.broadhead.flink;

import io.broadhead.arrow.ArrowBatch;
import io.broadhead.arrow.ArrowBatchCodec;
import java.io.IOException;
import org.apache.flink.api.common.typeutils.TypeSerializer;
import org.apache.flink.api.common.typeutils.TypeSerializerSchemaCompatibility;
import org.apache.flink.api.common.typeutils.TypeSerializerSnapshot;
import org.apache.flink.core.memory.DataInputView;
import org.apache.flink.core.memory.DataOutputView;

/**
 * What a savepoint remembers of an {@link ArrowBatchSerializer}: the version of the batch bytes.
 * Version 1 of this snapshot is that one integer.
 */
public final class ArrowBatchSerializerSnapshot implements TypeSerializerSnapshot<ArrowBatch> {
  static final int VERSION = 1;

  private int codecVersion = ArrowBatchCodec.VERSION;

  @Override
  public int getCurrentVersion() {
    return VERSION;
  }

  @Override
  public void writeSnapshot(DataOutputView out) throws IOException {
    out.writeInt(codecVersion);
  }

  @Override
  public void readSnapshot(int readVersion, DataInputView in, ClassLoader userCodeClassLoader)
      throws IOException {
    if (readVersion != VERSION) {
      throw new IOException(
          "ArrowBatch serializer snapshot: expected version "
              + VERSION
              + ", got "
              + readVersion
              + "; it was written by a newer Broadhead");
    }
    codecVersion = in.readInt();
  }

  @Override
  public TypeSerializer<ArrowBatch> restoreSerializer() {
    return new ArrowBatchSerializer();
  }

  @Override
  public TypeSerializerSchemaCompatibility<ArrowBatch> resolveSchemaCompatibility(
      TypeSerializerSnapshot<ArrowBatch> oldSerializerSnapshot) {
    return oldSerializerSnapshot instanceof ArrowBatchSerializerSnapshot old
            && old.codecVersion <= codecVersion
        ? TypeSerializerSchemaCompatibility.compatibleAsIs()
        : TypeSerializerSchemaCompatibility.incompatible();
  }
}
