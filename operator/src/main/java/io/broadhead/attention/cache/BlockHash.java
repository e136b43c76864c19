// SPDX-License-Identifier: Apache-2.0
package io.broadhead.attention.cache;

import java.nio.ByteBuffer;
import java.security.MessageDigest;
import java.security.NoSuchAlgorithmException;

/**
 * What a full block holds: the first 128 bits of a SHA-256 over the hash of the block before it and
 * its own token ids. Equal hashes mean equal tokens from the start of the sequence on, and so equal
 * keys and values. Immutable.
 */
record BlockHash(long high, long low) {
  static final int BYTES = 16;

  /** Stands before the first block of a sequence. */
  static final BlockHash START = new BlockHash(0, 0);

  /** The hash of a block with {@code tokenIds} behind one with {@code before}. */
  static BlockHash of(BlockHash before, long[] tokenIds) {
    ByteBuffer bytes = ByteBuffer.allocate(BYTES + Long.BYTES * tokenIds.length);
    bytes.putLong(before.high).putLong(before.low);
    for (long id : tokenIds) {
      bytes.putLong(id);
    }
    ByteBuffer digest = ByteBuffer.wrap(sha256().digest(bytes.array()));
    return new BlockHash(digest.getLong(), digest.getLong());
  }

  // By hand where tasks compare: see "Class loaders" in flink-job/cluster/README.md.
  @Override
  public boolean equals(Object other) {
    return other instanceof BlockHash o && high == o.high && low == o.low;
  }

  @Override
  public int hashCode() {
    return Long.hashCode(low);
  }

  private static MessageDigest sha256() {
    try {
      return MessageDigest.getInstance("SHA-256");
    } catch (NoSuchAlgorithmException e) {
      throw new IllegalStateException("every Java platform has SHA-256", e);
    }
  }
}
