// SPDX-License-Identifier: Apache-2.0
package io.broadhead.arrow;

import java.io.DataInput;
import java.io.DataOutput;
import java.io.IOException;
import java.util.Arrays;
import org.apache.arrow.memory.ArrowBuf;
import org.apache.arrow.memory.BufferAllocator;

/**
 * The bytes of a batch on a network edge, version {@value #VERSION}:
 *
 * <pre>
 * byte   version
 * int    length of the schema bytes, and the schema as an Arrow IPC message
 * int    rows
 * int    nodes, then for each: long length, long null count
 * int    buffers, then for each: long bytes
 * ...    the buffers, each filled up to a multiple of 64 bytes
 * </pre>
 *
 * <p>Integers are big-endian, as {@link DataOutput} writes them; buffers are little-endian, as
 * Arrow has them. A reader parses the schema again only when its bytes change.
 *
 * <p>Body bytes move through one small array: neither side holds a batch on the heap. An instance
 * is used by one thread.
 */
public final class ArrowBatchCodec {
  /** First byte of a batch. */
  public static final int VERSION = 1;

  private static final int CHUNK = 64 * 1024;
  private static final int MAX_SCHEMA_BYTES = 16 * 1024 * 1024;

  private final byte[] chunk = new byte[CHUNK];
  private final byte[] padding = new byte[(int) Allocators.ALIGNMENT];
  private byte[] lastSchemaBytes = new byte[0];
  private BatchSchema lastSchema;

  /** Writes {@code batch}, which stays the caller's. */
  public void write(ArrowBatch batch, DataOutput out) throws IOException {
    BatchSchema schema = batch.schema();
    byte[] schemaBytes = schema.sharedBytes();
    out.writeByte(VERSION);
    out.writeInt(schemaBytes.length);
    out.write(schemaBytes);
    out.writeInt(batch.numRows());
    out.writeInt(schema.nodeCount());
    for (int i = 0; i < schema.nodeCount(); i++) {
      out.writeLong(batch.nodeLength(i));
      out.writeLong(batch.nullCount(i));
    }
    out.writeInt(schema.bufferCount());
    for (int i = 0; i < schema.bufferCount(); i++) {
      out.writeLong(batch.buffer(i).readableBytes());
    }
    for (int i = 0; i < schema.bufferCount(); i++) {
      ArrowBuf buffer = batch.buffer(i);
      long size = buffer.readableBytes();
      for (long at = 0; at < size; at += CHUNK) {
        int length = (int) Math.min(CHUNK, size - at);
        buffer.getBytes(at, chunk, 0, length);
        out.write(chunk, 0, length);
      }
      out.write(padding, 0, (int) (Allocators.roundUp(size) - size));
    }
  }

  /**
   * Reads what {@link #write} wrote into one buffer of {@code allocator}. The batch {@linkplain
   * ArrowBatch#isReceived() is received}: its first taker closes it.
   *
   * @throws MalformedArrowException if the bytes are not a batch of this version
   */
  public ArrowBatch read(DataInput in, BufferAllocator allocator) throws IOException {
    BatchSchema schema = readHeader(in);
    int rows = in.readInt();
    expect("nodes", schema.nodeCount(), in.readInt());
    long[] lengths = new long[schema.nodeCount()];
    long[] nullCounts = new long[lengths.length];
    for (int i = 0; i < lengths.length; i++) {
      lengths[i] = in.readLong();
      nullCounts[i] = in.readLong();
    }
    long[] sizes = readSizes(in, schema);
    long bodySize = bodySize(sizes);
    ArrowBuf[] buffers = new ArrowBuf[sizes.length];
    try (ArrowBuf body = allocator.buffer(bodySize)) {
      for (long at = 0; at < bodySize; at += CHUNK) {
        int length = (int) Math.min(CHUNK, bodySize - at);
        in.readFully(chunk, 0, length);
        body.setBytes(at, chunk, 0, length);
      }
      long at = 0;
      for (int i = 0; i < sizes.length; i++) {
        buffers[i] = body.slice(at, sizes[i]);
        at += Allocators.roundUp(sizes[i]);
      }
      if (buffers.length > 0) {
        body.getReferenceManager().retain(buffers.length);
      }
    }
    return ArrowBatch.adoptChecked(schema, rows, lengths, nullCounts, buffers, bodySize, true);
  }

  /** Copies the bytes of one batch from {@code in} to {@code out}. */
  public void copy(DataInput in, DataOutput out) throws IOException {
    BatchSchema schema = readHeader(in);
    byte[] schemaBytes = schema.sharedBytes();
    out.writeByte(VERSION);
    out.writeInt(schemaBytes.length);
    out.write(schemaBytes);
    out.writeInt(in.readInt());
    int nodes = in.readInt();
    expect("nodes", schema.nodeCount(), nodes);
    out.writeInt(nodes);
    for (int i = 0; i < 2 * nodes; i++) {
      out.writeLong(in.readLong());
    }
    long[] sizes = readSizes(in, schema);
    out.writeInt(sizes.length);
    for (long size : sizes) {
      out.writeLong(size);
    }
    long bodySize = bodySize(sizes);
    for (long at = 0; at < bodySize; at += CHUNK) {
      int length = (int) Math.min(CHUNK, bodySize - at);
      in.readFully(chunk, 0, length);
      out.write(chunk, 0, length);
    }
  }

  private BatchSchema readHeader(DataInput in) throws IOException {
    int version = in.readUnsignedByte();
    if (version != VERSION) {
      throw new MalformedArrowException(
          "batch bytes: expected version " + VERSION + ", got " + version);
    }
    int length = in.readInt();
    if (length < 0 || length > MAX_SCHEMA_BYTES) {
      throw new MalformedArrowException(
          "batch bytes: expected at most " + MAX_SCHEMA_BYTES + " bytes of schema, got " + length);
    }
    byte[] bytes = new byte[length];
    in.readFully(bytes);
    if (lastSchema == null || !Arrays.equals(bytes, lastSchemaBytes)) {
      lastSchema = BatchSchema.parse(bytes);
      lastSchemaBytes = bytes;
    }
    return lastSchema;
  }

  private static long[] readSizes(DataInput in, BatchSchema schema) throws IOException {
    expect("buffers", schema.bufferCount(), in.readInt());
    long[] sizes = new long[schema.bufferCount()];
    for (int i = 0; i < sizes.length; i++) {
      sizes[i] = in.readLong();
      if (sizes[i] < 0 || sizes[i] > Long.MAX_VALUE / (sizes.length + 1L) - Allocators.ALIGNMENT) {
        throw new MalformedArrowException("batch bytes: buffer " + i + " has the size " + sizes[i]);
      }
    }
    return sizes;
  }

  private static long bodySize(long[] sizes) {
    long total = 0;
    for (long size : sizes) {
      total += Allocators.roundUp(size);
    }
    return total;
  }

  private static void expect(String what, int expected, int got) throws MalformedArrowException {
    if (expected != got) {
      throw new MalformedArrowException(
          "batch bytes: the schema needs " + expected + " " + what + ", got " + got);
    }
  }
}
