// SPDX-License-Identifier: Apache-2.0
package io.broadhead.flink;

import io.broadhead.arrow.ArrowBatch;
import io.broadhead.attention.AttentionConfig;
import io.broadhead.attention.Job;
import io.broadhead.attention.PagedAttention;
import io.broadhead.attention.RefusedRow;
import org.apache.arrow.memory.BufferAllocator;
import org.apache.flink.annotation.VisibleForTesting;
import org.apache.flink.api.common.typeinfo.TypeInformation;
import org.apache.flink.streaming.api.operators.AbstractStreamOperator;
import org.apache.flink.streaming.api.operators.OneInputStreamOperator;
import org.apache.flink.streaming.api.operators.StreamOperatorParameters;
import org.apache.flink.streaming.runtime.streamrecord.StreamRecord;
import org.apache.flink.util.IOUtils;
import org.apache.flink.util.OutputTag;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;

/**
 * Runs {@link PagedAttention} on a stream of step batches: one result batch for each, in order.
 * Rows that are refused leave by {@link #REFUSED_ROWS} if {@code broadhead.on-bad-row} says so.
 *
 * <p><b>Threads.</b> The task's thread calls; a step is done when {@link #processElement} returns,
 * so there is nothing to drain before watermarks, barriers and the end of input.
 *
 * <p><b>Ownership.</b> A batch that came over the network is closed here; any other belongs to the
 * operator upstream. A result is closed after {@code collect()} has returned.
 *
 * <p><b>Life.</b> The backend is opened in {@link #open} and closed with all caches in {@link
 * #close}, which survives an {@code open} that failed half-way. Caches are not part of checkpoints:
 * after a failure a job starts from empty caches, so its input is to be replayed from a point where
 * the sequences begin. If {@link PagedAttentionStream} declared the caches as managed memory, it is
 * reserved while the operator is open.
 */
public final class PagedAttentionOperator extends AbstractStreamOperator<ArrowBatch>
    implements OneInputStreamOperator<ArrowBatch, ArrowBatch> {
  private static final long serialVersionUID = 1;

  /** Rows that were left out of their batch, with code and reason. */
  public static final OutputTag<RefusedRow> REFUSED_ROWS =
      new OutputTag<>("refused-rows", TypeInformation.of(RefusedRow.class));

  private static final Logger LOGGER = LoggerFactory.getLogger(PagedAttentionOperator.class);

  private final Job job;
  private final AttentionConfig config;
  private final OnBadRow onBadRow;

  private transient ManagedMemory managedMemory;
  private transient BufferAllocator allocator;
  private transient PagedAttention attention;
  private transient PagedAttentionMetrics counters;

  PagedAttentionOperator(
      StreamOperatorParameters<ArrowBatch> parameters,
      Job job,
      AttentionConfig config,
      OnBadRow onBadRow) {
    super(parameters);
    this.job = job;
    this.config = config;
    this.onBadRow = onBadRow;
  }

  @Override
  public void open() throws Exception {
    super.open();
    managedMemory = ManagedMemory.reserve(this, job.cacheBytes().orElse(0));
    allocator = FlinkAllocator.child(getOperatorName());
    attention = PagedAttention.open(job, config, allocator);
    counters = new PagedAttentionMetrics(getMetricGroup(), attention);
    LOGGER.info(
        "{} {}: {}, {}",
        getOperatorName(),
        getRuntimeContext().getTaskInfo().getTaskNameWithSubtasks(),
        attention.describe(),
        managedMemory);
  }

  @Override
  public void processElement(StreamRecord<ArrowBatch> element) {
    ArrowBatch batch = element.getValue();
    try (ArrowBatch result = step(batch, element)) {
      if (result.numRows() > 0 || batch.numRows() == 0) {
        output.collect(element.replace(result));
      }
    } finally {
      if (batch.isReceived()) {
        batch.close();
      }
    }
  }

  private ArrowBatch step(ArrowBatch batch, StreamRecord<ArrowBatch> element) {
    long start = System.nanoTime();
    ArrowBatch result =
        onBadRow == OnBadRow.FAIL
            ? attention.step(batch)
            : attention.step(batch, row -> refuse(row, element));
    counters.step(
        result.numRows(),
        attention.lastStep(),
        batch.bytesCopied() + attention.lastBytesCopied(),
        System.nanoTime() - start);
    return result;
  }

  private void refuse(RefusedRow row, StreamRecord<ArrowBatch> element) {
    counters.refused(row.code());
    StreamRecord<RefusedRow> record = new StreamRecord<>(row);
    if (element.hasTimestamp()) {
      record.setTimestamp(element.getTimestamp());
    }
    output.collect(REFUSED_ROWS, record);
  }

  @Override
  public void close() throws Exception {
    IOUtils.closeAll(attention, this::closeAllocator, managedMemory, super::close);
  }

  @VisibleForTesting
  PagedAttention attention() {
    return attention;
  }

  private void closeAllocator() {
    if (allocator != null) {
      long held = FlinkAllocator.close(allocator);
      if (held > 0) {
        LOGGER.warn(
            "{}: operators downstream still hold {} bytes of results", getOperatorName(), held);
      }
    }
  }
}
