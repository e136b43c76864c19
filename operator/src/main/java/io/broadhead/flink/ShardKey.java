// SPDX-License-Identifier: Apache-2.0
package io.broadhead.flink;

import io.broadhead.arrow.ArrowBatch;
import io.broadhead.arrow.ArrowColumn;
import io.broadhead.arrow.StepColumns;
import io.broadhead.arrow.TypeName;
import io.broadhead.attention.InvalidBatchException;
import io.broadhead.kernel.ErrorCode;
import java.util.HashMap;
import java.util.Map;
import java.util.function.IntUnaryOperator;
import java.util.stream.IntStream;
import org.apache.arrow.vector.types.pojo.ArrowType;
import org.apache.arrow.vector.types.pojo.Field;
import org.apache.flink.api.java.functions.KeySelector;
import org.apache.flink.runtime.state.KeyGroupRangeAssignment;

/**
 * The Flink key of a batch whose rows are all of shards of one subtask, as {@link ShardSplitter}
 * makes them: that of its first row.
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

  private final int maxParallelism;
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
    this.maxParallelism = maxParallelism;
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
    return keys[keys.length == 1 || batch.numRows() == 0 ? 0 : shardOfRow(batch).applyAsInt(0)];
  }

  int shards() {
    return keys.length;
  }

  /** The subtask of the keyed operator that a shard goes to. */
  int subtask(int shard, int parallelism) {
    return KeyGroupRangeAssignment.assignKeyToParallelOperator(
        keys[shard], maxParallelism, parallelism);
  }

  /** The key of each row; does not need the batch any more. */
  public IntUnaryOperator keys(ArrowBatch batch) {
    if (keys.length == 1) {
      return row -> keys[0];
    }
    int[] shards = shards(batch);
    return row -> keys[shards[row]];
  }

  /** The shard of each row. */
  int[] shards(ArrowBatch batch) {
    return IntStream.range(0, batch.numRows()).map(shardOfRow(batch)).toArray();
  }

  private IntUnaryOperator shardOfRow(ArrowBatch batch) {
    IntUnaryOperator bySequence = shardOfRow(batch, StepColumns.SEQUENCE_ID);
    if (!batch.schema().contains(StepColumns.SEQUENCE_GROUP)) {
      return bySequence;
    }
    IntUnaryOperator byGroup = shardOfRow(batch, StepColumns.SEQUENCE_GROUP);
    ArrowColumn groups = batch.column(StepColumns.SEQUENCE_GROUP);
    return row -> (groups.isNull(row) ? bySequence : byGroup).applyAsInt(row);
  }

  private IntUnaryOperator shardOfRow(ArrowBatch batch, String name) {
    int index = batch.schema().index(name);
    Field field = index < 0 ? null : batch.schema().field(index);
    boolean text = field != null && field.getType() instanceof ArrowType.Utf8;
    if (!text && (field == null || !field.getType().equals(INT64))) {
      throw new InvalidBatchException(
          ErrorCode.SCHEMA_MISMATCH,
          -1,
          "column "
              + name
              + ": expected int64 or utf8, got "
              + (field == null ? "no such column" : TypeName.of(field)),
          null);
    }
    ArrowColumn ids = batch.column(index);
    return row -> {
      if (ids.isNull(row)) {
        return 0;
      }
      return text
          ? shardOf(ids.getBytes(row), keys.length)
          : shardOf(ids.getLong(row), keys.length);
    };
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
