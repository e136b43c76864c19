// SPDX-License-Identifier: Apache-2.0
package io.broadhead.arrow;

import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.channels.FileChannel;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardOpenOption;
import java.util.Arrays;
import org.apache.arrow.flatbuf.Block;
import org.apache.arrow.flatbuf.Footer;
import org.apache.arrow.flatbuf.Message;
import org.apache.arrow.memory.ArrowBuf;
import org.apache.arrow.memory.BufferAllocator;

/**
 * An Arrow IPC file, memory-mapped. The buffers of an uncompressed batch are slices of the mapping;
 * compressed buffers are decompressed.
 *
 * <p>Its owner closes it; batches that are still open keep what they need of the mapping. Reading
 * is for one thread at a time. The file must not be truncated while it or one of its batches is
 * open: the operating system then ends the process.
 */
public final class ArrowFile implements AutoCloseable {
  static final byte[] MAGIC = "ARROW1".getBytes(StandardCharsets.US_ASCII);

  private static final int HEAD = 8;

  /** Bytes of a block in the footer. */
  private static final int BLOCK = 24;

  private static final int TAIL = Integer.BYTES + MAGIC.length;
  private static final long WINDOW = 1L << 30;

  private final Path path;
  private final BufferAllocator allocator;
  private final FileChannel channel;
  private final long fileSize;
  private final BatchSchema schema;
  private final long[] offsets;
  private final int[] metadataLengths;
  private final long[] bodyLengths;
  private final int[] windowOfBlock;
  private final long[] windowStarts;
  private final long[] windowSizes;
  private MappedWindow window;
  private int windowIndex = -1;
  private boolean closed;

  private ArrowFile(Path path, BufferAllocator allocator, long windowBytes) throws IOException {
    this.path = path;
    this.allocator = allocator;
    this.channel = FileChannel.open(path, StandardOpenOption.READ);
    boolean ok = false;
    try {
      this.fileSize = channel.size();
      Footer footer = readFooter();
      this.schema = IpcMessages.schema(footer.schema());
      int count = footer.recordBatchesLength();
      if (count < 0 || count > fileSize / BLOCK) {
        throw new MalformedArrowException(
            "expected fewer batches than the file has room for, got " + count);
      }
      this.offsets = new long[count];
      this.metadataLengths = new int[count];
      this.bodyLengths = new long[count];
      for (int i = 0; i < count; i++) {
        Block block = footer.recordBatches(i);
        offsets[i] = block.offset();
        metadataLengths[i] = block.metaDataLength();
        bodyLengths[i] = block.bodyLength();
        checkBlock(i);
      }
      this.windowOfBlock = new int[count];
      this.windowStarts = new long[count];
      this.windowSizes = new long[count];
      layOutWindows(windowBytes);
      ok = true;
    } catch (MalformedArrowException e) {
      throw new MalformedArrowException(path + ": " + e.getMessage(), e);
    } catch (RuntimeException e) {
      throw new MalformedArrowException(path + ": " + IpcMessages.damage("the footer", e), e);
    } finally {
      if (!ok) {
        channel.close();
      }
    }
  }

  /**
   * Opens {@code path}; decompressed buffers and the accounting of mapped ones belong to {@code
   * allocator}.
   *
   * @throws MalformedArrowException if it is no Arrow file, or a truncated or damaged one
   */
  public static ArrowFile open(Path path, BufferAllocator allocator) throws IOException {
    return new ArrowFile(path, allocator, WINDOW);
  }

  static ArrowFile open(Path path, BufferAllocator allocator, long windowBytes) throws IOException {
    return new ArrowFile(path, allocator, windowBytes);
  }

  /** Whether {@code path} starts like an Arrow IPC file (not a stream). */
  public static boolean isFile(Path path) throws IOException {
    try (var in = Files.newInputStream(path)) {
      return Arrays.equals(in.readNBytes(MAGIC.length), MAGIC);
    }
  }

  private Footer readFooter() throws IOException {
    ByteBuffer head = readFully(0, (int) Math.min(fileSize, MAGIC.length));
    if (!head.equals(ByteBuffer.wrap(MAGIC))) {
      throw new MalformedArrowException("expected an Arrow IPC file, which starts with ARROW1");
    }
    if (fileSize < HEAD + TAIL) {
      throw truncated();
    }
    ByteBuffer tail = readFully(fileSize - TAIL, TAIL);
    int length = tail.getInt();
    if (!tail.equals(ByteBuffer.wrap(MAGIC))) {
      throw truncated();
    }
    if (length <= 0 || length > fileSize - TAIL - HEAD) {
      throw new MalformedArrowException(
          "expected a footer of 1 to " + (fileSize - TAIL - HEAD) + " bytes, got " + length);
    }
    return Footer.getRootAsFooter(readFully(fileSize - TAIL - length, length));
  }

  private MalformedArrowException truncated() {
    return new MalformedArrowException(
        "the file of "
            + fileSize
            + " bytes is truncated: expected ARROW1 at its end; was its writer closed?");
  }

