// SPDX-License-Identifier: Apache-2.0
package io.broadhead.kernel;

import io.broadhead.arrow.ArrowBatch;
import io.broadhead.arrow.BatchSchema;
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
 * structures. Owned by a {@link StepPart}.
 */
final class CArrays implements AutoCloseable {
  private static final int STRUCT = 80;
  private static final int LENGTH = 0;
  private static final int NULL_COUNT = 8;
  private static final int OFFSET = 16;
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
  private final int[] bufferCounts;
  private final boolean[] hasOffsets;
  private final long[] structs;
  private final long[] pointers;

  /**
   * @param schema its columns become the children
   * @param release address of the callback for memory that the caller keeps
   */
  CArrays(BufferAllocator allocator, BatchSchema schema, long release) {
    this.release = release;
    int count = schema.nodeCount();
    this.bufferCounts = new int[count];
    this.hasOffsets = new boolean[count];
    this.structs = new long[count];
    this.pointers = new long[count];
    int bufferPointers = 1;
    for (int i = 0; i < count; i++) {
      bufferCounts[i] = schema.nodeBufferCount(i);
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
    MemoryUtil.putLong(root + N_CHILDREN, schema.columnCount());
    MemoryUtil.putLong(root + CHILDREN, free);
    long childPointer = free;
    free += 8L * schema.columnCount();
    int next = 0;
    for (int column = 0; column < schema.columnCount(); column++) {
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

  /** Starts pointing the structures: rows of the struct array. */
  void begin(long rows) {
    MemoryUtil.putLong(root + LENGTH, rows);
  }

  /** Points node {@code i} at node {@code node} of {@code batch}, elements before its length. */
  void point(int i, ArrowBatch batch, int node) {
    long length = batch.nodeLength(node);
    long nullCount = batch.nullCount(node);
    header(i, length, nullCount, 0);
    int first = batch.schema().nodeBuffer(node);
    int count = bufferCounts[i];
    if (count > 0) {
      buffer(i, 0, nullCount == 0 ? 0 : batch.bufferAddress(first));
    }
    for (int b = 1; b < count; b++) {
      boolean emptyOffsets = length == 0 && b == 1 && hasOffsets[i];
      buffer(i, b, emptyOffsets ? zeros : batch.bufferAddress(first + b));
    }
  }

  /** Sets length, null count and offset of node {@code i}. */
  void header(int i, long length, long nullCount, long offset) {
    long struct = structs[i];
    MemoryUtil.putLong(struct + LENGTH, length);
    MemoryUtil.putLong(struct + NULL_COUNT, nullCount);
    MemoryUtil.putLong(struct + OFFSET, offset);
  }

  /** Sets buffer {@code b} of node {@code i}. */
  void buffer(int i, int b, long address) {
    MemoryUtil.putLong(pointers[i] + 8L * b, address);
  }

  /** Address of the struct array, for a call that may release it; again for the next one. */
  long lend() {
    MemoryUtil.putLong(root + RELEASE, release);
    for (long struct : structs) {
      MemoryUtil.putLong(struct + RELEASE, release);
    }
    return root;
  }

  @Override
  public void close() {
    memory.close();
  }
}
