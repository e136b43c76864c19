// SPDX-License-Identifier: Apache-2.0
package io.broadhead.arrow;

import org.apache.arrow.memory.ArrowBuf;
import org.apache.arrow.memory.BufferAllocator;
import org.apache.arrow.memory.util.MemoryUtil;

/**
 * Takes rows out of a batch. What can stay a reference does: a selection of all rows in order, and
 * a split in which one shard gets everything, share the batch's buffers.
 *
 * <p>The given batch stays the caller's; the caller closes what is returned.
 */
public final class BatchRows {
  private BatchRows() {}

  /**
   * The rows {@code rows} of {@code batch} in that order; a row may occur more than once.
   *
   * @throws IndexOutOfBoundsException if there is no such row
   */
  public static ArrowBatch take(ArrowBatch batch, int[] rows, BufferAllocator allocator) {
    boolean all = rows.length == batch.numRows();
    for (int i = 0; i < rows.length; i++) {
      if (rows[i] < 0 || rows[i] >= batch.numRows()) {
        throw new IndexOutOfBoundsException(
            "row " + rows[i] + ": expected one of " + batch.numRows() + " rows");
      }
      all &= rows[i] == i;
    }
    return all ? batch.retain() : copy(batch, rows, allocator);
  }

  /**
   * Divides the rows of {@code batch} among shards, each in the order it has.
   *
   * @param shardOfRow shard of each row, 0 to {@code shards - 1}
   * @return a batch for each shard, null for a shard without rows
   */
  public static ArrowBatch[] split(
      ArrowBatch batch, int[] shardOfRow, int shards, BufferAllocator allocator) {
    if (shardOfRow.length != batch.numRows()) {
      throw new IllegalArgumentException(
          "split: expected a shard for each of "
              + batch.numRows()
              + " rows, got "
              + shardOfRow.length);
    }
    int[] counts = new int[shards];
    for (int row = 0; row < shardOfRow.length; row++) {
      if (shardOfRow[row] < 0 || shardOfRow[row] >= shards) {
        throw new IllegalArgumentException(
            "row "
                + row
                + ": expected a shard from 0 to "
                + (shards - 1)
                + ", got "
                + shardOfRow[row]);
      }
      counts[shardOfRow[row]]++;
    }
    ArrowBatch[] parts = new ArrowBatch[shards];
    boolean done = false;
    try {
      for (int shard = 0; shard < shards; shard++) {
        if (counts[shard] == shardOfRow.length && shardOfRow.length > 0) {
          parts[shard] = batch.retain();
        } else if (counts[shard] > 0) {
          int[] rows = new int[counts[shard]];
          int next = 0;
          for (int row = 0; row < shardOfRow.length; row++) {
            if (shardOfRow[row] == shard) {
              rows[next++] = row;
            }
          }
          parts[shard] = copy(batch, rows, allocator);
        }
      }
      done = true;
      return parts;
    } finally {
      if (!done) {
        for (ArrowBatch part : parts) {
          if (part != null) {
            part.close();
          }
        }
      }
    }
  }

  private static ArrowBatch copy(ArrowBatch batch, int[] rows, BufferAllocator allocator) {
    Ranges selected = new Ranges(rows.length);
    for (int row : rows) {
      selected.add(row, 1);
    }
    Copier copier = new Copier(batch, allocator);
    boolean done = false;
    try {
      for (int column = 0; column < batch.schema().columnCount(); column++) {
        copier.node(batch.schema().firstNode(column), selected);
      }
      done = true;
    } finally {
      if (!done) {
        ArrowBatch.release(copier.buffers);
      }
    }
    return ArrowBatch.adopt(
        batch.schema(),
        rows.length,
        copier.lengths,
        copier.nullCounts,
        copier.buffers,
        copier.bytes);
  }

  /** Runs of elements, in the order in which they are copied. */
  private static final class Ranges {
    private long[] starts;
    private long[] sizes;
    private int count;
    private long total;

    Ranges(int capacity) {
      this.starts = new long[Math.max(1, capacity)];
      this.sizes = new long[starts.length];
    }

    void add(long start, long size) {
      if (size == 0) {
        return;
      }
      total += size;
      if (count > 0 && starts[count - 1] + sizes[count - 1] == start) {
        sizes[count - 1] += size;
        return;
      }
      starts[count] = start;
      sizes[count] = size;
      count++;
    }
  }

  private static final class Copier {
    private final ArrowBatch batch;
    private final BufferAllocator allocator;
    private final long[] lengths;
    private final long[] nullCounts;
    private final ArrowBuf[] buffers;
    private long bytes;

