// SPDX-License-Identifier: Apache-2.0
package io.broadhead.flink;

import io.broadhead.arrow.ArrowBatch;
import io.broadhead.attention.InvalidBatchException;
import io.broadhead.attention.RefusedRow;
import io.broadhead.attention.StepHandler;
import org.apache.flink.streaming.api.operators.Output;
import org.apache.flink.streaming.runtime.streamrecord.StreamRecord;

/**
 * Emits results and refused rows with the timestamps of the batches they are of. Called by the
 * task's thread.
 */
final class ResultEmitter {
  private final Output<StreamRecord<ArrowBatch>> output;
  private final OperatorSettings settings;
  private final PagedAttentionMetrics metrics;

  ResultEmitter(
      Output<StreamRecord<ArrowBatch>> output,
      OperatorSettings settings,
      PagedAttentionMetrics metrics) {
    this.output = output;
    this.settings = settings;
    this.metrics = metrics;
  }

  /** What is told of the batch of {@code element}; keeps nothing of either. */
  StepHandler handlerOf(StreamRecord<ArrowBatch> element) {
    metrics.copied(element.getValue().bytesCopied());
    return new Emission(
        element.getValue().numRows(),
        element.hasTimestamp(),
        element.hasTimestamp() ? element.getTimestamp() : 0);
  }

  private final class Emission implements StepHandler {
    private final int rows;
    private final boolean hasTimestamp;
    private final long timestamp;

    Emission(int rows, boolean hasTimestamp, long timestamp) {
      this.rows = rows;
      this.hasTimestamp = hasTimestamp;
      this.timestamp = timestamp;
    }

    private <T> StreamRecord<T> recordOf(T value) {
      return hasTimestamp ? new StreamRecord<>(value, timestamp) : new StreamRecord<>(value);
    }

    @Override
    public void refused(RefusedRow row) {
      if (!settings.isSideOutput(row.code())) {
        throw new InvalidBatchException(row, null);
      }
      metrics.refused(row.code());
      output.collect(PagedAttentionOperator.REFUSED_ROWS, recordOf(row));
    }

    /** A batch whose rows were all refused has no result. */
    @Override
    public void done(ArrowBatch computed) {
      try (ArrowBatch result = computed) {
        metrics.done(result);
        if (result.numRows() > 0 || rows == 0) {
          output.collect(recordOf(result));
        }
      }
    }
  }
}