  private ByteBuffer readFully(long position, int length) throws IOException {
    ByteBuffer buffer = ByteBuffer.allocate(length).order(ByteOrder.LITTLE_ENDIAN);
    while (buffer.hasRemaining()) {
      if (channel.read(buffer, position + buffer.position()) < 0) {
        throw new MalformedArrowException(
            "the file ends at byte " + (position + buffer.position()) + " while it is read");
      }
    }
    return buffer.flip();
  }

  private void checkBlock(int i) throws MalformedArrowException {
    long offset = offsets[i];
    int metadata = metadataLengths[i];
    long body = bodyLengths[i];
    if (offset < HEAD
        || metadata < 8
        || body < 0
        || offset > fileSize
        || body > fileSize
        || offset + metadata + body > fileSize) {
      throw new MalformedArrowException(
          "batch "
              + i
              + ": expected a block within the file of "
              + fileSize
              + " bytes, got "
              + metadata
              + " + "
              + body
              + " bytes at "
              + offset);
    }
    if (offset % 8 != 0 || metadata % 8 != 0) {
      throw new MalformedArrowException(
          "batch "
              + i
              + ": expected a block at a multiple of 8 bytes, got metadata at "
              + offset
              + ", body at "
              + (offset + metadata));
    }
    if (metadata + body > Integer.MAX_VALUE) {
      throw new MalformedArrowException(
          "batch "
              + i
              + ": expected less than 2 GiB, got "
              + body
              + " bytes; write smaller batches");
    }
  }

  /** Puts neighbouring blocks into one mapping as long as it stays below {@code windowBytes}. */
  private void layOutWindows(long windowBytes) {
    int current = -1;
    for (int i = 0; i < offsets.length; i++) {
      long end = offsets[i] + metadataLengths[i] + bodyLengths[i];
      if (current < 0
          || offsets[i] < windowStarts[current]
          || end - windowStarts[current] > windowBytes) {
        current++;
        windowStarts[current] = offsets[i];
        windowSizes[current] = 0;
      }
      windowOfBlock[i] = current;
      windowSizes[current] = Math.max(windowSizes[current], end - windowStarts[current]);
    }
  }

  public Path path() {
    return path;
  }

  public BatchSchema schema() {
    return schema;
  }

  public int batchCount() {
    return offsets.length;
  }

  /** File position of batch {@code i}, by which batches can be divided among readers. */
  public long blockOffset(int i) {
    return offsets[i];
  }

  /** Bytes of batch {@code i} in the file. */
  public long blockLength(int i) {
    return metadataLengths[i] + bodyLengths[i];
  }

  /**
   * Reads batch {@code i}, which the caller closes.
   *
   * @throws MalformedArrowException naming file, batch and column if it is damaged
   */
  public ArrowBatch read(int i) throws IOException {
    if (closed) {
      throw new IllegalStateException(path + " was closed");
    }
    if (i < 0 || i >= offsets.length) {
      throw new IndexOutOfBoundsException(
          path + ": expected a batch from 0 to " + (offsets.length - 1) + ", got " + i);
    }
    try {
      return readBlock(window(windowOfBlock[i]), i);
    } catch (MalformedArrowException e) {
      throw new MalformedArrowException(path + ", batch " + i + ": " + e.getMessage(), e);
    }
  }

  private ArrowBatch readBlock(MappedWindow mapped, int i) throws IOException {
    ByteBuffer prefix = mapped.view(offsets[i], 8).order(ByteOrder.LITTLE_ENDIAN);
    int skip = 4;
    int length = prefix.getInt();
    if (length == IpcMessages.CONTINUATION) {
      length = prefix.getInt();
      skip = 8;
    }
    if (length <= 0 || length > metadataLengths[i] - skip) {
      throw new MalformedArrowException(
          "expected metadata of 1 to " + (metadataLengths[i] - skip) + " bytes, got " + length);
    }
    Message message = IpcMessages.message(mapped.view(offsets[i] + skip, length));
    if (message.bodyLength() > bodyLengths[i]) {
      throw new MalformedArrowException(
          "expected a body of at most " + bodyLengths[i] + " bytes, got " + message.bodyLength());
    }
    try (ArrowBuf body =
        bodyLengths[i] == 0
            ? allocator.getEmpty()
            : mapped.buffer(offsets[i] + metadataLengths[i], bodyLengths[i], allocator)) {
      return IpcMessages.batch(schema, message, body, 0, allocator);
    }
  }

  private MappedWindow window(int index) throws IOException {
    if (index != windowIndex) {
      MappedWindow next = new MappedWindow(channel, windowStarts[index], windowSizes[index]);
      if (window != null) {
        window.release();
      }
      window = next;
      windowIndex = index;
    }
    return window;
  }

  /** Whether {@code address} lies in the part of the file that is mapped now. */
  boolean isMapped(long address) {
    return window != null && window.contains(address);
  }

  @Override
  public void close() throws IOException {
    if (!closed) {
      closed = true;
      if (window != null) {
        window.release();
      }
      channel.close();
    }
  }
}
