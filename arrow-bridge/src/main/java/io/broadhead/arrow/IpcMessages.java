// SPDX-License-Identifier: Apache-2.0
package io.broadhead.arrow;

import com.google.flatbuffers.FlatBufferBuilder;
import com.google.flatbuffers.Table;
import java.io.IOException;
import java.io.InputStream;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import org.apache.arrow.flatbuf.BodyCompression;
import org.apache.arrow.flatbuf.BodyCompressionMethod;
import org.apache.arrow.flatbuf.Buffer;
import org.apache.arrow.flatbuf.CompressionType;
import org.apache.arrow.flatbuf.Endianness;
import org.apache.arrow.flatbuf.FieldNode;
import org.apache.arrow.flatbuf.Message;
import org.apache.arrow.flatbuf.MessageHeader;
import org.apache.arrow.flatbuf.MetadataVersion;
import org.apache.arrow.flatbuf.RecordBatch;
import org.apache.arrow.memory.ArrowBuf;
import org.apache.arrow.memory.BufferAllocator;
import org.apache.arrow.memory.OutOfMemoryException;
import org.apache.arrow.memory.util.MemoryUtil;
import org.apache.arrow.vector.types.pojo.Schema;
import org.apache.commons.compress.compressors.lz4.FramedLZ4CompressorInputStream;

/** Record batch messages of the Arrow IPC format, from metadata and body to a batch and back. */
final class IpcMessages {
  static final int CONTINUATION = -1;

  /** What the length of a compressed buffer says when the buffer is stored as it is. */
  private static final long STORED = -1;

  private IpcMessages() {}

  /** Parses the metadata of a message; {@code metadata} starts at the flatbuffer. */
  static Message message(ByteBuffer metadata) throws MalformedArrowException {
    try {
      Message message = Message.getRootAsMessage(metadata.order(ByteOrder.LITTLE_ENDIAN));
      if (message.bodyLength() < 0) {
        throw new MalformedArrowException(
            "message: expected a body of 0 or more bytes, got " + message.bodyLength());
      }
      return message;
    } catch (RuntimeException e) {
      throw damaged(e);
    }
  }

  static BatchSchema schema(org.apache.arrow.flatbuf.Schema schema) throws MalformedArrowException {
    Schema converted = convert(schema);
    try {
      return BatchSchema.of(converted);
    } catch (IllegalArgumentException e) {
      throw new MalformedArrowException(e.getMessage(), e);
    }
  }

  private static Schema convert(org.apache.arrow.flatbuf.Schema schema)
      throws MalformedArrowException {
    try {
      if (schema.endianness() != Endianness.Little) {
        throw new MalformedArrowException("schema: expected little-endian data, got big-endian");
      }
      return Schema.convertSchema(schema);
    } catch (RuntimeException | StackOverflowError e) {
      // Damaged offsets can make a field its own child.
      throw damaged(e);
    }
  }

  static BatchSchema schema(Message message) throws MalformedArrowException {
    return schema((org.apache.arrow.flatbuf.Schema) header(message, MessageHeader.Schema));
  }

  private static Table header(Message message, byte expected) throws MalformedArrowException {
    try {
      byte type = message.headerType();
      if (type != expected) {
        throw new MalformedArrowException(
            "message: expected " + typeName(expected) + ", got " + typeName(type));
      }
      return message.header(
          expected == MessageHeader.Schema
              ? new org.apache.arrow.flatbuf.Schema()
              : new RecordBatch());
    } catch (RuntimeException e) {
      throw damaged(e);
    }
  }

  private static String typeName(byte type) {
    return switch (type) {
      case MessageHeader.Schema -> "a schema";
      case MessageHeader.DictionaryBatch -> "a dictionary";
      case MessageHeader.RecordBatch -> "a record batch";
      default -> "message type " + type;
    };
  }

  private static MalformedArrowException damaged(Throwable cause) {
    return new MalformedArrowException(damage("the message metadata", cause), cause);
  }

  /** What to say of metadata that cannot be parsed. Where an offset is wrong, anything may fail. */
  static String damage(String what, Throwable cause) {
    boolean speaksForItself =
        cause instanceof IllegalArgumentException || cause instanceof UnsupportedOperationException;
    return what
        + " is damaged: "
        + (speaksForItself ? cause.getMessage() : "offsets in it are wrong");
  }

