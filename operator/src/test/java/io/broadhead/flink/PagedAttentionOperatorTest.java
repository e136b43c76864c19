// SPDX-License-Identifier: Apache-2.0
package io.broadhead.flink;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;
import static org.assertj.core.api.Assertions.withinPercentage;

import io.broadhead.arrow.ArrowBatch;
import io.broadhead.arrow.DType;
import io.broadhead.attention.InvalidBatchException;
import io.broadhead.attention.RefusedRow;
import io.broadhead.attention.job.Job;
import io.broadhead.attention.job.LayerSpec;
import io.broadhead.attention.testing.NoLeaks;
import io.broadhead.attention.testing.ReferenceAttention;
import io.broadhead.attention.testing.Scenario;
import io.broadhead.attention.testing.StepBatches;
import io.broadhead.attention.testing.StepRow;
import io.broadhead.kernel.KernelException;
import java.lang.reflect.Field;
import java.time.Duration;
import java.util.List;
import org.apache.flink.api.common.serialization.SerializerConfigImpl;
import org.apache.flink.api.common.typeinfo.TypeInformation;
import org.apache.flink.api.java.typeutils.PojoTypeInfo;
import org.apache.flink.configuration.ConfigOption;
import org.apache.flink.configuration.Configuration;
import org.apache.flink.configuration.PipelineOptions;
import org.apache.flink.core.memory.DataInputDeserializer;
import org.apache.flink.core.memory.DataOutputSerializer;
import org.apache.flink.core.memory.ManagedMemoryUseCase;
import org.apache.flink.runtime.operators.testutils.MockEnvironment;
import org.apache.flink.streaming.runtime.streamrecord.StreamRecord;
import org.apache.flink.util.InstantiationUtil;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.extension.RegisterExtension;

class PagedAttentionOperatorTest {
  @RegisterExtension private final NoLeaks noLeaks = new NoLeaks();

  private final Job job = OperatorHarness.JOB;
  private final LayerSpec layer = job.layers().get(0);
  private final Scenario scenario = new Scenario(job, DType.FLOAT32, 11);

  private ArrowBatch batch(StepRow... rows) {
    return StepBatches.of(noLeaks.allocator(), layer, DType.FLOAT32, List.of(rows));
  }

  private OperatorHarness harness(Configuration options) throws Exception {
    return new OperatorHarness(job, options);
  }

  @Test
  void emitsOneResultForEachBatchWithItsTimestamp() throws Exception {
    StepRow first = scenario.next("s", layer, 20);
    StepRow second = scenario.next("s", layer, 1);
    ReferenceAttention reference = new ReferenceAttention(job, DType.FLOAT32);
    try (var harness = harness(new Configuration());
        ArrowBatch prefill = batch(first);
        ArrowBatch decode = batch(second)) {
      harness.open();
      harness.processElement(prefill, 17);
      harness.processElement(decode, 18);
      harness.processWatermark(19);

      List<StreamRecord<? extends ArrowBatch>> records = harness.extractOutputStreamRecords();
      assertThat(records).extracting(StreamRecord::getTimestamp).containsExactly(17L, 18L);
      for (int i = 0; i < 2; i++) {
        double[][][] expected = reference.step(layer, List.of(i == 0 ? first : second)).output();
        assertThat(
                StepBatches.error(expected, StepBatches.read(records.get(i).getValue(), "output")))
            .isLessThan(1e-5);
      }
      harness.closeResults();
    }
  }

  @Test
  void closesABatchThatCameOverTheNetworkAndNoOther() throws Exception {
    DataOutputSerializer bytes = new DataOutputSerializer(64);
    try (var harness = harness(new Configuration());
        ArrowBatch own = batch(scenario.next("s", layer, 2))) {
      harness.open();
      harness.processElement(own, 0);
      assertThat(own.isClosed()).isFalse();

      new ArrowBatchSerializer().serialize(own, bytes);
      ArrowBatch received =
          new ArrowBatchSerializer()
              .deserialize(new DataInputDeserializer(bytes.getCopyOfBuffer()));
      harness.processElement(received, 0);
      harness.awaitResults();
      harness.closeResults();
      assertThat(received.isClosed()).isTrue();
    }
  }

