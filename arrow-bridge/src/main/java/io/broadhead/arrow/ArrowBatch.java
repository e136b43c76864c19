// SPDX-License-Identifier: Apache-2.0
package io.broadhead.arrow;

import java.lang.ref.Cleaner;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.concurrent.atomic.AtomicLong;
import org.apache.arrow.memory.ArrowBuf;
import org.apache.arrow.memory.BufferAllocator;
import org.apache.arrow.memory.ReferenceManager;
import org.apache.arrow.vector.VectorLoader;
import org.apache.arrow.vector.VectorSchemaRoot;
import org.apache.arrow.vector.VectorUnloader;
import org.apache.arrow.vector.ipc.message.ArrowFieldNode;
import org.apache.arrow.vector.ipc.message.ArrowRecordBatch;

/**
 * One Arrow record batch as an immutable value: a schema and the off-heap buffers of its columns,
 * never compressed.
 *
 * <p><b>Ownership.</b> There is one rule. Whoever creates a batch closes it, after the call that
 * hands it on has returned ({@code Output.collect()} in Flink). A batch that came over the network
 * ({@link #isReceived()}) has no creator on this side: the first operator that takes it closes it.
 * Whoever keeps a batch beyond the call that passed it {@linkplain #retain() retains} it and closes
 * it once more. The buffers are freed with the last close. A {@link Cleaner} frees what was
 * forgotten and counts it ({@link #leakedCount()}): a count above zero is a defect.
 *
 * <p>Batches may be read, retained and closed by any thread.
 */
public final class ArrowBatch implements AutoCloseable {
  private static final Cleaner CLEANER = Cleaner.create();
  private static final AtomicLong LEAKED = new AtomicLong();

  private final BatchSchema schema;
  private final int rows;
  private final long[] lengths;
  private final long[] nullCounts;
  private final ArrowBuf[] buffers;
  private final long byteSize;
  private final long bytesCopied;
  private final boolean received;
  private final References references;
  private final Cleaner.Cleanable cleanable;

  private ArrowBatch(
      BatchSchema schema,
      int rows,
      long[] lengths,
      long[] nullCounts,
      ArrowBuf[] buffers,
      long bytesCopied,
      boolean received) {
    this.schema = schema;
    this.rows = rows;
    this.lengths = lengths;
    this.nullCounts = nullCounts;
    this.buffers = buffers;
    this.bytesCopied = bytesCopied;
    this.received = received;
    ReferenceManager memory =
        buffers.length == 0 ? ReferenceManager.NO_OP : buffers[0].getReferenceManager();
    long size = 0;
    for (ArrowBuf buffer : buffers) {
      size += buffer.readableBytes();
      memory = buffer.getReferenceManager() == memory ? memory : null;
    }
    this.byteSize = size;
    this.references = new References(buffers, memory);
    this.cleanable = CLEANER.register(this, references);
  }

  /**
   * A batch over buffers laid out as {@code schema} says, which are trusted. One reference of each
   * buffer moves to the batch; the arrays belong to it from now on.
   *
   * @param lengths elements of each node
   * @param nullCounts nulls of each node
   * @param bytesCopied payload bytes that were copied to make this batch
   */
  public static ArrowBatch adopt(
      BatchSchema schema,
      int rows,
      long[] lengths,
      long[] nullCounts,
      ArrowBuf[] buffers,
      long bytesCopied) {
    return new ArrowBatch(schema, rows, lengths, nullCounts, buffers, bytesCopied, false);
  }

  /**
   * As {@link #adopt}, for buffers from outside: their sizes and offsets are checked first. The
   * buffers are released if a check fails.
   */
  static ArrowBatch adoptChecked(
      BatchSchema schema,
      long rows,
      long[] lengths,
      long[] nullCounts,
      ArrowBuf[] buffers,
      long bytesCopied,
      boolean received)
      throws MalformedArrowException {
    boolean ok = false;
    try {
      BatchChecks.check(schema, rows, lengths, nullCounts, buffers);
      ok = true;
    } finally {
      if (!ok) {
        release(buffers);
      }
    }
    return new ArrowBatch(schema, (int) rows, lengths, nullCounts, buffers, bytesCopied, received);
  }

