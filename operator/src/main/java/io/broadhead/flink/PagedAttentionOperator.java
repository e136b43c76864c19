// SPDX-License-Identifier: Apache-2.0
package io.broadhead.flink;

import io.broadhead.arrow.Allocators;
import io.broadhead.arrow.ArrowBatch;
import io.broadhead.attention.AttentionConfig;
import io.broadhead.attention.PagedAttention;
import io.broadhead.attention.RefusedRow;
import io.broadhead.attention.StepQueue;
import io.broadhead.attention.cache.CacheStores;
import io.broadhead.attention.job.Job;
import io.broadhead.kernel.ErrorCode;
import io.broadhead.kernel.KernelEngine;
import io.broadhead.kernel.KernelException;
import java.io.Closeable;
import org.apache.arrow.memory.BufferAllocator;
import org.apache.flink.annotation.VisibleForTesting;
import org.apache.flink.api.common.operators.MailboxExecutor;
import org.apache.flink.api.common.typeinfo.TypeInformation;
import org.apache.flink.runtime.execution.CancelTaskException;
import org.apache.flink.runtime.state.KeyedStateBackend;
import org.apache.flink.runtime.state.StateInitializationContext;
import org.apache.flink.runtime.state.StateSnapshotContext;
import org.apache.flink.streaming.api.operators.AbstractStreamOperator;
import org.apache.flink.streaming.api.operators.BoundedOneInput;
import org.apache.flink.streaming.api.operators.OneInputStreamOperator;
import org.apache.flink.streaming.api.operators.StreamOperatorParameters;
import org.apache.flink.streaming.api.operators.sorted.state.BatchExecutionStateBackend;
import org.apache.flink.streaming.api.watermark.Watermark;
import org.apache.flink.streaming.runtime.streamrecord.StreamRecord;
import org.apache.flink.streaming.runtime.watermarkstatus.WatermarkStatus;
import org.apache.flink.util.IOUtils;
import org.apache.flink.util.OutputTag;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;

/**
 * Runs {@link PagedAttention} on a stream of step batches: one result batch for each. Rows that are
 * refused leave by {@link #REFUSED_ROWS} if the options say so.
 *
 * <p><b>Threads.</b> The task's thread calls. Where batches are joined, some wait for others, and a
 * timer ends their waiting; mails that the task sends to itself have a long prompt computed step by
 * step. On a GPU a step computes while the task's thread takes the next input, at most two are
 * begun at a time, and a thread waits for the last one and sends the task a mail. What waits is
 * computed, and all results are emitted, before watermarks, idleness, barriers and the end of input
 * are passed on. A task that is cancelled ends the step that is being computed.
 *
 * <p><b>Order.</b> Results of one sequence and layer come in the order of its rows. With {@code
 * broadhead.batch.max-tokens}, results of different sequences may overtake each other.
 *
 * <p><b>Ownership.</b> A batch that came over the network is closed here; any other belongs to the
 * operator upstream. A result is closed after {@code collect()} has returned.
 *
 * <p><b>State.</b> The caches are keyed state, brought up to date by each snapshot; the key is the
 * shard of a row. What is swapped out in between goes there too.
 *
 * <p><b>Life.</b> The backend is opened in {@link #open} and closed with all caches in {@link
 * #close}, which survives an {@code open} that failed half-way. If {@link PagedAttentionStream}
 * declared the caches as managed memory, it is reserved while the operator is open.
 */
