// SPDX-License-Identifier: Apache-2.0
package io.broadhead.arrow;

import org.apache.arrow.memory.ArrowBuf;

/**
 * The checks on a record batch from outside. Behind them a buffer is as long as its node's length
 * needs and every offset lies inside its child, which is what native code, to which the C Data
 * Interface gives no buffer sizes, has to rely on.
 */
final class BatchChecks {
  private BatchChecks() {}

  static void check(
      BatchSchema schema, long rows, long[] lengths, long[] nullCounts, ArrowBuf[] buffers)
      throws MalformedArrowException {
    if (rows < 0 || rows > Integer.MAX_VALUE - 8) {
      throw new MalformedArrowException(
          "record batch: expected 0 to " + (Integer.MAX_VALUE - 8) + " rows, got " + rows);
    }
    expectCount("nodes", schema.nodeCount(), lengths.length);
    expectCount("buffers", schema.bufferCount(), buffers.length);
    for (int column = 0; column < schema.columnCount(); column++) {
      int node = schema.firstNode(column);
      if (lengths[node] != rows) {
        throw new MalformedArrowException(
            "column "
                + schema.node(node).path()
                + ": expected "
                + rows
                + " rows, got "
                + lengths[node]);
      }
      checkNode(schema, node, lengths, nullCounts, buffers);
    }
  }

  static void expectCount(String what, int expected, int got) throws MalformedArrowException {
    if (expected != got) {
      throw new MalformedArrowException(
          "record batch: the schema needs " + expected + " " + what + ", got " + got);
    }
  }

  private static void checkNode(
      BatchSchema schema, int index, long[] lengths, long[] nullCounts, ArrowBuf[] buffers)
      throws MalformedArrowException {
    NodeLayout node = schema.node(index);
    long length = lengths[index];
    long nullCount = nullCounts[index];
    if (length < 0 || length > Long.MAX_VALUE / 64) {
      throw new MalformedArrowException(
          "column " + node.path() + ": expected a length of 0 or more, got " + length);
    }
    if (nullCount < 0 || nullCount > length) {
      throw new MalformedArrowException(
          "column "
              + node.path()
              + ": expected a null count of 0 to "
              + length
              + ", got "
              + nullCount);
    }
    for (int i = 0; i < node.kind().buffers; i++) {
      long required = requiredBytes(node, i, length, nullCount);
      long got = buffers[node.firstBuffer() + i].readableBytes();
      if (got < required) {
        throw new MalformedArrowException(
            "column "
                + node.path()
                + ": expected at least "
                + required
                + " bytes in buffer "
                + i
                + " for "
                + length
                + " elements, got "
                + got);
      }
    }
    switch (node.kind()) {
      case VAR32, VAR64 ->
          checkOffsets(
              node,
              length,
              buffers[node.firstBuffer() + 1],
              buffers[node.firstBuffer() + 2].readableBytes(),
              "bytes of data");
      case LIST32, LIST64 ->
          checkOffsets(
              node,
              length,
              buffers[node.firstBuffer() + 1],
              lengths[node.firstChild()],
              "child elements");
      case FIXED_LIST ->
          expectChild(schema, node.firstChild(), lengths, product(node, length, node.width()));
      case STRUCT -> {
        for (int child = node.firstChild();
            child < node.endNode();
            child = schema.node(child).endNode()) {
          expectChild(schema, child, lengths, length);
        }
      }
      default -> {}
    }
    for (int child = node.firstChild();
        child < node.endNode();
        child = schema.node(child).endNode()) {
      checkNode(schema, child, lengths, nullCounts, buffers);
    }
  }

  private static void checkOffsets(
      NodeLayout node, long length, ArrowBuf offsets, long limit, String unit)
      throws MalformedArrowException {
    if (length == 0) {
      return;
    }
    boolean wide = node.kind().offsetWidth() == 8;
    long previous = 0;
    for (long i = 0; i <= length; i++) {
      long offset = wide ? offsets.getLong(i * 8) : offsets.getInt(i * 4);
      if (offset < previous || offset > limit) {
        throw new MalformedArrowException(
            "column "
                + node.path()
                + ", row "
                + Math.max(0, i - 1)
                + ": expected offset "
                + i
                + " between "
                + previous
                + " and "
                + limit
                + " ("
                + unit
                + "), got "
                + offset);
      }
      previous = offset;
    }
  }

  private static void expectChild(BatchSchema schema, int child, long[] lengths, long expected)
      throws MalformedArrowException {
    if (lengths[child] < expected) {
      throw new MalformedArrowException(
          "column "
              + schema.node(child).path()
              + ": expected at least "
              + expected
              + " elements, got "
              + lengths[child]);
    }
  }

  private static long requiredBytes(NodeLayout node, int buffer, long length, long nullCount)
      throws MalformedArrowException {
    try {
      return node.requiredBytes(buffer, length, nullCount);
    } catch (ArithmeticException e) {
      throw tooLong(node, length);
    }
  }

  private static long product(NodeLayout node, long length, long width)
      throws MalformedArrowException {
    try {
      return Math.multiplyExact(length, width);
    } catch (ArithmeticException e) {
      throw tooLong(node, length);
    }
  }

  private static MalformedArrowException tooLong(NodeLayout node, long length) {
    return new MalformedArrowException(
        "column " + node.path() + ": a length of " + length + " does not fit any buffer");
  }
}
