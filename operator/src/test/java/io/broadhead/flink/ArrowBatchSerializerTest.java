// SPDX-License-Identifier: Apache-2.0
package io.broadhead.flink;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import io.broadhead.arrow.ArrowBatch;
import io.broadhead.arrow.ArrowBatchCodec;
import io.broadhead.arrow.DType;
import io.broadhead.attention.job.Job;
import io.broadhead.attention.job.JobFile;
import io.broadhead.attention.job.LayerSpec;
import io.broadhead.attention.testing.GoldenFiles;
import io.broadhead.attention.testing.NoLeaks;
import io.broadhead.attention.testing.Scenario;
import io.broadhead.attention.testing.StepBatches;
import io.broadhead.attention.testing.StepRow;
import java.io.IOException;
import java.util.List;
import org.apache.flink.api.common.serialization.SerializerConfigImpl;
import org.apache.flink.api.common.typeinfo.TypeInformation;
import org.apache.flink.api.common.typeutils.TypeSerializer;
import org.apache.flink.api.common.typeutils.TypeSerializerSnapshot;
import org.apache.flink.core.memory.DataInputDeserializer;
import org.apache.flink.core.memory.DataOutputSerializer;
import org.apache.flink.util.InstantiationUtil;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.extension.RegisterExtension;

/**
 * The bytes of batches on edges and of the serializer in savepoints. The golden files hold what
 * version 1 wrote.
 */
class ArrowBatchSerializerTest {
  private static final String SNAPSHOT_V1 = "arrow-batch-serializer-v1.snapshot";
  private static final String BATCH_V1 = "arrow-batch-v1.bin";

  @RegisterExtension private final NoLeaks noLeaks = new NoLeaks();

  private final Job job =
      JobFile.parse(
          """
          kv_cache: {num_blocks: 8}
          layers: [{name: a, num_heads: 2, num_kv_heads: 1, head_size: 32}]
          """,
          "job.yaml");
  private final LayerSpec layer = job.layers().get(0);
  private final List<StepRow> rows = rows();

  private List<StepRow> rows() {
    Scenario scenario = new Scenario(job, DType.BFLOAT16, 5);
    return List.of(
        scenario.next("x", layer, 3), scenario.next("y", layer, 0), scenario.next("z", layer, 1));
  }

  private ArrowBatch batch() {
    return StepBatches.of(noLeaks.allocator(), layer, DType.BFLOAT16, rows);
  }

  private static byte[] serialize(ArrowBatch batch) throws IOException {
    DataOutputSerializer out = new DataOutputSerializer(64);
    new ArrowBatchSerializer().serialize(batch, out);
    return out.getCopyOfBuffer();
  }

  private void assertIsBatch(ArrowBatch got) {
    try (ArrowBatch expected = batch()) {
      assertThat(got.schema()).isEqualTo(expected.schema());
      assertThat(got.numRows()).isEqualTo(3);
      for (String column : List.of("query", "key", "value")) {
        assertThat(StepBatches.read(got, column)).isDeepEqualTo(StepBatches.read(expected, column));
      }
      assertThat(got.column("sequence_id").getString(2)).isEqualTo("z");
      assertThat(got.column("slot_mapping").listSize(0)).isEqualTo(3);
    }
  }

  @Test
  void batchesSurviveTheNetwork() throws Exception {
    TypeSerializer<ArrowBatch> serializer = new ArrowBatchSerializer();
    byte[] bytes;
    try (ArrowBatch batch = batch()) {
      bytes = serialize(batch);
    }
    DataOutputSerializer copied = new DataOutputSerializer(64);
    serializer.copy(new DataInputDeserializer(bytes), copied);
    assertThat(copied.getCopyOfBuffer()).isEqualTo(bytes);

    try (ArrowBatch received = serializer.deserialize(new DataInputDeserializer(bytes))) {
      assertThat(received.isReceived()).isTrue();
      assertThat(received.bytesCopied()).isPositive();
      assertIsBatch(received);
    }
  }

  @Test
  void copiesBetweenChainedOperatorsAreTheBatchItself() {
    ArrowBatchSerializer serializer = new ArrowBatchSerializer();
    assertThat(serializer.isImmutableType()).isTrue();
    try (ArrowBatch batch = batch()) {
      assertThat(serializer.copy(batch)).isSameAs(batch);
      assertThat(serializer.copy(batch, batch)).isSameAs(batch);
    }
  }