    Copier(ArrowBatch batch, BufferAllocator allocator) {
      this.batch = batch;
      this.allocator = allocator;
      this.lengths = new long[batch.schema().nodeCount()];
      this.nullCounts = new long[lengths.length];
      this.buffers = new ArrowBuf[batch.schema().bufferCount()];
    }

    void node(int index, Ranges selected) {
      NodeLayout node = batch.schema().node(index);
      lengths[index] = selected.total;
      int buffer = node.firstBuffer();
      if (node.kind() == NodeLayout.Kind.NULL) {
        nullCounts[index] = selected.total;
        return;
      }
      validity(index, buffer, selected);
      switch (node.kind()) {
        case BIT -> buffers[buffer + 1] = bits(batch.buffer(buffer + 1), selected);
        case FIXED -> buffers[buffer + 1] = bytes(batch.buffer(buffer + 1), selected, node.width());
        case VAR32, VAR64 -> {
          Ranges data = offsets(node, index, selected);
          buffers[buffer + 2] = bytes(batch.buffer(buffer + 2), data, 1);
        }
        case LIST32, LIST64 -> node(node.firstChild(), offsets(node, index, selected));
        case FIXED_LIST -> {
          Ranges elements = new Ranges(selected.count);
          for (int i = 0; i < selected.count; i++) {
            elements.add(selected.starts[i] * node.width(), selected.sizes[i] * node.width());
          }
          node(node.firstChild(), elements);
        }
        case STRUCT -> {
          for (int child = node.firstChild();
              child < node.endNode();
              child = batch.schema().node(child).endNode()) {
            node(child, selected);
          }
        }
        default -> throw new IllegalStateException(node.path() + " has the layout " + node.kind());
      }
    }

    private void validity(int index, int buffer, Ranges selected) {
      if (batch.nullCount(index) == 0) {
        buffers[buffer] = allocator.getEmpty();
        return;
      }
      ArrowBuf copy = bits(batch.buffer(buffer), selected);
      buffers[buffer] = copy;
      long valid = 0;
      for (long i = 0; i < selected.total; i++) {
        valid += copy.getByte(i >> 3) >> (i & 7) & 1;
      }
      nullCounts[index] = selected.total - valid;
    }

    /**
     * Writes the offsets of the selected rows, from zero, and returns which elements they cover.
     */
    private Ranges offsets(NodeLayout node, int index, Ranges selected) {
      boolean wide = node.kind().offsetWidth() == 8;
      ArrowColumn column = new ArrowColumn(batch, index);
      ArrowBuf copy = allocate((selected.total + 1) * node.kind().offsetWidth());
      buffers[node.firstBuffer() + 1] = copy;
      Ranges covered = new Ranges(Math.toIntExact(selected.total));
      long at = 0;
      long row = 0;
      putOffset(copy, wide, row++, at);
      for (int i = 0; i < selected.count; i++) {
        for (long from = selected.starts[i];
            from < selected.starts[i] + selected.sizes[i];
            from++) {
          long size = column.listSize(from);
          covered.add(column.offset(from), size);
          at += size;
          putOffset(copy, wide, row++, at);
        }
      }
      return covered;
    }

    private static void putOffset(ArrowBuf offsets, boolean wide, long row, long value) {
      if (wide) {
        offsets.setLong(row * 8, value);
      } else {
        offsets.setInt(row * 4, Math.toIntExact(value));
      }
    }

    private ArrowBuf bytes(ArrowBuf source, Ranges selected, int width) {
      ArrowBuf copy = allocate(selected.total * width);
      long at = 0;
      for (int i = 0; i < selected.count; i++) {
        long size = selected.sizes[i] * width;
        source.checkBytes(selected.starts[i] * width, selected.starts[i] * width + size);
        MemoryUtil.copyMemory(
            source.memoryAddress() + selected.starts[i] * width, copy.memoryAddress() + at, size);
        at += size;
      }
      return copy;
    }

    private ArrowBuf bits(ArrowBuf source, Ranges selected) {
      long size = (selected.total + 7) / 8;
      ArrowBuf copy = allocate(size);
      copy.setZero(0, size);
      long at = 0;
      for (int i = 0; i < selected.count; i++) {
        for (long from = selected.starts[i];
            from < selected.starts[i] + selected.sizes[i];
            from++) {
          if ((source.getByte(from >> 3) >> (from & 7) & 1) != 0) {
            copy.setByte(at >> 3, copy.getByte(at >> 3) | 1 << (at & 7));
          }
          at++;
        }
      }
      return copy;
    }

    private ArrowBuf allocate(long size) {
      ArrowBuf buffer = allocator.buffer(size);
      bytes += size;
      buffer.writerIndex(size);
      return buffer.slice(0, size);
    }
  }
}
