// SPDX-License-Identifier: Apache-2.0
package io.broadhead.flink;

import java.util.Collection;
import org.apache.flink.state.rocksdb.RocksDBOptionsFactory;
import org.rocksdb.ColumnFamilyOptions;
import org.rocksdb.DBOptions;

/**
 * For {@code state.backend.rocksdb.options-factory}: RocksDB rewrites its files, and incremental
 * checkpoints then upload them again. Keys and values of tokens never change and are read only to
 * be swapped in or restored, so it pays to let files gather, and many have become superfluous with
 * their sequences by the time that they are rewritten.
 */
public final class KvCacheRocksDBOptions implements RocksDBOptionsFactory {
  private static final long serialVersionUID = 1;

  /** Files of a state, at least one for each checkpoint, before they are rewritten. */
  static final int FILES = 100;

  /** Files are rewritten for their number only, not for their size. */
  private static final long MOST_BYTES = 1L << 50;

  @Override
  public DBOptions createDBOptions(DBOptions options, Collection<AutoCloseable> handlesToClose) {
    return options;
  }

  @Override
  public ColumnFamilyOptions createColumnOptions(
      ColumnFamilyOptions options, Collection<AutoCloseable> handlesToClose) {
    return options
        .setMaxBytesForLevelBase(MOST_BYTES)
        .setLevel0FileNumCompactionTrigger(FILES)
        .setLevel0SlowdownWritesTrigger(4 * FILES)
        .setLevel0StopWritesTrigger(8 * FILES);
  }
}
