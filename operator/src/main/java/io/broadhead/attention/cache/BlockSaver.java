// SPDX-License-Identifier: Apache-2.0
package io.broadhead.attention.cache;

import java.nio.ByteBuffer;
import java.util.ArrayList;
import java.util.List;

/**
 * Carries the contents of blocks from the pool to the store and back. Every token goes to the store
 * once: what was saved before is never written again. Used by one thread.
 */
final class BlockSaver {
  /** Caches are divided among parts of about this many bytes. */
  private static final int PART_BYTES = 1 << 20;

  private final BlockMemory memory;
  private final PartStore store;
  private final int blockSize;

  BlockSaver(BlockMemory memory, PartStore store, int blockSize) {
    this.memory = memory;
    this.store = store;
    this.blockSize = blockSize;
  }

  /** Puts what was written since the last time into the store; answers how many bytes that were. */
  long save(CacheBlock block) {
    long bytes = 0;
    int caches = block.written.length;
    for (int first = 0, end; first < caches; first = end) {
      int from = block.saved[first];
      int to = block.written[first];
      end = first + 1;
      if (from < to) {
        int size = bytes(first, to - from);
        while (end < caches
            && block.saved[end] == from
            && block.written[end] == to
            && size + bytes(end, to - from) <= PART_BYTES) {
          size += bytes(end++, to - from);
        }
        BlockPart part = new BlockPart(block.parts.size(), first, end, from, to);
        store.put(block.shard.key, block.id, part.number(), contents(block, part, size));
        block.parts.add(part);
        for (int cache = first; cache < end; cache++) {
          block.saved[cache] = to;
        }
        bytes += size;
      }
    }
    return bytes;
  }

  /** Bytes of keys and values of {@code tokens} tokens. */
  private int bytes(int cache, int tokens) {
    return Math.multiplyExact(2 * tokens, memory.tokenBytes(cache));
  }

  private byte[] contents(CacheBlock block, BlockPart part, int size) {
    ByteBuffer contents = ByteBuffer.allocate(size);
    for (int cache = part.firstCache(); cache < part.endCache(); cache++) {
      ByteBuffer image = memory.read(cache, block.place);
      contents.put(tokens(image, cache, part, 0)).put(tokens(image, cache, part, blockSize));
    }
    return contents.array();
  }

  /** The part's keys in an image, or with {@code first} = block size its values. */
  private ByteBuffer tokens(ByteBuffer image, int cache, BlockPart part, int first) {
    int width = memory.tokenBytes(cache);
    return image.slice((first + part.from()) * width, (part.to() - part.from()) * width);
  }

  /** Fills the place of a block that has just got one from the store. */
  void load(CacheBlock block) {
    List<ByteBuffer> contents = new ArrayList<>();
    for (BlockPart part : block.parts) {
      contents.add(ByteBuffer.wrap(store.get(block.shard.key, block.id, part.number())));
    }
    for (int cache = 0; cache < block.written.length; cache++) {
      if (block.saved[cache] > 0) {
        ByteBuffer image = memory.image(cache);
        for (int i = 0; i < contents.size(); i++) {
          BlockPart part = block.parts.get(i);
          if (part.firstCache() <= cache && cache < part.endCache()) {
            move(contents.get(i), tokens(image, cache, part, 0));
            move(contents.get(i), tokens(image, cache, part, blockSize));
          }
        }
        memory.write(cache, block.place);
      }
    }
  }

  private static void move(ByteBuffer from, ByteBuffer to) {
    int size = to.remaining();
    to.put(from.slice(from.position(), size));
    from.position(from.position() + size);
  }

  /** Removes a block that nobody will ask for again from the store. */
  void remove(CacheBlock block) {
    for (BlockPart part : block.parts) {
      store.remove(block.shard.key, block.id, part.number());
    }
    block.parts.clear();
  }
}