  /**
   * A batch that shares the buffers of {@code root}. The root stays the caller's and may be closed
   * at once, but must not be written to any more.
   *
   * @throws IllegalArgumentException naming the column whose vector is not filled as its count says
   */
  public static ArrowBatch of(VectorSchemaRoot root) {
    BatchSchema schema = BatchSchema.of(root.getSchema());
    try (ArrowRecordBatch record = new VectorUnloader(root).getRecordBatch()) {
      int nodeCount = record.getNodes().size();
      long[] lengths = new long[nodeCount];
      long[] nullCounts = new long[nodeCount];
      for (int i = 0; i < nodeCount; i++) {
        ArrowFieldNode node = record.getNodes().get(i);
        lengths[i] = node.getLength();
        nullCounts[i] = node.getNullCount();
      }
      ArrowBuf[] buffers = new ArrowBuf[record.getBuffers().size()];
      for (int i = 0; i < buffers.length; i++) {
        ArrowBuf buffer = record.getBuffers().get(i);
        buffers[i] = buffer.slice(buffer.readerIndex(), buffer.readableBytes());
        buffers[i].getReferenceManager().retain();
      }
      return adoptChecked(schema, record.getLength(), lengths, nullCounts, buffers, 0, false);
    } catch (MalformedArrowException e) {
      throw new IllegalArgumentException(e.getMessage(), e);
    }
  }

  /**
   * The columns {@code columns} in that order, sharing their buffers; the caller closes what is
   * returned.
   */
  public ArrowBatch select(int... columns) {
    BatchSchema selected = schema.select(columns);
    long[] selectedLengths = new long[selected.nodeCount()];
    long[] selectedNulls = new long[selectedLengths.length];
    ArrowBuf[] selectedBuffers = new ArrowBuf[selected.bufferCount()];
    int node = 0;
    int buffer = 0;
    for (int column : columns) {
      for (int i = schema.firstNode(column); i < schema.firstNode(column + 1); i++) {
        selectedLengths[node] = lengths[i];
        selectedNulls[node++] = nullCounts[i];
      }
      for (int i = schema.firstBuffer(column); i < schema.firstBuffer(column + 1); i++) {
        selectedBuffers[buffer++] = retained(i);
      }
    }
    return adopt(selected, rows, selectedLengths, selectedNulls, selectedBuffers, 0);
  }

  /** Buffer {@code index} with one more reference, which its taker releases. */
  public ArrowBuf retained(int index) {
    ArrowBuf buffer = liveBuffers()[index];
    buffer.getReferenceManager().retain();
    return buffer;
  }

  /** The columns of {@code left} followed by those of {@code right}; both stay the caller's. */
  public static ArrowBatch join(BatchSchema joined, ArrowBatch left, ArrowBatch right) {
    if (left.rows != right.rows) {
      throw new IllegalArgumentException(
          "join: expected two batches of " + left.rows + " rows, got " + right.rows);
    }
    if (joined.nodeCount() != left.lengths.length + right.lengths.length) {
      throw new IllegalArgumentException("join: the schema is not that of the two batches");
    }
    ArrowBuf[] buffers = concat(left.liveBuffers(), right.liveBuffers());
    for (ArrowBuf buffer : buffers) {
      buffer.getReferenceManager().retain();
    }
    return adopt(
        joined,
        left.rows,
        concat(left.lengths, right.lengths),
        concat(left.nullCounts, right.nullCounts),
        buffers,
        left.bytesCopied + right.bytesCopied);
  }

  private static long[] concat(long[] left, long[] right) {
    long[] both = Arrays.copyOf(left, left.length + right.length);
    System.arraycopy(right, 0, both, left.length, right.length);
    return both;
  }

  private static ArrowBuf[] concat(ArrowBuf[] left, ArrowBuf[] right) {
    ArrowBuf[] both = Arrays.copyOf(left, left.length + right.length);
    System.arraycopy(right, 0, both, left.length, right.length);
    return both;
  }

  public BatchSchema schema() {
    return schema;
  }

  public int numRows() {
    return rows;
  }

  /**
   * Payload bytes that were copied to make this batch: 0 for an uncompressed batch of a mapped
   * file; decompressed, stream-read, network and row-split bytes count.
   */
  public long bytesCopied() {
    return bytesCopied;
  }

  /** Whether this batch came over the network, so that its first taker has to close it. */
  public boolean isReceived() {
    return received;
  }

  /** Bytes of all buffers. */
  public long byteSize() {
    return byteSize;
  }

  /** Elements of node {@code node} (see {@link BatchSchema#firstNode}). */
  public long nodeLength(int node) {
    return lengths[node];
  }

  /** Nulls of node {@code node}. */
  public long nullCount(int node) {
    return nullCounts[node];
  }

  /** Buffer {@code index} (see {@link BatchSchema#firstBuffer}); lent, not retained. */
  public ArrowBuf buffer(int index) {
    return liveBuffers()[index];
  }

  /** Address of the first byte of buffer {@code index}. */
  public long bufferAddress(int index) {
    return liveBuffers()[index].memoryAddress();
  }

