// SPDX-License-Identifier: Apache-2.0
package io.broadhead.kernel;

import io.broadhead.arrow.ArrowBatch;
import io.broadhead.arrow.BatchSchema;
import java.util.ArrayList;
import java.util.List;
import org.apache.arrow.memory.ArrowBuf;
import org.apache.arrow.memory.BufferAllocator;
import org.apache.arrow.memory.util.MemoryUtil;
import org.apache.arrow.vector.types.pojo.ArrowType;
import org.apache.arrow.vector.types.pojo.Field;

/**
 * The C Data structures of one struct array, laid out once. For each batch only lengths, null
 * counts, buffer addresses and the release callbacks are written: Arrow's own export allocates and
 * frees all of it every time, with a JNI reference for each node.
 *
 * <p>The memory of the arrays stays with the batch, so the release callback only marks the
 * structures. Owned by a {@link StepBinding}.
 */
final class CArrays implements AutoCloseable {
  private static final int STRUCT = 80;
  private static final int LENGTH = 0;
  private static final int NULL_COUNT = 8;
  private static final int N_BUFFERS = 24;
  private static final int N_CHILDREN = 32;
  private static final int BUFFERS = 40;
  private static final int CHILDREN = 48;
  private static final int RELEASE = 64;

  /** What an offsets buffer of an array without elements may point at. */
  private static final int ZEROS = 64;

  private final ArrowBuf memory;
  private final long zeros;
  private final long root;
  private final long release;
  private final int[] nodes;
  private final int[] firstBuffers;
  private final int[] bufferCounts;
  private final boolean[] hasOffsets;
  private final long[] structs;
  private final long[] pointers;

  /**
   * @param columns the columns of {@code schema} that become the children, in that order
   * @param release address of the callback for memory that the caller keeps
   */
  CArrays(BufferAllocator allocator, BatchSchema schema, int[] columns, long release) {
    this.release = release;
    List<Integer> selected = new ArrayList<>();
    for (int column : columns) {
      for (int node = schema.firstNode(column); node < schema.firstNode(column + 1); node++) {
        selected.add(node);
      }
    }
    int count = selected.size();
    this.nodes = selected.stream().mapToInt(Integer::intValue).toArray();
    this.firstBuffers = new int[count];
    this.bufferCounts = new int[count];
    this.hasOffsets = new boolean[count];
    this.structs = new long[count];
    this.pointers = new long[count];
    int bufferPointers = 1;
    for (int i = 0; i < count; i++) {
      firstBuffers[i] = schema.nodeBuffer(nodes[i]);
      bufferCounts[i] = schema.nodeBufferCount(nodes[i]);
      bufferPointers += bufferCounts[i];
    }
    long size = ZEROS + (long) STRUCT * (count + 1) + 8L * (bufferPointers + count);
    this.memory = allocator.buffer(size);
    memory.setZero(0, size);
    this.zeros = memory.memoryAddress();
    this.root = zeros + ZEROS;
    for (int i = 0; i < count; i++) {
      structs[i] = root + (long) STRUCT * (i + 1);
    }
    long free = root + (long) STRUCT * (count + 1);
    MemoryUtil.putLong(root + N_BUFFERS, 1);
    MemoryUtil.putLong(root + BUFFERS, free);
    free += 8;
    MemoryUtil.putLong(root + N_CHILDREN, columns.length);
    MemoryUtil.putLong(root + CHILDREN, free);
    long childPointer = free;
    free += 8L * columns.length;
    int next = 0;
    for (int column : columns) {
      MemoryUtil.putLong(childPointer, structs[next]);
      childPointer += 8;
      Layout laidOut = layOut(schema.field(column), next, free);
      next = laidOut.node;
      free = laidOut.free;
    }
  }

  private record Layout(int node, long free) {}

  private Layout layOut(Field field, int node, long free) {
    long struct = structs[node];
    int children = field.getChildren().size();
    hasOffsets[node] =
        bufferCounts[node] == 3
            || field.getType() instanceof ArrowType.List
            || field.getType() instanceof ArrowType.LargeList
            || field.getType() instanceof ArrowType.Map;
    pointers[node] = free;
    MemoryUtil.putLong(struct + N_BUFFERS, bufferCounts[node]);
    MemoryUtil.putLong(struct + BUFFERS, free);
    free += 8L * bufferCounts[node];
    MemoryUtil.putLong(struct + N_CHILDREN, children);
    long childPointer = free;
    if (children > 0) {
      MemoryUtil.putLong(struct + CHILDREN, free);
      free += 8L * children;
    }
    int next = node + 1;
    for (Field child : field.getChildren()) {
      MemoryUtil.putLong(childPointer, structs[next]);
      childPointer += 8;
      Layout laidOut = layOut(child, next, free);
      next = laidOut.node;
      free = laidOut.free;
    }
    return new Layout(next, free);
  }

  /** Points the structures at {@code batch}, whose schema is the one they were laid out for. */
  void point(ArrowBatch batch) {
    begin(batch.numRows());
    for (int i = 0; i < nodes.length; i++) {
      long length = batch.nodeLength(nodes[i]);
      long nullCount = batch.nullCount(nodes[i]);
      header(i, length, nullCount);
      long pointer = pointers[i];
      int first = firstBuffers[i];
      int count = bufferCounts[i];
      if (count > 0) {
        MemoryUtil.putLong(pointer, nullCount == 0 ? 0 : batch.bufferAddress(first));
      }
      for (int b = 1; b < count; b++) {
        boolean emptyOffsets = length == 0 && b == 1 && hasOffsets[i];
        MemoryUtil.putLong(pointer + 8L * b, emptyOffsets ? zeros : batch.bufferAddress(first + b));
      }
    }
  }

  /** Starts pointing the structures by hand: rows of the struct array, and its release. */
  void begin(long rows) {
    MemoryUtil.putLong(root + LENGTH, rows);
    MemoryUtil.putLong(root + RELEASE, release);
  }

  /** Sets length, null count and release of node {@code i}. */
  void header(int i, long length, long nullCount) {
    long struct = structs[i];
    MemoryUtil.putLong(struct + LENGTH, length);
    MemoryUtil.putLong(struct + NULL_COUNT, nullCount);
    MemoryUtil.putLong(struct + RELEASE, release);
  }

  /** Sets buffer {@code b} of node {@code i}. */
  void buffer(int i, int b, long address) {
    MemoryUtil.putLong(pointers[i] + 8L * b, address);
  }

  /** Address of the struct array. */
  long address() {
    return root;
  }

  /** Whether the consumer released the struct array, as the C Data Interface asks. */
  boolean isReleased() {
    return MemoryUtil.getLong(root + RELEASE) == 0;
  }

  @Override
  public void close() {
    memory.close();
  }
}