public final class PagedAttentionOperator extends AbstractStreamOperator<ArrowBatch>
    implements OneInputStreamOperator<ArrowBatch, ArrowBatch>, BoundedOneInput {
  private static final long serialVersionUID = 1;

  /** Rows that were left out of their batch, with code and reason. */
  public static final OutputTag<RefusedRow> REFUSED_ROWS =
      new OutputTag<>("refused-rows", TypeInformation.of(RefusedRow.class));

  private static final Logger LOGGER = LoggerFactory.getLogger(PagedAttentionOperator.class);

  private final Job job;
  private final OperatorSettings settings;
  private final transient MailboxExecutor mailbox;

  /** Null where no engine would save it. */
  private transient KeyedCacheState state;

  private transient ManagedMemory managedMemory;

  /** Null where the options say which device it is. */
  private transient ExternalDevice device;

  private transient AttentionConfig config;
  private transient KernelEngine engine;
  private transient BufferAllocator allocator;
  private transient PagedAttention attention;
  private transient StepQueue queue;
  private transient PagedAttentionMetrics metrics;
  private transient StepWaiter waiter;
  private transient StepPump pump;
  private transient ShardKey shardKey;
  private transient Closeable canceller;
  private transient ResultEmitter emitter;

  PagedAttentionOperator(
      StreamOperatorParameters<ArrowBatch> parameters, Job job, OperatorSettings settings) {
    super(parameters);
    this.job = job;
    this.settings = settings;
    this.mailbox = parameters.getMailboxExecutor();
  }

  @Override
  public void initializeState(StateInitializationContext context) throws Exception {
    super.initializeState(context);
    KeyedStateBackend<Integer> backend = getKeyedStateBackend();
    if (backend == null) {
      throw new IllegalStateException(
          getOperatorName()
              + ": expected a stream that is keyed by ShardKey, got one without keys");
    }
    // State of a job in batch mode is gone with the next key, and no checkpoint would save it.
    boolean isBatch =
        getOperatorConfig().getStateBackend(getUserCodeClassloader())
            instanceof BatchExecutionStateBackend;
    state = isBatch ? null : new KeyedCacheState(backend);
  }

  @Override
  public void open() throws Exception {
    super.open();
    shardKey =
        new ShardKey(
            settings.shards(), getRuntimeContext().getTaskInfo().getMaxNumberOfParallelSubtasks());
    engine = openEngine();
    boolean ownMemory = engine.info().freeMemory() > 0;
    managedMemory = ManagedMemory.reserve(this, ownMemory ? 0 : job.cacheBytes().orElse(0));
    allocator = Allocators.root(engine.memory());
    CacheStores stores = state == null ? CacheStores.onHeap() : state.stores(settings.state());
    attention = PagedAttention.open(job, engine, config.outOfBlocks(), allocator, stores);
    canceller = attention::cancel;
    getContainingTask().getCancelables().registerCloseable(canceller);
    if (state != null) {
      state.restore(attention, settings.shards());
    }
    queue = attention.queue(settings.batchMaxTokens(), step -> metrics.step(step));
    metrics = new PagedAttentionMetrics(getMetricGroup(), attention, queue);
    String task = getRuntimeContext().getTaskInfo().getTaskNameWithSubtasks();
    emitter = new ResultEmitter(output, settings, metrics);
    if (engine.info().overlaps()) {
      waiter = new StepWaiter(task, mailbox, this::settle);
    }
    pump = new StepPump(queue, settings, getProcessingTimeService(), mailbox, waiter);
    LOGGER.info("{} {}: {}, {}", getOperatorName(), task, attention.describe(), managedMemory);
  }

  private KernelEngine openEngine() {
    config = settings.attention();
    if (settings.deviceResource() == null) {
      return config.openEngine();
    }
    device = ExternalDevice.take(getRuntimeContext(), settings.deviceResource());
    LOGGER.info("{}: {}", getOperatorName(), device);
    config = config.onDevice(device.index());
    try {
      return config.openEngine();
    } catch (KernelException e) {
      throw new KernelException(e.code(), e.row(), device + ": " + e.getMessage());
    }
  }

  @Override
  public void processElement(StreamRecord<ArrowBatch> element) throws Exception {
    ArrowBatch batch = element.getValue();
    try {
      pump.add(batch, shardKey.keys(batch), emitter.handlerOf(element));
    } catch (KernelException e) {
      throw unlessCancelled(e);
    } finally {
      if (batch.isReceived()) {
        batch.close();
      }
    }
  }

  /** A step that was cancelled is no failure of the job. */
  private static RuntimeException unlessCancelled(KernelException e) {
    return e.code() == ErrorCode.CANCELLED ? new CancelTaskException(e) : e;
  }

  /** Emits what a step completes that is done, unless the next one was begun in the meantime. */
  private void settle(StepQueue.InFlight step) {
    try {
      queue.settle(step);
    } catch (KernelException e) {
      throw unlessCancelled(e);
    }
  }

  private void drain() throws Exception {
    try {
      pump.drain();
    } catch (KernelException e) {
      throw unlessCancelled(e);
    }
  }

  @Override
  public void processWatermark(Watermark mark) throws Exception {
    drain();
    super.processWatermark(mark);
  }

  @Override
  public void processWatermarkStatus(WatermarkStatus status) throws Exception {
    drain();
    super.processWatermarkStatus(status);
  }

  @Override
  public void prepareSnapshotPreBarrier(long checkpointId) throws Exception {
    drain();
  }

  @Override
  public void snapshotState(StateSnapshotContext context) throws Exception {
    super.snapshotState(context);
    if (state != null) {
      state.save(attention, settings.shards(), context.getCheckpointId());
    }
  }

  @Override
  public void endInput() throws Exception {
    drain();
  }

  @Override
  public void close() throws Exception {
    if (canceller != null) {
      getContainingTask().getCancelables().unregisterCloseable(canceller);
    }
    IOUtils.closeAll(
        pump,
        waiter,
        queue,
        attention,
        engine,
        this::closeAllocator,
        device,
        managedMemory,
        NetworkThreads::letGoOfJobs,
        super::close);
  }

  @VisibleForTesting
  PagedAttention attention() {
    return attention;
  }

  @VisibleForTesting
  boolean isStepInFlight() {
    return queue.inFlight().isPresent();
  }

  /** With the device that was taken. */
  @VisibleForTesting
  AttentionConfig config() {
    return config;
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