  /**
   * A view of the column {@code name}, valid while the batch is.
   *
   * @throws IllegalArgumentException if there is no such column
   */
  public ArrowColumn column(String name) {
    int index = schema.index(name);
    if (index < 0) {
      throw new IllegalArgumentException(
          "column " + name + ": expected in the batch, got " + names());
    }
    return column(index);
  }

  /** A view of column {@code index}, valid while the batch is. */
  public ArrowColumn column(int index) {
    return new ArrowColumn(this, schema.firstNode(index));
  }

  private List<String> names() {
    return schema.arrow().getFields().stream().map(field -> field.getName()).toList();
  }

  /** Takes one more reference, which its taker closes. */
  public ArrowBatch retain() {
    references.retain();
    return this;
  }

  /**
   * This batch for an operator that passes on what it takes, and closes what is returned. A
   * received batch is closed with this call: the operator is the creator of what is returned, and
   * none behind it closes that too.
   */
  public ArrowBatch take() {
    if (!received) {
      return retain();
    }
    for (ArrowBuf buffer : liveBuffers()) {
      buffer.getReferenceManager().retain();
    }
    ArrowBatch taken = adopt(schema, rows, lengths, nullCounts, buffers, bytesCopied);
    close();
    return taken;
  }

  /** Gives one reference back; the last one frees the buffers. */
  @Override
  public void close() {
    if (references.release()) {
      cleanable.clean();
    }
  }

  /** Whether the last reference was given back. */
  public boolean isClosed() {
    return references.count.get() <= 0;
  }

  /**
   * Arrow's own form of this batch, sharing its buffers. {@code allocator} must have the same root
   * as the one that made them. The caller closes the root.
   */
  public VectorSchemaRoot toRoot(BufferAllocator allocator) {
    VectorSchemaRoot root = VectorSchemaRoot.create(schema.arrow(), allocator);
    try (ArrowRecordBatch record = toRecordBatch()) {
      new VectorLoader(root).load(record);
      return root;
    } catch (RuntimeException e) {
      root.close();
      throw e;
    }
  }

  /** Arrow's own message of this batch, sharing its buffers. The caller closes it. */
  public ArrowRecordBatch toRecordBatch() {
    List<ArrowFieldNode> nodes = new ArrayList<>(lengths.length);
    for (int i = 0; i < lengths.length; i++) {
      nodes.add(new ArrowFieldNode(lengths[i], nullCounts[i]));
    }
    return new ArrowRecordBatch(rows, nodes, Arrays.asList(liveBuffers()));
  }

  /** Batches that the garbage collector found unclosed since the JVM started. */
  public static long leakedCount() {
    return LEAKED.get();
  }

  /** The buffers; lent, not retained. */
  ArrowBuf[] liveBuffers() {
    if (references.count.get() <= 0) {
      throw new IllegalStateException("this batch was closed");
    }
    return buffers;
  }

  /** Gives one reference of each buffer back; neighbours in one memory together, under one lock. */
  static void release(ArrowBuf[] buffers) {
    ReferenceManager memory = ReferenceManager.NO_OP;
    int references = 1;
    for (ArrowBuf buffer : buffers) {
      if (buffer == null) {
        continue;
      }
      if (buffer.getReferenceManager() == memory) {
        references++;
      } else {
        memory.release(references);
        memory = buffer.getReferenceManager();
        references = 1;
      }
    }
    memory.release(references);
  }

  @Override
  public String toString() {
    return "ArrowBatch[" + rows + " rows, " + schema.fingerprint().substring(0, 8) + "]";
  }

  /** What outlives the batch object itself: the buffers and how many hold them. */
  private static final class References implements Runnable {
    final AtomicInteger count = new AtomicInteger(1);
    private final ArrowBuf[] buffers;

    /** Of all buffers, or null: so the thread that releases them need not look at each. */
    private final ReferenceManager memory;

    References(ArrowBuf[] buffers, ReferenceManager memory) {
      this.buffers = buffers;
      this.memory = memory;
    }

    void retain() {
      if (count.getAndUpdate(n -> n > 0 ? n + 1 : n) <= 0) {
        throw new IllegalStateException("a closed batch cannot be retained");
      }
    }

    boolean release() {
      int before = count.getAndUpdate(n -> n > 0 ? n - 1 : n);
      if (before <= 0) {
        throw new IllegalStateException("this batch was closed more often than retained");
      }
      if (before > 1) {
        return false;
      }
      releaseBuffers();
      return true;
    }

    private void releaseBuffers() {
      if (memory == null) {
        ArrowBatch.release(buffers);
      } else {
        memory.release(buffers.length);
      }
    }

    @Override
    public void run() {
      if (count.getAndSet(0) > 0) {
        LEAKED.incrementAndGet();
        releaseBuffers();
      }
    }
  }
}