  @Test
  void aBadRowFailsTheJobByDefault() throws Exception {
    try (var harness = harness(new Configuration());
        ArrowBatch bad = batch(scenario.next("s", layer, 1).withSlots(256))) {
      harness.open();
      assertThatThrownBy(() -> harness.processElement(bad, 0))
          .isInstanceOf(InvalidBatchException.class)
          .hasMessageContainingAll("layer 'a'", "sequence s, row 0", "slot_mapping", "256");
      assertThat(harness.getOutput()).isEmpty();
    }
  }

  @Test
  void badRowsGoToTheSideOutputIfAsked() throws Exception {
    Configuration options = new Configuration();
    options.setString("broadhead.on-bad-row", "side-output");
    try (var harness = harness(options);
        ArrowBatch mixed =
            batch(scenario.next("bad", layer, 1).withSlots(256), scenario.next("good", layer, 2));
        ArrowBatch allBad = batch(scenario.next("worse", layer, 1).withSeqLen(-1))) {
      harness.open();
      harness.processElement(mixed, 5);
      harness.processElement(allBad, 6);
      harness.awaitResults();

      List<ArrowBatch> results = harness.extractOutputValues();
      assertThat(results).hasSize(1);
      assertThat(results.get(0).column("sequence_id").getString(0)).isEqualTo("good");
      assertThat(harness.getSideOutput(PagedAttentionOperator.REFUSED_ROWS))
          .extracting(r -> r.getValue().sequenceId() + " at " + r.getTimestamp())
          .containsExactly("bad at 5", "worse at 6");
      harness.closeResults();
    }
  }

  private static MockEnvironment environment(long managedMemory) {
    return OperatorHarness.environment().setManagedMemorySize(managedMemory).build();
  }

  @Test
  void cachesAreReservedAsManagedMemoryWhileTheOperatorIsOpen() throws Exception {
    long caches = job.cacheBytes().orElseThrow();
    MockEnvironment environment = environment(4 * caches);
    try (var harness = new OperatorHarness(job, new Configuration(), 1, environment)) {
      harness
          .getStreamConfig()
          .setManagedMemoryFractionOperatorOfUseCase(ManagedMemoryUseCase.OPERATOR, 1.0);
      harness.open();
      assertThat(environment.getMemoryManager().availableMemory()).isEqualTo(3 * caches);
      try (ArrowBatch batch = batch(scenario.next("s", layer, 3))) {
        harness.processElement(batch, 0);
      }
      PagedAttentionOperator operator = (PagedAttentionOperator) harness.getOneInputOperator();
      assertThat(operator.attention().cacheBytes())
          .as("what the backend has reserved")
          .isCloseTo(caches, withinPercentage(10));
      harness.closeResults();
    }
    assertThat(environment.getMemoryManager().availableMemory()).isEqualTo(4 * caches);
  }

  @Test
  void tooLittleManagedMemoryNamesTheBudgetAndTheKeys() throws Exception {
    long caches = job.cacheBytes().orElseThrow();
    MockEnvironment environment = environment(caches / 2);
    var harness = new OperatorHarness(job, new Configuration(), 1, environment);
    harness
        .getStreamConfig()
        .setManagedMemoryFractionOperatorOfUseCase(ManagedMemoryUseCase.OPERATOR, 1.0);
    assertThatThrownBy(harness::open)
        .isInstanceOf(KernelException.class)
        .hasMessageContainingAll(
            caches + " bytes",
            caches / 2 + " bytes",
            "taskmanager.memory.managed.size",
            "kv_cache.num_blocks");
    harness.close();
  }

  @Test
  void closesAfterAnOpenThatFailedHalfWay() throws Exception {
    Configuration options = new Configuration();
    options.set(PagedAttentionOptions.THREADS, 1 << 20);
    var harness = harness(options);
    assertThatThrownBy(harness::open)
        .isInstanceOf(KernelException.class)
        .hasMessageContaining("threads");
    harness.close();
  }

