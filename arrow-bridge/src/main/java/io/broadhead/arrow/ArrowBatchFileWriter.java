// SPDX-License-Identifier: Apache-2.0
package io.broadhead.arrow;

import com.google.flatbuffers.FlatBufferBuilder;
import java.io.IOException;
import java.io.OutputStream;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.channels.FileChannel;
import java.nio.channels.WritableByteChannel;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardCopyOption;
import java.nio.file.StandardOpenOption;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.UUID;
import org.apache.arrow.memory.ArrowBuf;
import org.apache.arrow.memory.BufferAllocator;
import org.apache.arrow.vector.ipc.message.ArrowBlock;
import org.apache.arrow.vector.ipc.message.ArrowFooter;

/**
 * Writes an Arrow IPC file whose message bodies and buffers lie at multiples of 64 bytes, so that a
 * reader that maps it gets aligned memory.
 *
 * <p>A file at a path is written under the name {@code <name>.tmp-...} beside it and renamed by
 * {@link #finish()}: a file with the right name is complete. Closing without finishing removes what
 * was written. Used by one thread.
 */
public final class ArrowBatchFileWriter implements AutoCloseable {
  /** What the names of unfinished files contain. */
  public static final String UNFINISHED = ".tmp-";

  private static final byte[] PADDING = new byte[(int) Allocators.ALIGNMENT];
  private static final int WRITE = 1 << 30;

  /** Bytes that are gathered before they are written: a small batch is many pieces. */
  private static final int GATHERED = 64 * 1024;

  /** A piece of more bytes is written from where it is. */
  private static final int SMALL = 16 * 1024;

  private final WritableByteChannel out;
  private final String name;
  private final ByteBuffer gathered = ByteBuffer.allocate(GATHERED).order(ByteOrder.LITTLE_ENDIAN);
  private final FlatBufferBuilder builder = new FlatBufferBuilder(1024);
  private final Path target;
  private final Path unfinished;
  private final Compression compression;
  private final BufferAllocator allocator;
  private final List<ArrowBlock> blocks = new ArrayList<>();
  private BatchSchema schema;

  /** Of the last record: small batches are often alike. */
  private long[] lastShape;

  private ByteBuffer lastMetadata;
  private long position;
  private boolean finished;
  private boolean closed;

  private ArrowBatchFileWriter(
      WritableByteChannel out,
      String name,
      Path target,
      Path unfinished,
      Compression compression,
      BufferAllocator allocator) {
    this.out = out;
    this.name = name;
    this.target = target;
    this.unfinished = unfinished;
    this.compression = compression;
    this.allocator = allocator;
  }

  /** Writes the file {@code target}; compressed buffers are made with {@code allocator}. */
  public static ArrowBatchFileWriter create(
      Path target, Compression compression, BufferAllocator allocator) throws IOException {
    Path unfinished =
        target.resolveSibling(
            target.getFileName() + UNFINISHED + UUID.randomUUID().toString().substring(0, 8));
    WritableByteChannel out =
        FileChannel.open(unfinished, StandardOpenOption.CREATE_NEW, StandardOpenOption.WRITE);
    return new ArrowBatchFileWriter(
        out, target.toString(), target, unfinished, compression, allocator);
  }

  /**
   * Writes to {@code out}, which stays the caller's and is not closed.
   *
   * @param name of the file, for errors
   */
  public static ArrowBatchFileWriter to(
      OutputStream out, String name, Compression compression, BufferAllocator allocator) {
    return new ArrowBatchFileWriter(
        new StreamChannel(out), name, null, null, compression, allocator);
  }

  /** Unlike Java's own, passes arrays on as they are. */
  private static final class StreamChannel implements WritableByteChannel {
    private final OutputStream stream;
    private final byte[] chunk = new byte[GATHERED];

    StreamChannel(OutputStream stream) {
      this.stream = stream;
    }

    @Override
    public int write(ByteBuffer bytes) throws IOException {
      int length = bytes.remaining();
      if (bytes.hasArray()) {
        stream.write(bytes.array(), bytes.arrayOffset() + bytes.position(), length);
        bytes.position(bytes.limit());
        return length;
      }
      while (bytes.hasRemaining()) {
        int part = Math.min(chunk.length, bytes.remaining());
        bytes.get(chunk, 0, part);
        stream.write(chunk, 0, part);
      }
      return length;
    }

    @Override
    public boolean isOpen() {
      return true;
    }

    /** The stream is the caller's. */
    @Override
    public void close() {}
  }

  /** Sets the schema of a file that may get no batch; the first batch sets it otherwise. */
  public void start(BatchSchema fileSchema) throws IOException {
    if (schema != null) {
      throw new IllegalStateException("the schema of this file is already written");
    }
    schema = fileSchema;
    room(8).put(ArrowFile.MAGIC).putShort((short) 0);
    // The message bytes come framed: continuation, length, metadata.
    byte[] message = fileSchema.sharedBytes();
    ByteBuffer framed = ByteBuffer.wrap(message).order(ByteOrder.LITTLE_ENDIAN);
    boolean continued = framed.getInt(0) == IpcMessages.CONTINUATION;
    writeMetadata(framed.position(continued ? 8 : 4).slice());
  }

