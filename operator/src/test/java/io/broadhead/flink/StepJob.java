// SPDX-License-Identifier: Apache-2.0
package io.broadhead.flink;

import static org.assertj.core.api.Assertions.assertThat;

import io.broadhead.arrow.ArrowBatch;
import io.broadhead.arrow.DType;
import io.broadhead.attention.job.Job;
import io.broadhead.attention.job.LayerSpec;
import io.broadhead.attention.testing.ManagedRow;
import io.broadhead.attention.testing.ReferenceAttention;
import io.broadhead.attention.testing.StepBatches;
import io.broadhead.attention.testing.StepRow;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.atomic.AtomicInteger;
import org.apache.flink.api.common.functions.FlatMapFunction;
import org.apache.flink.api.common.functions.MapFunction;
import org.apache.flink.api.common.state.CheckpointListener;
import org.apache.flink.api.common.typeinfo.Types;
import org.apache.flink.streaming.api.datastream.DataStream;
import org.apache.flink.streaming.api.environment.StreamExecutionEnvironment;
import org.apache.flink.streaming.api.functions.sink.v2.DiscardingSink;
import org.apache.flink.util.Collector;

/**
 * The ends of a job whose steps are known beforehand. Its tasks run in this JVM: what they exchange
 * with the test stands here, for one job at a time.
 */
final class StepJob {
  static final DType DTYPE = DType.FLOAT16;

  /** One batch. */
  record Step(LayerSpec layer, List<StepRow> rows, boolean managed) {
    ArrowBatch batch() {
      List<ManagedRow> managedRows = rows.stream().map(ManagedRow::of).toList();
      return managed
          ? StepBatches.managed(FlinkAllocator.root(), layer, DTYPE, true, managedRows)
          : StepBatches.of(FlinkAllocator.root(), layer, DTYPE, rows);
    }
  }

  static final AtomicInteger RESULT_BATCHES = new AtomicInteger();
  static volatile ArrowBatch lastInput;

  private static final Map<String, double[][][]> RESULTS = new ConcurrentHashMap<>();
  private static final Map<String, double[][][]> EXPECTED = new ConcurrentHashMap<>();
  private static List<Step> steps;
  private static volatile Failures failures;
  private static volatile long pauseMillis;
  private static volatile long recordMillis;

  /** Whether the recorder fails now. */
  interface Failures {
    Failures NONE = (batches, checkpoints) -> false;

    /**
     * @param batches results so far
     * @param checkpoints completed since the recorder was started
     */
    boolean isDue(int batches, int checkpoints);
  }

  private StepJob() {}

  /** Begins anew. */
  static void reset(List<Step> newSteps) {
    steps = new ArrayList<>(newSteps);
    RESULTS.clear();
    EXPECTED.clear();
    RESULT_BATCHES.set(0);
    lastInput = null;
    failures = Failures.NONE;
    pauseMillis = 0;
    recordMillis = 0;
  }

  /** The steps' results, computed in order, are what is expected. */
  static void expect(Job job) {
    ReferenceAttention reference = new ReferenceAttention(job, DTYPE);
    for (Step step : steps) {
      for (StepRow row : step.rows) {
        EXPECTED.put(
            key(row.layer(), row.sequenceId(), row.seqLen()),
            reference.step(step.layer, List.of(row)).output());
      }
    }
  }

  static List<Step> steps() {
    return steps;
  }

  static void expectNot(StepRow row) {
    EXPECTED.remove(key(row.layer(), row.sequenceId(), row.seqLen()));
  }

  static void failWhen(Failures due) {
    failures = due;
  }

  /** The producer takes this long for a batch. */
  static void slow(long millis) {
    pauseMillis = millis;
  }

  /** The recorder takes this long for a result, so that batches queue up before the operator. */
  static void slowRecorder(long millis) {
    recordMillis = millis;
  }

  private static String key(String layer, Object sequence, int seqLen) {
    return layer + " for " + sequence + " at " + seqLen;
  }

  /** Makes batch after batch and closes each when collect has returned. */
  private static final class Producer implements FlatMapFunction<Long, ArrowBatch> {
    @Override
    public void flatMap(Long step, Collector<ArrowBatch> out) throws InterruptedException {
      Thread.sleep(pauseMillis);
      try (ArrowBatch batch = steps.get(step.intValue()).batch()) {
        lastInput = batch;
        out.collect(batch);
      }
    }
  }

  private static final class Recorder
      implements MapFunction<ArrowBatch, Integer>, CheckpointListener {
    private transient int checkpoints;

    @Override
    public Integer map(ArrowBatch result) throws InterruptedException {
      try {
        Thread.sleep(recordMillis);
        if (failures.isDue(RESULT_BATCHES.incrementAndGet(), checkpoints)) {
          throw new IllegalStateException("the recorder fails on purpose");
        }
        double[][][] output = StepBatches.read(result, "output");
        for (int row = 0; row < output.length; row++) {
          RESULTS.put(
              result.column("layer").getString(row)
                  + " "
                  + result.column(StepBatches.PASSED).getString(row),
              new double[][][] {output[row]});
        }
        return output.length;
      } finally {
        if (result.isReceived()) {
          result.close();
        }
      }
    }

    @Override
    public void notifyCheckpointComplete(long checkpoint) {
      checkpoints++;
    }
  }

  static DataStream<ArrowBatch> produce(StreamExecutionEnvironment environment) {
    return environment
        .fromSequence(0, steps.size() - 1)
        .uid("producer")
        .flatMap(new Producer(), ArrowBatchTypeInfo.INSTANCE);
  }

  static void record(DataStream<ArrowBatch> results) {
    results.map(new Recorder(), Types.INT).sinkTo(new DiscardingSink<>());
  }

  /** Rows that have a result by now. */
  static int recorded() {
    return RESULTS.size();
  }

  static void assertResults() {
    assertThat(RESULTS.keySet()).isEqualTo(EXPECTED.keySet());
    EXPECTED.forEach(
        (key, output) ->
            assertThat(StepBatches.error(output, RESULTS.get(key)))
                .as(key)
                .isLessThan(StepBatches.tolerance(DTYPE)));
  }
}