  @Test
  void optionsAreCheckedAtSubmission() {
    Configuration threads = new Configuration();
    threads.set(PagedAttentionOptions.THREADS, -1);
    assertThatThrownBy(() -> new PagedAttentionOperatorFactory(job, threads, 1))
        .hasMessage("broadhead.threads: expected 0 or more, got -1");

    Configuration backend = new Configuration();
    backend.set(PagedAttentionOptions.BACKEND, "cdua");
    assertThatThrownBy(() -> OperatorSettings.of(backend, 1))
        .hasMessage("broadhead.backend: expected one of [auto, cuda, hip, cpu], got cdua");
    Configuration anyDevice = new Configuration().set(PagedAttentionOptions.DEVICE, -1);
    assertThat(PagedAttentionOptions.attentionConfig(anyDevice).device()).isEqualTo(-1);
    Configuration onBadRow = new Configuration();
    onBadRow.setString("broadhead.on-bad-row", "ignore");
    assertThatThrownBy(() -> new PagedAttentionOperatorFactory(job, onBadRow, 1))
        .hasMessageContaining("broadhead.on-bad-row")
        .hasStackTraceContaining("side-output");
  }

  /** Timers count milliseconds: no batch would wait for another. */
  @Test
  void aDelayThatNoTimerCanCountIsRefused() {
    Configuration options = new Configuration().set(PagedAttentionOptions.BATCH_MAX_TOKENS, 64);
    for (Duration delay : List.of(Duration.ofNanos(999_999), Duration.ofMillis(-1))) {
      options.set(PagedAttentionOptions.BATCH_MAX_DELAY, delay);
      assertThatThrownBy(() -> OperatorSettings.of(options, 1))
          .isInstanceOf(IllegalArgumentException.class)
          .hasMessage("broadhead.batch.max-delay: expected 0 or at least PT0.001S, got " + delay);
    }
    options.set(PagedAttentionOptions.BATCH_MAX_DELAY, Duration.ofMillis(1));
    assertThat(OperatorSettings.of(options, 1).batchMaxDelay()).hasMillis(1);
    options.set(PagedAttentionOptions.BATCH_MAX_TOKENS, 0);
    assertThatThrownBy(() -> OperatorSettings.of(options, 1))
        .hasMessage(
            "broadhead.batch.max-delay: expected broadhead.batch.max-tokens to be set too, because"
                + " without it no batch waits");
  }

  @Test
  void aMisspeltOptionIsRefusedAtSubmission() throws Exception {
    Configuration known = new Configuration().set(PipelineOptions.NAME, "not ours");
    for (Field field : PagedAttentionOptions.class.getFields()) {
      known.setString(((ConfigOption<?>) field.get(null)).key(), "any");
    }
    PagedAttentionOptions.requireKnownKeys(known);
    Configuration misspelt = new Configuration();
    misspelt.setString("broadhead.batch.maxtokens", "8");
    assertThatThrownBy(() -> new PagedAttentionOperatorFactory(job, misspelt, 1))
        .hasMessageStartingWith("broadhead.batch.maxtokens: expected one of [broadhead.backend, ")
        .hasMessageContaining("broadhead.batch.max-tokens");
  }

  @Test
  void theFactoryTravelsWithTheJob() throws Exception {
    PagedAttentionOperatorFactory factory =
        InstantiationUtil.clone(new PagedAttentionOperatorFactory(job, new Configuration(), 1));
    assertThat(factory.getStreamOperatorClass(getClass().getClassLoader()))
        .isEqualTo(PagedAttentionOperator.class);
  }

  @Test
  void refusedRowsNeedNoGenericSerializer() {
    SerializerConfigImpl config = new SerializerConfigImpl();
    config.setGenericTypes(false);
    TypeInformation<RefusedRow> type = PagedAttentionOperator.REFUSED_ROWS.getTypeInfo();
    assertThat(type).isInstanceOf(PojoTypeInfo.class);
    assertThat(type.createSerializer(config)).isNotNull();
  }
}