  /**
   * The batch that {@code message} describes over {@code body}, which stays the caller's. Buffers
   * are slices of it, or new ones where they are compressed.
   *
   * @param copied bytes that were copied to get {@code body}
   */
  static ArrowBatch batch(
      BatchSchema schema, Message message, ArrowBuf body, long copied, BufferAllocator allocator)
      throws MalformedArrowException {
    RecordBatch record = (RecordBatch) header(message, MessageHeader.RecordBatch);
    long rows;
    long[] lengths;
    long[] nullCounts;
    long[] offsets;
    long[] sizes;
    byte compression;
    try {
      rows = record.length();
      compression = compressionOf(record);
      BatchChecks.expectCount("nodes", schema.nodeCount(), record.nodesLength());
      lengths = new long[schema.nodeCount()];
      nullCounts = new long[lengths.length];
      FieldNode node = new FieldNode();
      for (int i = 0; i < lengths.length; i++) {
        record.nodes(node, i);
        lengths[i] = node.length();
        nullCounts[i] = node.nullCount();
      }
      BatchChecks.expectCount("buffers", schema.bufferCount(), record.buffersLength());
      offsets = new long[schema.bufferCount()];
      sizes = new long[offsets.length];
      Buffer buffer = new Buffer();
      for (int i = 0; i < offsets.length; i++) {
        record.buffers(buffer, i);
        offsets[i] = buffer.offset();
        sizes[i] = buffer.length();
      }
    } catch (RuntimeException e) {
      throw damaged(e);
    }
    ArrowBuf[] buffers = new ArrowBuf[offsets.length];
    for (int i = 0; i < buffers.length; i++) {
      buffers[i] = slice(schema, i, body, offsets[i], sizes[i]);
    }
    if (buffers.length > 0) {
      body.getReferenceManager().retain(buffers.length);
    }
    if (compression != NOT_COMPRESSED) {
      copied += decompress(schema, buffers, compression, allocator);
    }
    return ArrowBatch.adoptChecked(schema, rows, lengths, nullCounts, buffers, copied, false);
  }

  private static final byte NOT_COMPRESSED = -1;

  private static byte compressionOf(RecordBatch record) throws MalformedArrowException {
    BodyCompression compression = record.compression();
    if (compression == null) {
      return NOT_COMPRESSED;
    }
    if (compression.method() != BodyCompressionMethod.BUFFER
        || compression.codec() < 0
        || compression.codec() >= CompressionType.names.length) {
      throw new MalformedArrowException(
          "record batch: expected compression LZ4_FRAME or ZSTD by buffer, got codec "
              + compression.codec()
              + ", method "
              + compression.method());
    }
    return compression.codec();
  }

  /** Lent, not retained. */
  private static ArrowBuf slice(
      BatchSchema schema, int index, ArrowBuf body, long offset, long size)
      throws MalformedArrowException {
    if (offset < 0 || size < 0 || offset > body.capacity() || size > body.capacity() - offset) {
      throw new MalformedArrowException(
          "column "
              + schema.columnOfBuffer(index)
              + ": expected a buffer within the body of "
              + body.capacity()
              + " bytes, got bytes "
              + offset
              + " to "
              + (offset + size));
    }
    if (offset % 8 != 0 && size > 0) {
      throw new MalformedArrowException(
          "column "
              + schema.columnOfBuffer(index)
              + ": expected a buffer at a multiple of 8 bytes, got offset "
              + offset);
    }
    return body.slice(offset, size);
  }

  /**
   * Decompresses each of {@code buffers} in its place; releases them all if it throws.
   *
   * @return bytes that were decompressed
   */
  private static long decompress(
      BatchSchema schema, ArrowBuf[] buffers, byte codec, BufferAllocator allocator)
      throws MalformedArrowException {
    long bytes = 0;
    boolean done = false;
    try {
      for (int i = 0; i < buffers.length; i++) {
        ArrowBuf stored = buffers[i];
        buffers[i] = decompress(schema, i, stored, codec, allocator);
        if (buffers[i].getReferenceManager() != stored.getReferenceManager()) {
          bytes += buffers[i].readableBytes();
        }
      }
      done = true;
      return bytes;
    } finally {
      if (!done) {
        ArrowBatch.release(buffers);
      }
    }
  }

