// SPDX-License-Identifier: Apache-2.0
package io.broadhead.arrow;

import java.io.IOException;
import java.io.InputStream;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.channels.Channels;
import java.nio.channels.ReadableByteChannel;
import org.apache.arrow.flatbuf.Message;
import org.apache.arrow.memory.ArrowBuf;
import org.apache.arrow.memory.BufferAllocator;
import org.apache.arrow.memory.OutOfMemoryException;

/**
 * The batches of an Arrow IPC stream, read one after the other. Bodies are read into memory of the
 * allocator. Owns the stream; its owner closes it. Used by one thread.
 */
public final class ArrowStreamBatches implements AutoCloseable {
  private static final int READ = 1 << 30;

  /** More than a message needs, and less than the first bytes of other formats stand for. */
  private static final int MAX_METADATA = 16 * 1024 * 1024;

  private final String name;
  private final ReadableByteChannel in;
  private final BufferAllocator allocator;
  private final BatchSchema schema;
  private int index = -1;

  /**
   * Reads the schema.
   *
   * @param name what messages call the stream
   * @throws MalformedArrowException if the bytes are no Arrow IPC stream
   */
  public ArrowStreamBatches(String name, InputStream in, BufferAllocator allocator)
      throws IOException {
    this.name = name;
    this.in = Channels.newChannel(in);
    this.allocator = allocator;
    boolean ok = false;
    try {
      this.schema = IpcMessages.schema(readFirstMessage());
      ok = true;
    } catch (MalformedArrowException e) {
      throw new MalformedArrowException(name + ": " + e.getMessage(), e);
    } finally {
      if (!ok) {
        this.in.close();
      }
    }
  }

  /** Index of the batch that {@link #next()} returned last, -1 before the first. */
  public int index() {
    return index;
  }

  /**
   * The next batch, which the caller closes, or null at the end of the stream.
   *
   * @throws MalformedArrowException naming stream, batch and column if it is damaged
   */
  public ArrowBatch next() throws IOException {
    try {
      Message message = readMessage();
      if (message == null) {
        return null;
      }
      index++;
      try (ArrowBuf body = readBody(message.bodyLength())) {
        return IpcMessages.batch(schema, message, body, body.capacity(), allocator);
      }
    } catch (MalformedArrowException e) {
      throw new MalformedArrowException(
          name + ", batch " + Math.max(0, index) + ": " + e.getMessage(), e);
    }
  }

  private Message readFirstMessage() throws IOException {
    try {
      Message message = readMessage();
      if (message != null) {
        return message;
      }
    } catch (MalformedArrowException e) {
      throw new MalformedArrowException(
          "neither an Arrow IPC file nor a stream, or a damaged one: " + e.getMessage(), e);
    }
    throw new MalformedArrowException("expected a schema, got the end of the stream");
  }

  private Message readMessage() throws IOException {
    ByteBuffer prefix = ByteBuffer.allocate(4).order(ByteOrder.LITTLE_ENDIAN);
    if (!readFully(prefix, true)) {
      return null;
    }
    int length = prefix.getInt(0);
    if (length == IpcMessages.CONTINUATION) {
      prefix.clear();
      readFully(prefix, false);
      length = prefix.getInt(0);
    }
    if (length == 0) {
      return null;
    }
    if (length < 0 || length > MAX_METADATA) {
      throw new MalformedArrowException(
          "expected the length of a message of 0 to " + MAX_METADATA + " bytes, got " + length);
    }
    ByteBuffer metadata = ByteBuffer.allocate(length);
    readFully(metadata, false);
    return IpcMessages.message(metadata.flip());
  }

  private ArrowBuf readBody(long length) throws IOException {
    ArrowBuf body;
    try {
      body = allocator.buffer(length);
    } catch (OutOfMemoryException | IllegalArgumentException e) {
      throw new MalformedArrowException("no memory for a body of " + length + " bytes", e);
    }
    boolean ok = false;
    try {
      for (long at = 0; at < length; at += READ) {
        readFully(body.nioBuffer(at, (int) Math.min(READ, length - at)), false);
      }
      ok = true;
      return body.slice(0, length);
    } finally {
      if (!ok) {
        body.close();
      }
    }
  }

  /** Fills {@code target}; false if the stream ends before its first byte and may. */
  private boolean readFully(ByteBuffer target, boolean mayEnd) throws IOException {
    int start = target.position();
    while (target.hasRemaining()) {
      if (in.read(target) < 0) {
        if (mayEnd && target.position() == start) {
          return false;
        }
        throw new MalformedArrowException(
            "the stream is truncated: expected " + target.remaining() + " more bytes");
      }
    }
    return true;
  }

  @Override
  public void close() throws IOException {
    in.close();
  }
}
