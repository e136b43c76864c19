// SPDX-License-Identifier: Apache-2.0
package io.broadhead.arrow;

import java.nio.charset.StandardCharsets;
import org.apache.arrow.memory.ArrowBuf;

/**
 * Reads values of one column, or of one of its children, straight from a batch's buffers. Meant for
 * the few values a row that planning needs (layer, sequence ids, lengths), not for tensors.
 *
 * <p>Owns nothing: valid while its batch is. Indexes are not checked beyond the buffers' own
 * bounds.
 */
public final class ArrowColumn {
  private final ArrowBatch batch;
  private final int node;
  private final NodeLayout layout;
  private final int offsetWidth;
  private final ArrowBuf validity;
  private final ArrowBuf second;
  private final ArrowBuf third;

  ArrowColumn(ArrowBatch batch, int node) {
    this.batch = batch;
    this.node = node;
    this.layout = batch.schema().node(node);
    this.offsetWidth = layout.kind().offsetWidth();
    int first = layout.firstBuffer();
    int count = layout.kind().buffers;
    this.validity = count > 0 && batch.nullCount(node) > 0 ? batch.buffer(first) : null;
    this.second = count > 1 ? batch.buffer(first + 1) : null;
    this.third = count > 2 ? batch.buffer(first + 2) : null;
  }

  /** Elements of this column. */
  public long length() {
    return batch.nodeLength(node);
  }

  public long nullCount() {
    return batch.nullCount(node);
  }

  public boolean isNull(long row) {
    if (layout.kind() == NodeLayout.Kind.NULL) {
      return true;
    }
    return validity != null && (validity.getByte(row >> 3) >> (row & 7) & 1) == 0;
  }

  public boolean getBoolean(long row) {
    return (second.getByte(row >> 3) >> (row & 7) & 1) != 0;
  }

  /** An integer element of whatever width the column has, signed. */
  public long getLong(long row) {
    return switch (layout.width()) {
      case 8 -> second.getLong(row * 8);
      case 4 -> second.getInt(row * 4);
      case 2 -> second.getShort(row * 2);
      case 1 -> second.getByte(row);
      default -> throw wrongKind("an integer");
    };
  }

  /** An int32 element. */
  public int getInt(long row) {
    return second.getInt(row * 4);
  }

  /** A utf8 element. */
  public String getString(long row) {
    return new String(getBytes(row), StandardCharsets.UTF_8);
  }

  /** The bytes of a utf8 or binary element; a copy. */
  public byte[] getBytes(long row) {
    if (third == null) {
      throw wrongKind("utf8 or binary");
    }
    long start = offset(row);
    byte[] bytes = new byte[Math.toIntExact(offset(row + 1) - start)];
    third.getBytes(start, bytes);
    return bytes;
  }

  /**
   * Offset {@code row} of a list, utf8 or binary column: where the row's elements start, and where
   * those of the row before end. Offsets need not start at zero.
   */
  public long offset(long row) {
    return switch (offsetWidth) {
      case 4 -> second.getInt(row * 4);
      case 8 -> second.getLong(row * 8);
      default -> throw wrongKind("a list");
    };
  }

  /** Elements of list {@code row}; 0 for a null row. */
  public long listSize(long row) {
    return isNull(row) ? 0 : offset(row + 1) - offset(row);
  }

  /** The elements of a list or fixed-size list column. */
  public ArrowColumn child() {
    if (layout.firstChild() >= layout.endNode()) {
      throw wrongKind("a list");
    }
    return new ArrowColumn(batch, layout.firstChild());
  }

  /** The buffer behind the validity: values, or offsets of lists and utf8; lent. */
  public ArrowBuf values() {
    return second;
  }

  private IllegalStateException wrongKind(String expected) {
    return new IllegalStateException(
        "column " + layout.path() + ": expected " + expected + ", got " + layout.kind());
  }
}