  /** Releases {@code compressed} if it returns a buffer of another memory. */
  private static ArrowBuf decompress(
      BatchSchema schema, int index, ArrowBuf compressed, byte codec, BufferAllocator allocator)
      throws MalformedArrowException {
    long stored = compressed.capacity();
    if (stored == 0) {
      return compressed;
    }
    String column = schema.columnOfBuffer(index);
    if (stored < Long.BYTES) {
      throw new MalformedArrowException(
          "column " + column + ": expected 8 bytes of length before the data, got " + stored);
    }
    long size = compressed.getLong(0);
    if (size == STORED) {
      return compressed.slice(Long.BYTES, stored - Long.BYTES);
    }
    if (size < 0) {
      throw new MalformedArrowException(
          "column " + column + ": expected a decompressed size of 0 or more, got " + size);
    }
    ArrowBuf plain;
    try {
      plain = allocator.buffer(size);
    } catch (OutOfMemoryException | IllegalArgumentException e) {
      throw new MalformedArrowException(
          "column " + column + ": no memory for " + size + " decompressed bytes", e);
    }
    boolean done = false;
    try {
      long got =
          codec == CompressionType.ZSTD
              ? unzstd(compressed, plain, size)
              : unlz4(compressed, plain, size);
      if (got != size) {
        throw new MalformedArrowException(
            "column " + column + ": expected " + size + " decompressed bytes, got " + got);
      }
      plain.writerIndex(size);
      done = true;
    } catch (IOException | RuntimeException e) {
      if (e instanceof MalformedArrowException malformed) {
        throw malformed;
      }
      throw new MalformedArrowException(
          "column "
              + column
              + ": the "
              + CompressionType.name(codec)
              + " data is damaged: "
              + e.getMessage(),
          e);
    } finally {
      if (!done) {
        plain.close();
      }
    }
    compressed.getReferenceManager().release();
    return plain.slice(0, size);
  }

  private static long unzstd(ArrowBuf compressed, ArrowBuf plain, long size) throws IOException {
    long got =
        com.github.luben.zstd.Zstd.decompressUnsafe(
            plain.memoryAddress(),
            size,
            compressed.memoryAddress() + Long.BYTES,
            compressed.capacity() - Long.BYTES);
    if (com.github.luben.zstd.Zstd.isError(got)) {
      throw new IOException(com.github.luben.zstd.Zstd.getErrorName(got));
    }
    return got;
  }

  private static long unlz4(ArrowBuf compressed, ArrowBuf plain, long size) throws IOException {
    byte[] chunk = new byte[64 * 1024];
    long at = 0;
    try (InputStream in = new FramedLZ4CompressorInputStream(new BufferInput(compressed))) {
      for (int n = in.read(chunk); n >= 0; n = in.read(chunk)) {
        if (n > size - at) {
          return at + n;
        }
        plain.setBytes(at, chunk, 0, n);
        at += n;
      }
    }
    return at;
  }

  /** Reads a buffer behind the eight bytes of its decompressed length. */
  private static final class BufferInput extends InputStream {
    private final ArrowBuf buffer;
    private long at = Long.BYTES;

    BufferInput(ArrowBuf buffer) {
      this.buffer = buffer;
    }

    @Override
    public int read() {
      return at < buffer.capacity() ? MemoryUtil.getByte(buffer.memoryAddress() + at++) & 0xff : -1;
    }

    @Override
    public int read(byte[] target, int offset, int length) {
      if (at >= buffer.capacity()) {
        return length == 0 ? 0 : -1;
      }
      int n = (int) Math.min(length, buffer.capacity() - at);
      buffer.getBytes(at, target, offset, n);
      at += n;
      return n;
    }
  }

  /**
   * The metadata of a record batch message whose buffers lie at {@code offsets} of the body, in
   * memory of {@code builder}.
   */
  static ByteBuffer metadata(
      FlatBufferBuilder builder,
      ArrowBatch batch,
      long[] offsets,
      long[] sizes,
      long bodyLength,
      Compression compression) {
    builder.clear();
    int nodeCount = batch.schema().nodeCount();
    RecordBatch.startNodesVector(builder, nodeCount);
    for (int i = nodeCount - 1; i >= 0; i--) {
      FieldNode.createFieldNode(builder, batch.nodeLength(i), batch.nullCount(i));
    }
    int nodes = builder.endVector();
    RecordBatch.startBuffersVector(builder, offsets.length);
    for (int i = offsets.length - 1; i >= 0; i--) {
      Buffer.createBuffer(builder, offsets[i], sizes[i]);
    }
    int buffers = builder.endVector();
    int body =
        compression == Compression.NONE
            ? 0
            : BodyCompression.createBodyCompression(
                builder, compression.flatbufferType(), BodyCompressionMethod.BUFFER);
    RecordBatch.startRecordBatch(builder);
    RecordBatch.addLength(builder, batch.numRows());
    RecordBatch.addNodes(builder, nodes);
    RecordBatch.addBuffers(builder, buffers);
    if (body != 0) {
      RecordBatch.addCompression(builder, body);
    }
    int record = RecordBatch.endRecordBatch(builder);
    builder.finish(
        Message.createMessage(
            builder, MetadataVersion.V5, MessageHeader.RecordBatch, record, bodyLength, 0));
    return builder.dataBuffer();
  }
}
