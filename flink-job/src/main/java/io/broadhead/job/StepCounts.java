// SPDX-License-Identifier: Apache-2.0
package io.broadhead.job;

import io.broadhead.arrow.ArrowBatch;
import io.broadhead.arrow.ArrowColumn;
import io.broadhead.arrow.StepColumns;
import java.util.HashSet;
import java.util.Set;
import org.apache.arrow.vector.types.pojo.ArrowType;

/** Counts results: batches, rows, tokens, bytes copied, different sequences. Used by one thread. */
public final class StepCounts {
  private final Set<Object> sequences;
  private long batches;
  private long rows;
  private long tokens;
  private long bytesCopied;

  /**
   * @param countSequences whether to remember every sequence id; an endless stream must not
   */
  public StepCounts(boolean countSequences) {
    this.sequences = countSequences ? new HashSet<>() : null;
  }

  /** Adds one result batch. */
  public void add(ArrowBatch result) {
    batches++;
    rows += result.numRows();
    tokens += tokensOf(result);
    bytesCopied += result.bytesCopied();
    if (sequences != null) {
      addSequences(result);
    }
  }

  /** Payload bytes were copied on the way to a result. */
  public void addBytesCopied(long bytes) {
    bytesCopied += bytes;
  }

  /** Query tokens that {@code result} has outputs for. */
  private static long tokensOf(ArrowBatch result) {
    if (result.numRows() == 0) {
      return 0;
    }
    ArrowColumn output = result.column(StepColumns.OUTPUT);
    return output.offset(result.numRows()) - output.offset(0);
  }

  private void addSequences(ArrowBatch result) {
    ArrowColumn ids = result.column(StepColumns.SEQUENCE_ID);
    boolean text =
        result.schema().field(result.schema().index(StepColumns.SEQUENCE_ID)).getType()
            instanceof ArrowType.Utf8;
    for (int row = 0; row < result.numRows(); row++) {
      sequences.add(text ? ids.getString(row) : (Object) ids.getLong(row));
    }
  }

  public long batches() {
    return batches;
  }

  public long rows() {
    return rows;
  }

  public long tokens() {
    return tokens;
  }

  /** Payload bytes that were copied on the way to the results, and to make them. */
  public long bytesCopied() {
    return bytesCopied;
  }

  /** Different sequences, or -1 if they are not counted. */
  public long sequences() {
    return sequences == null ? -1 : sequences.size();
  }
}
