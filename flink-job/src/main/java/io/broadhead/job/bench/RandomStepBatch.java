// SPDX-License-Identifier: Apache-2.0
package io.broadhead.job.bench;

import io.broadhead.arrow.ArrowBatch;
import io.broadhead.arrow.BatchSchema;
import io.broadhead.arrow.DType;
import io.broadhead.arrow.StepColumns;
import io.broadhead.arrow.TensorField;
import java.util.ArrayList;
import java.util.List;
import org.apache.arrow.memory.ArrowBuf;
import org.apache.arrow.memory.BufferAllocator;
import org.apache.arrow.vector.types.pojo.ArrowType;
import org.apache.arrow.vector.types.pojo.Field;
import org.apache.arrow.vector.types.pojo.FieldType;
import org.apache.arrow.vector.types.pojo.Schema;

/** Writes the step batch of a shape into Arrow memory, column by column. Used once. */
final class RandomStepBatch {
  private final StepShape shape;
  private final BufferAllocator allocator;
  private final NormalValues values;
  private final List<Field> fields = new ArrayList<>();
  private final List<Long> lengths = new ArrayList<>();
  private final List<ArrowBuf> buffers = new ArrayList<>();

  /** One sequence of the batch. */
  private record Sequence(Rows rows, int[] blocks) {}

  private RandomStepBatch(StepShape shape, BufferAllocator allocator, NormalValues values) {
    this.shape = shape;
    this.allocator = allocator;
    this.values = values;
  }

  /**
   * A batch of {@code shape} with random tensors, which the caller closes.
   *
   * @param blocks the blocks of its sequences, one sequence after the other
   */
  static ArrowBatch build(
      StepShape shape, int[] blocks, NormalValues values, BufferAllocator allocator) {
    return new RandomStepBatch(shape, allocator, values).build(sequences(shape, blocks));
  }

  private static List<Sequence> sequences(StepShape shape, int[] blocks) {
    List<Sequence> sequences = new ArrayList<>();
    int at = 0;
    for (Rows rows : shape.rows()) {
      for (int i = 0; i < rows.count(); i++) {
        int[] own = new int[shape.blocks(rows)];
        System.arraycopy(blocks, at, own, 0, own.length);
        at += own.length;
        sequences.add(new Sequence(rows, own));
      }
    }
    return sequences;
  }

  private ArrowBatch build(List<Sequence> sequences) {
    Heads heads = shape.heads();
    ArrowBuf ids = integers(StepColumns.SEQUENCE_ID, 64, sequences.size());
    ArrowBuf lens = integers(StepColumns.SEQ_LEN, 32, sequences.size());
    for (int i = 0; i < sequences.size(); i++) {
      ids.setLong(8L * i, i);
      lens.setInt(4L * i, sequences.get(i).rows.context());
    }
    if (shape.attends()) {
      tensors(StepColumns.QUERY, heads.numHeads(), sequences);
    }
    tensors(StepColumns.KEY, heads.numKvHeads(), sequences);
    tensors(StepColumns.VALUE, heads.numKvHeads(), sequences);
    ArrowBuf slots = list(StepColumns.SLOT_MAPPING, 64, tokenCounts(sequences));
    long at = 0;
    for (Sequence sequence : sequences) {
      for (int position = firstNew(sequence); position < sequence.rows.context(); position++) {
        long block = sequence.blocks[position / shape.blockSize()];
        slots.setLong(8 * at++, block * shape.blockSize() + position % shape.blockSize());
      }
    }
    int[] blockCounts = sequences.stream().mapToInt(s -> s.blocks.length).toArray();
    ArrowBuf tables = list(StepColumns.BLOCK_TABLE, 32, blockCounts);
    at = 0;
    for (Sequence sequence : sequences) {
      for (int block : sequence.blocks) {
        tables.setInt(4 * at++, block);
      }
    }
    if (shape.rope()) {
      ArrowBuf positions = list(StepColumns.POSITION, 32, tokenCounts(sequences));
      at = 0;
      for (Sequence sequence : sequences) {
        for (int position = firstNew(sequence); position < sequence.rows.context(); position++) {
          positions.setInt(4 * at++, position);
        }
      }
    }
    return ArrowBatch.adopt(
        BatchSchema.of(new Schema(fields)),
        sequences.size(),
        lengths.stream().mapToLong(Long::longValue).toArray(),
        new long[lengths.size()],
        buffers.toArray(new ArrowBuf[0]),
        0);
  }

  private static int firstNew(Sequence sequence) {
    return sequence.rows.context() - sequence.rows.tokens();
  }

  private static int[] tokenCounts(List<Sequence> sequences) {
    return sequences.stream().mapToInt(s -> s.rows.tokens()).toArray();
  }

  private ArrowBuf add(long bytes) {
    ArrowBuf buffer = bytes == 0 ? allocator.getEmpty() : allocator.buffer(bytes);
    buffer.writerIndex(bytes);
    buffers.add(buffer);
    return buffer;
  }

  /** Starts a node of {@code length} elements without nulls. */
  private void node(long length) {
    lengths.add(length);
    add(0);
  }

  private static Field integer(String name, int bits) {
    return new Field(name, FieldType.notNullable(new ArrowType.Int(bits, true)), null);
  }

  private ArrowBuf integers(String name, int bits, int length) {
    fields.add(integer(name, bits));
    node(length);
    return add((long) length * bits / 8);
  }

  private ArrowBuf list(String name, int bits, int[] counts) {
    fields.add(
        new Field(
            name, FieldType.notNullable(new ArrowType.List()), List.of(integer("item", bits))));
    long total = offsets(counts);
    node(total);
    return add(total * bits / 8);
  }

  /** A list node; answers the elements of all rows. */
  private long offsets(int[] counts) {
    node(counts.length);
    ArrowBuf offsets = add(4L * (counts.length + 1));
    int end = 0;
    offsets.setInt(0, 0);
    for (int i = 0; i < counts.length; i++) {
      end += counts[i];
      offsets.setInt(4L * (i + 1), end);
    }
    return end;
  }

  private void tensors(String name, int heads, List<Sequence> sequences) {
    DType dtype = shape.dtype();
    fields.add(TensorField.list(name, dtype, heads, shape.heads().headSize()));
    long tokens = offsets(tokenCounts(sequences));
    node(tokens);
    long elements = tokens * heads * shape.heads().headSize();
    node(elements);
    long bytes = elements * dtype.byteWidth();
    values.fill(add(bytes), 0, bytes);
  }
}
