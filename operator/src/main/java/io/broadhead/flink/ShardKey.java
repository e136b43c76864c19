// SPDX-License-Identifier: Apache-2.0
package io.broadhead.flink;

import io.broadhead.arrow.ArrowBatch;
import io.broadhead.arrow.ArrowColumn;
import io.broadhead.arrow.StepColumns;
import io.broadhead.attention.InvalidBatchException;
import io.broadhead.kernel.ErrorCode;
import java.util.HashMap;
import java.util.Map;
import org.apache.arrow.vector.types.pojo.ArrowType;
import org.apache.arrow.vector.types.pojo.Field;
import org.apache.flink.api.java.functions.KeySelector;
import org.apache.flink.runtime.state.KeyGroupRangeAssignment;

/**
 * The Flink key of a batch whose rows are all of one shard, as {@link ShardSplitter} makes them.
 *
 * <p>A sequence's shard is a hash of its id modulo the number of shards, or of its group where the
 * producer says which sequences belong together. Flink hashes keys once more to find their key
 * group, which would put several of a few shards onto one subtask; each shard's key is therefore
 * chosen so that the shards' key groups are evenly spaced: with as many shards as subtasks, or a
 * multiple, every subtask has the same number.
 */
public final class ShardKey implements KeySelector<ArrowBatch, Integer> {
  private static final long serialVersionUID = 1;

  private static final ArrowType INT64 = new ArrowType.Int(64, true);

  private final int[] keys;

  /**
   * @param shards 1 to {@code maxParallelism}
   * @param maxParallelism that of the keyed operator
   */
  public ShardKey(int shards, int maxParallelism) {
    if (shards < 1 || shards > maxParallelism) {
      throw new IllegalArgumentException(
          PagedAttentionOptions.SHARDS.key()
              + ": expected 1 to the maximum parallelism "
              + maxParallelism
              + ", got "
              + shards);
    }
    Map<Integer, Integer> shardOfKeyGroup = new HashMap<>();
    for (int shard = 0; shard < shards; shard++) {
      shardOfKeyGroup.put((int) (((long) shard * maxParallelism + shards - 1) / shards), shard);
    }
    keys = new int[shards];
    for (int key = 0; !shardOfKeyGroup.isEmpty(); key++) {
      Integer shard =
          shardOfKeyGroup.remove(KeyGroupRangeAssignment.assignToKeyGroup(key, maxParallelism));
      if (shard != null) {
        keys[shard] = key;
      }
    }
  }

  @Override
  public Integer getKey(ArrowBatch batch) {
    return keys[batch.numRows() == 0 ? 0 : shardOf(batch, 0, keys.length)];
  }

  /** The shard of each row. */
  static int[] shards(ArrowBatch batch, int shards) {
    int[] result = new int[batch.numRows()];
    for (int row = 0; row < result.length; row++) {
      result[row] = shardOf(batch, row, shards);
    }
    return result;
  }

  private static int shardOf(ArrowBatch batch, int row, int shards) {
    boolean grouped =
        batch.schema().contains(StepColumns.SEQUENCE_GROUP)
            && !batch.column(StepColumns.SEQUENCE_GROUP).isNull(row);
    return shardOf(
        batch, grouped ? StepColumns.SEQUENCE_GROUP : StepColumns.SEQUENCE_ID, row, shards);
  }

  private static int shardOf(ArrowBatch batch, String name, int row, int shards) {
    int column = batch.schema().index(name);
    Field field = column < 0 ? null : batch.schema().field(column);
    ArrowColumn ids = column < 0 ? null : batch.column(name);
    if (ids != null && ids.isNull(row)) {
      return 0;
    }
    if (ids != null && field.getType() instanceof ArrowType.Utf8) {
      return shardOf(ids.getBytes(row), shards);
    }
    if (ids != null && field.getType().equals(INT64)) {
      return shardOf(ids.getLong(row), shards);
    }
    throw new InvalidBatchException(
        ErrorCode.SCHEMA_MISMATCH,
        -1,
        "column "
            + name
            + ": expected int64 or utf8, got "
            + (field == null ? "no such column" : field),
        null);
  }

  static int shardOf(long id, int shards) {
    // The finaliser of SplitMix64: neighbouring ids spread evenly.
    long hash = id;
    hash = (hash ^ hash >>> 30) * 0xbf58476d1ce4e5b9L;
    hash = (hash ^ hash >>> 27) * 0x94d049bb133111ebL;
    hash ^= hash >>> 31;
    return (int) Long.remainderUnsigned(hash, shards);
  }

  static int shardOf(byte[] id, int shards) {
    long hash = 0xcbf29ce484222325L;
    for (byte b : id) {
      hash = (hash ^ (b & 0xff)) * 0x100000001b3L;
    }
    return shardOf(hash, shards);
  }
}
