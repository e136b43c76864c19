// SPDX-License-Identifier: Apache-2.0
package io.broadhead.attention.cache;

import java.nio.ByteBuffer;
import java.util.List;

/** Moves parts of blocks between the pool and byte arrays. Used by one thread. */
final class PartContents {
  /** The caches of a block are divided among parts of at most this many bytes, or one cache's. */
  static final int PART_BYTES = 1 << 20;

  private final BlockMemory memory;
  private final int blockSize;

  PartContents(BlockMemory memory, int blockSize) {
    this.memory = memory;
    this.blockSize = blockSize;
  }

  /** Bytes of the keys and values of {@code tokens} tokens. */
  int bytes(int cache, int tokens) {
    return Math.multiplyExact(2 * tokens, memory.tokenBytes(cache));
  }

  /** Reads a part of the block at {@code place}. */
  byte[] read(int place, BlockPart part) {
    int size = 0;
    for (int cache = part.firstCache(); cache < part.endCache(); cache++) {
      size += bytes(cache, part.to() - part.from());
    }
    ByteBuffer contents = ByteBuffer.allocate(size);
    for (int cache = part.firstCache(); cache < part.endCache(); cache++) {
      ByteBuffer image = memory.read(cache, place);
      contents.put(tokens(image, cache, part, 0)).put(tokens(image, cache, part, blockSize));
    }
    return contents.array();
  }

  /** The part's keys in an image, or with {@code first} = block size its values. */
  private ByteBuffer tokens(ByteBuffer image, int cache, BlockPart part, int first) {
    int width = memory.tokenBytes(cache);
    return image.slice((first + part.from()) * width, (part.to() - part.from()) * width);
  }

  /** Writes parts of one block to {@code place}; where they overlap, the last one counts. */
  void write(int place, List<BlockPart> parts, List<byte[]> contents) {
    List<ByteBuffer> sources = contents.stream().map(ByteBuffer::wrap).toList();
    int caches = parts.stream().mapToInt(BlockPart::endCache).max().orElse(0);
    for (int cache = 0; cache < caches; cache++) {
      ByteBuffer image = null;
      for (int i = 0; i < parts.size(); i++) {
        BlockPart part = parts.get(i);
        if (part.firstCache() <= cache && cache < part.endCache()) {
          image = image == null ? memory.image(cache) : image;
          move(sources.get(i), tokens(image, cache, part, 0));
          move(sources.get(i), tokens(image, cache, part, blockSize));
        }
      }
      if (image != null) {
        memory.write(cache, place);
      }
    }
  }

  private static void move(ByteBuffer from, ByteBuffer to) {
    int size = to.remaining();
    to.put(from.slice(from.position(), size));
    from.position(from.position() + size);
  }
}
