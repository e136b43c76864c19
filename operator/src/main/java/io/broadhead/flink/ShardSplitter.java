// SPDX-License-Identifier: Apache-2.0
package io.broadhead.flink;

import io.broadhead.arrow.ArrowBatch;
import io.broadhead.arrow.BatchRows;
import io.broadhead.arrow.BatchSchema;
import java.util.Arrays;
import org.apache.arrow.memory.ArrowBuf;
import org.apache.flink.api.common.functions.FlatMapFunction;
import org.apache.flink.util.Collector;

/**
 * Splits step batches into one batch for each shard that occurs in them, rows in their order; a
 * batch whose rows are all of one shard goes on without a copy. Key what comes out by {@link
 * ShardKey} with the same number of shards. Used by one thread.
 */
public final class ShardSplitter implements FlatMapFunction<ArrowBatch, ArrowBatch> {
  private static final long serialVersionUID = 1;

  private final int shards;

  public ShardSplitter(int shards) {
    this.shards = shards;
  }

  @Override
  public void flatMap(ArrowBatch batch, Collector<ArrowBatch> out) {
    try {
      int[] shardOfRow = ShardKey.shards(batch, shards);
      if (Arrays.stream(shardOfRow).distinct().count() <= 1) {
        try (ArrowBatch whole = batch.isReceived() ? adopted(batch) : batch.retain()) {
          out.collect(whole);
        }
        return;
      }
      ArrowBatch[] parts = BatchRows.split(batch, shardOfRow, shards, FlinkAllocator.root());
      try {
        for (ArrowBatch part : parts) {
          if (part != null) {
            out.collect(part);
          }
        }
      } finally {
        for (ArrowBatch part : parts) {
          if (part != null) {
            part.close();
          }
        }
      }
    } finally {
      if (batch.isReceived()) {
        batch.close();
      }
    }
  }

  /**
   * The same buffers in a batch whose creator is this operator, so that the next leaves it open.
   */
  private static ArrowBatch adopted(ArrowBatch batch) {
    BatchSchema schema = batch.schema();
    long[] lengths = new long[schema.nodeCount()];
    long[] nullCounts = new long[lengths.length];
    for (int node = 0; node < lengths.length; node++) {
      lengths[node] = batch.nodeLength(node);
      nullCounts[node] = batch.nullCount(node);
    }
    ArrowBuf[] buffers = new ArrowBuf[schema.bufferCount()];
    for (int i = 0; i < buffers.length; i++) {
      buffers[i] = batch.buffer(i);
      buffers[i].getReferenceManager().retain();
    }
    return ArrowBatch.adopt(
        schema, batch.numRows(), lengths, nullCounts, buffers, batch.bytesCopied());
  }
}