  @Test
  void brokenBytesAreRefusedWithoutALeak() throws Exception {
    byte[] bytes;
    try (ArrowBatch batch = batch()) {
      bytes = serialize(batch);
    }
    ArrowBatchSerializer serializer = new ArrowBatchSerializer();
    bytes[0] = 99;
    assertThatThrownBy(() -> serializer.deserialize(new DataInputDeserializer(bytes)))
        .isInstanceOf(IOException.class)
        .hasMessageContaining("expected version 1, got 99");
    bytes[0] = 1;
    byte[] cut = java.util.Arrays.copyOf(bytes, bytes.length - 100);
    assertThatThrownBy(() -> serializer.deserialize(new DataInputDeserializer(cut)))
        .isInstanceOf(IOException.class);
  }

  @Test
  void typeAndSerializerTravelWithTheJob() throws Exception {
    TypeInformation<ArrowBatch> type = ArrowBatchTypeInfo.INSTANCE;
    assertThat(InstantiationUtil.clone(type)).isSameAs(type);
    TypeSerializer<ArrowBatch> serializer = type.createSerializer(new SerializerConfigImpl());
    assertThat(InstantiationUtil.clone(serializer)).isEqualTo(serializer);
    assertThat(serializer.duplicate()).isEqualTo(serializer).isNotSameAs(serializer);
    assertThat(type.canEqual(type)).isTrue();
    assertThat(type.getTypeClass()).isEqualTo(ArrowBatch.class);
    assertThat(type.isKeyType()).isFalse();
  }

  @Test
  void versionOneIsStillRead() throws Exception {
    TypeSerializerSnapshot<ArrowBatch> old =
        TypeSerializerSnapshot.readVersionedSnapshot(
            new DataInputDeserializer(snapshotV1()), getClass().getClassLoader());
    TypeSerializerSnapshot<ArrowBatch> current = new ArrowBatchSerializer().snapshotConfiguration();

    assertThat(current.resolveSchemaCompatibility(old).isCompatibleAsIs()).isTrue();
    byte[] bytes = batchV1();
    try (ArrowBatch batch = old.restoreSerializer().deserialize(new DataInputDeserializer(bytes))) {
      assertIsBatch(batch);
    }
  }

  @Test
  void theCurrentVersionHasGoldenFiles() throws Exception {
    assertThat(ArrowBatchSerializerSnapshot.VERSION).isEqualTo(1);
    assertThat(ArrowBatchCodec.VERSION).isEqualTo(1);
    try (ArrowBatch batch = batch()) {
      assertThat(serialize(batch)).isEqualTo(batchV1());
    }
    assertThat(snapshotBytes()).isEqualTo(snapshotV1());
  }

  @Test
  void snapshotsOfALaterVersionAreRefused() {
    assertThatThrownBy(
            () ->
                new ArrowBatchSerializerSnapshot()
                    .readSnapshot(2, new DataInputDeserializer(new byte[4]), null))
        .isInstanceOf(IOException.class)
        .hasMessageContaining("expected version 1, got 2");
  }

  @Test
  void batchBytesOfALaterVersionAreIncompatible() throws Exception {
    ArrowBatchSerializerSnapshot later = new ArrowBatchSerializerSnapshot();
    later.readSnapshot(1, new DataInputDeserializer(new byte[] {0, 0, 0, 2}), null);
    assertThat(
            new ArrowBatchSerializerSnapshot().resolveSchemaCompatibility(later).isIncompatible())
        .isTrue();
  }

  private static byte[] snapshotBytes() throws IOException {
    DataOutputSerializer out = new DataOutputSerializer(64);
    TypeSerializerSnapshot.writeVersionedSnapshot(
        out, new ArrowBatchSerializer().snapshotConfiguration());
    return out.getCopyOfBuffer();
  }

  private byte[] snapshotV1() throws IOException {
    return GoldenFiles.read(SNAPSHOT_V1, snapshotBytes());
  }

  private byte[] batchV1() throws IOException {
    try (ArrowBatch batch = batch()) {
      return GoldenFiles.read(BATCH_V1, serialize(batch));
    }
  }
}