  /**
   * Appends {@code batch}, which stays the caller's.
   *
   * @throws IllegalArgumentException if its schema is not that of the file
   */
  public void write(ArrowBatch batch) throws IOException {
    if (finished) {
      throw new IllegalStateException("this file is finished");
    }
    if (schema == null) {
      start(batch.schema());
    }
    if (!batch.schema().equals(schema)) {
      throw new IllegalArgumentException(
          "batch " + blocks.size() + ": expected the schema " + schema + ", got " + batch.schema());
    }
    if (compression == Compression.NONE) {
      writeRecord(batch, batch.liveBuffers());
      return;
    }
    ArrowBuf[] compressed = new ArrowBuf[schema.bufferCount()];
    try {
      for (int i = 0; i < compressed.length; i++) {
        compressed[i] = batch.retained(i); // until it was replaced
        compressed[i] = compressed(compressed[i]);
      }
      writeRecord(batch, compressed);
    } finally {
      ArrowBatch.release(compressed);
    }
  }

  /** Takes {@code buffer} over. */
  private ArrowBuf compressed(ArrowBuf buffer) {
    return buffer.readableBytes() == 0 ? buffer : compression.codec().compress(allocator, buffer);
  }

  private void writeRecord(ArrowBatch batch, ArrowBuf[] buffers) throws IOException {
    long[] shape = shape(batch, buffers);
    if (!Arrays.equals(shape, lastShape)) {
      lastMetadata = metadata(batch, buffers);
      lastShape = shape;
    }
    long start = position;
    writeMetadata(lastMetadata.duplicate());
    long body = position;
    for (ArrowBuf buffer : buffers) {
      write(buffer);
      pad();
    }
    blocks.add(new ArrowBlock(start, (int) (body - start), position - body));
  }

  /** All numbers that a record's metadata is made of. */
  private static long[] shape(ArrowBatch batch, ArrowBuf[] buffers) {
    int nodes = batch.schema().nodeCount();
    long[] shape = new long[1 + 2 * nodes + buffers.length];
    int at = 0;
    shape[at++] = batch.numRows();
    for (int i = 0; i < nodes; i++) {
      shape[at++] = batch.nodeLength(i);
      shape[at++] = batch.nullCount(i);
    }
    for (ArrowBuf buffer : buffers) {
      shape[at++] = buffer.readableBytes();
    }
    return shape;
  }

  private ByteBuffer metadata(ArrowBatch batch, ArrowBuf[] buffers) {
    long[] offsets = new long[buffers.length];
    long[] sizes = new long[buffers.length];
    long bodyLength = 0;
    for (int i = 0; i < buffers.length; i++) {
      offsets[i] = bodyLength;
      sizes[i] = buffers[i].readableBytes();
      bodyLength += Allocators.roundUp(sizes[i]);
    }
    return IpcMessages.metadata(builder, batch, offsets, sizes, bodyLength, compression);
  }

  /** Writes a message's frame and metadata, filled up so that what follows is aligned. */
  private void writeMetadata(ByteBuffer metadata) throws IOException {
    long end = Allocators.roundUp(position + 8 + metadata.remaining());
    int length = (int) (end - position - 8);
    room(8).putInt(IpcMessages.CONTINUATION).putInt(length);
    write(metadata);
    pad();
  }

  private void pad() throws IOException {
    int missing = (int) (Allocators.roundUp(position) - position);
    room(missing).put(PADDING, 0, missing);
  }

  private void write(ArrowBuf buffer) throws IOException {
    long size = buffer.readableBytes();
    if (size <= SMALL) {
      ByteBuffer room = room((int) size);
      buffer.getBytes(0, room.array(), room.position(), (int) size);
      room.position(room.position() + (int) size);
      return;
    }
    for (long at = 0; at < size; at += WRITE) {
      write(buffer.nioBuffer(at, (int) Math.min(WRITE, size - at)));
    }
  }

  private void write(ByteBuffer bytes) throws IOException {
    int length = bytes.remaining();
    if (length <= SMALL) {
      room(length).put(bytes);
      return;
    }
    drainGathered();
    position += length;
    drain(bytes);
  }

  /** Where the next {@code length} bytes go, which are at most {@link #SMALL}. */
  private ByteBuffer room(int length) throws IOException {
    if (length > gathered.remaining()) {
      drainGathered();
    }
    position += length;
    return gathered;
  }

  private void drainGathered() throws IOException {
    drain(gathered.flip());
    gathered.clear();
  }

  private void drain(ByteBuffer bytes) throws IOException {
    try {
      while (bytes.hasRemaining()) {
        out.write(bytes);
      }
    } catch (IOException e) {
      throw FileFailure.of(name, e);
    }
  }

  /** Batches written so far. */
  public int batchCount() {
    return blocks.size();
  }

  /** Bytes of the file so far, some of which may still be gathered. */
  public long position() {
    return position;
  }

  /**
   * Writes the footer and gives the file its name. Without a schema, that is without a batch and
   * without {@link #start}, there is nothing to write and no file appears.
   */
  public void finish() throws IOException {
    if (finished || schema == null) {
      return;
    }
    room(8).putInt(IpcMessages.CONTINUATION).putInt(0);
    builder.clear();
    builder.finish(new ArrowFooter(schema.arrow(), List.of(), blocks).writeTo(builder));
    ByteBuffer footer = builder.dataBuffer();
    int footerLength = footer.remaining();
    write(footer);
    room(4 + ArrowFile.MAGIC.length).putInt(footerLength).put(ArrowFile.MAGIC);
    drainGathered();
    finished = true;
    if (target != null) {
      out.close();
      Files.move(unfinished, target, StandardCopyOption.ATOMIC_MOVE);
    }
  }

  @Override
  public void close() throws IOException {
    if (closed) {
      return;
    }
    closed = true;
    if (target != null) {
      out.close();
      Files.deleteIfExists(unfinished);
    }
  }
}
