// SPDX-License-Identifier: Apache-2.0
package io.broadhead.job;

import io.broadhead.arrow.Allocators;
import io.broadhead.arrow.ArrowBatch;
import io.broadhead.arrow.ArrowBatchFileWriter;
import io.broadhead.arrow.BatchSchema;
import io.broadhead.arrow.Compression;
import io.broadhead.arrow.DType;
import io.broadhead.arrow.TensorField;
import java.io.IOException;
import java.io.OutputStream;
import java.io.UncheckedIOException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collections;
import java.util.List;
import java.util.Random;
import java.util.function.ToIntFunction;
import org.apache.arrow.memory.ArrowBuf;
import org.apache.arrow.memory.BufferAllocator;
import org.apache.arrow.memory.util.Float16;
import org.apache.arrow.vector.VectorSchemaRoot;
import org.apache.arrow.vector.ipc.ArrowStreamWriter;
import org.apache.arrow.vector.types.pojo.ArrowType;
import org.apache.arrow.vector.types.pojo.Field;
import org.apache.arrow.vector.types.pojo.FieldType;

/**
 * Random step batches with external, shuffled block tables: prefill chunks and decode mixed, N(0,1)
 * tensors rounded to the element type. Everything is plain Java until it is written, so that a test
 * can spoil it first.
 */
public final class Steps {
  /** One row: the new tokens of one sequence. */
  public static final class Row {
    public String id;
    public float[] query;
    public float[] key;
    public float[] value;
    public int seqLen;
    public long[] slots;
    public int[] table;

    public int tokens() {
      return slots.length;
    }
  }

  /** One batch. */
  public record Step(Layer layer, List<Row> rows) {}

  /** One layer of the job. */
  public record Layer(String name, int heads, int kvHeads) {}

  public final DType dtype;
  public final int blockSize;
  public final int headSize;
  public int numBlocks;
  public final List<Layer> layers;
  public final List<Step> steps = new ArrayList<>();

  /** Whether block tables are left to the operator. */
  public boolean managed;

  private Steps(DType dtype, int blockSize, int headSize, int numBlocks, List<Layer> layers) {
    this.dtype = dtype;
    this.blockSize = blockSize;
    this.headSize = headSize;
    this.numBlocks = numBlocks;
    this.layers = layers;
  }

  /** Small steps of one layer in float32. */
  public static Steps small(long seed) {
    return generate(seed, DType.FLOAT32, 16, 64, List.of(new Layer("layer.0", 4, 2)), 5, 6);
  }

  /** {@code count} rounds, each one batch a layer, over {@code sequences} sequences. */
  public static Steps generate(
      long seed,
      DType dtype,
      int blockSize,
      int headSize,
      List<Layer> layers,
      int sequences,
      int count) {
    Random random = new Random(seed);
    int[] prompts = random.ints(sequences, 1, 60).toArray();
    int blocksEach = (60 + count + blockSize - 1) / blockSize;
    int numBlocks = blocksEach * sequences + 3;
    List<Integer> blocks = new ArrayList<>();
    for (int i = 0; i < numBlocks; i++) {
      blocks.add(i);
    }
    Collections.shuffle(blocks, random);
    Steps steps = new Steps(dtype, blockSize, headSize, numBlocks, layers);
    int[] done = new int[sequences];
    for (int round = 0; round < count; round++) {
      List<Integer> order = new ArrayList<>();
      for (int s = 0; s < sequences; s++) {
        if (round == 0 || random.nextInt(6) > 0) {
          order.add(s);
        }
      }
      Collections.shuffle(order, random);
      int[] chunk = new int[sequences];
      for (int s : order) {
        int left = prompts[s] - done[s];
        chunk[s] = left > 0 ? Math.min(left, 1 + random.nextInt(25)) : 1;
      }
      for (Layer layer : layers) {
        List<Row> rows = new ArrayList<>();
        for (int s : order) {
          rows.add(
              steps.row(
                  random,
                  layer,
                  "seq-" + s,
                  done[s],
                  chunk[s],
                  blocks.subList(s * blocksEach, (s + 1) * blocksEach)));
        }
        steps.steps.add(new Step(layer, rows));
      }
      for (int s : order) {
        done[s] += chunk[s];
      }
    }
    return steps;
  }

  private Row row(
      Random random, Layer layer, String id, int before, int tokens, List<Integer> blocks) {
    Row row = new Row();
    row.id = id;
    row.query = normal(random, tokens * layer.heads() * headSize);
    row.key = normal(random, tokens * layer.kvHeads() * headSize);
    row.value = normal(random, tokens * layer.kvHeads() * headSize);
    row.seqLen = before + tokens;
    row.table = blocks.stream().mapToInt(Integer::intValue).toArray();
    row.slots = new long[tokens];
    for (int t = 0; t < tokens; t++) {
      int position = before + t;
      row.slots[t] = (long) row.table[position / blockSize] * blockSize + position % blockSize;
    }
    return row;
  }

  private float[] normal(Random random, int size) {
    float[] values = new float[size];
    for (int i = 0; i < size; i++) {
      values[i] = decode(dtype, encode(dtype, (float) random.nextGaussian()));
    }
    return values;
  }

  static int encode(DType dtype, float value) {
    return switch (dtype) {
      case FLOAT32 -> Float.floatToRawIntBits(value);
      case FLOAT16 -> Float16.toFloat16(value) & 0xffff;
      case BFLOAT16 -> {
        int bits = Float.floatToRawIntBits(value);
        yield (bits + 0x7fff + (bits >>> 16 & 1)) >>> 16;
      }
      default -> throw new IllegalArgumentException(dtype.label());
    };
  }

  static float decode(DType dtype, long bits) {
    return switch (dtype) {
      case FLOAT32 -> Float.intBitsToFloat((int) bits);
      case FLOAT16 -> Float16.toFloat((short) bits);
      case BFLOAT16 -> Float.intBitsToFloat((int) bits << 16);
      default -> throw new IllegalArgumentException(dtype.label());
    };
  }

  public long tokens() {
    return steps.stream().flatMap(s -> s.rows().stream()).mapToLong(Row::tokens).sum();
  }

  /** The job file's text. */
  public String job() {
    StringBuilder yaml =
        new StringBuilder(
            "kv_cache: {block_size: " + blockSize + ", num_blocks: " + numBlocks + "}\nlayers:\n");
    for (Layer layer : layers) {
      yaml.append(
          String.format(
              "  - {name: %s, num_heads: %d, num_kv_heads: %d, head_size: %d}%n",
              layer.name(), layer.heads(), layer.kvHeads(), headSize));
    }
    return yaml.toString();
  }

  public Path writeJob(Path file) {
    try {
      return Files.writeString(file, job());
    } catch (IOException e) {
      throw new UncheckedIOException(e);
    }
  }

  /** Writes all batches, which must have one schema, into one IPC file. */
  public Path writeFile(Path file) {
    return writeFile(file, Compression.NONE, steps);
  }

  public Path writeFile(Path file, Compression compression, List<Step> part) {
    try (BufferAllocator allocator = Allocators.root();
        ArrowBatchFileWriter writer = ArrowBatchFileWriter.create(file, compression, allocator)) {
      for (Step step : part) {
        try (ArrowBatch batch = batch(step, allocator)) {
          writer.write(batch);
        }
      }
      writer.finish();
      return file;
    } catch (IOException e) {
      throw new UncheckedIOException(e);
    }
  }

  /** Writes all batches into one IPC stream. */
  public Path writeStream(Path file) {
    try (BufferAllocator allocator = Allocators.root();
        OutputStream out = Files.newOutputStream(file)) {
      try (VectorSchemaRoot root =
              VectorSchemaRoot.create(schema(layers.get(0)).arrow(), allocator);
          ArrowStreamWriter writer = new ArrowStreamWriter(root, null, out)) {
        for (Step step : steps) {
          try (ArrowBatch batch = batch(step, allocator);
              var record = batch.toRecordBatch()) {
            new org.apache.arrow.vector.VectorLoader(root).load(record);
            writer.writeBatch();
            root.clear();
          }
        }
        writer.end();
      }
      return file;
    } catch (IOException e) {
      throw new UncheckedIOException(e);
    }
  }

  /** Writes each batch into a file of its own, named in order. */
  public Path writeFolder(Path folder) {
    try {
      Files.createDirectories(folder);
    } catch (IOException e) {
      throw new UncheckedIOException(e);
    }
    for (int i = 0; i < steps.size(); i++) {
      writeFile(
          folder.resolve(String.format("step-%04d.arrow", i)),
          Compression.NONE,
          steps.subList(i, i + 1));
    }
    return folder;
  }

  private BatchSchema schema(Layer layer) {
    ArrowType int32 = new ArrowType.Int(32, true);
    ArrowType int64 = new ArrowType.Int(64, true);
    Field[] fields = {
      Field.notNullable("sequence_id", new ArrowType.Utf8()),
      Field.notNullable("layer", new ArrowType.Utf8()),
      Field.notNullable("request", int64),
      TensorField.list("query", dtype, layer.heads(), headSize),
      TensorField.list("key", dtype, layer.kvHeads(), headSize),
      TensorField.list("value", dtype, layer.kvHeads(), headSize),
      Field.notNullable("seq_len", int32),
      list("slot_mapping", int64),
      list("block_table", int32)
    };
    return BatchSchema.of(Arrays.copyOf(fields, managed ? fields.length - 2 : fields.length));
  }

  private static Field list(String name, ArrowType element) {
    return new Field(
        name,
        FieldType.notNullable(new ArrowType.List()),
        List.of(Field.notNullable("item", element)));
  }

  /** The batch of {@code step}; the caller closes it. */
  public ArrowBatch batch(Step step, BufferAllocator allocator) {
    List<Row> rows = step.rows();
    Builder builder = new Builder(allocator, rows.size());
    builder.text(rows.stream().map(row -> row.id).toList());
    builder.text(rows.stream().map(row -> step.layer().name()).toList());
    builder.int64(rows.stream().mapToLong(row -> row.seqLen * 10L).toArray());
    builder.tensors(
        dtype, step.layer().heads() * headSize, rows.stream().map(r -> r.query).toList());
    builder.tensors(
        dtype, step.layer().kvHeads() * headSize, rows.stream().map(r -> r.key).toList());
    builder.tensors(
        dtype, step.layer().kvHeads() * headSize, rows.stream().map(r -> r.value).toList());
    builder.int32(rows.stream().mapToInt(row -> row.seqLen).toArray());
    if (!managed) {
      builder.listOfInt64(rows.stream().map(row -> row.slots).toList());
      builder.listOfInt32(rows.stream().map(row -> row.table).toList());
    }
    return builder.build(schema(step.layer()));
  }

  /** Lays out columns as Arrow buffers, without nulls. */
  private static final class Builder {
    private final BufferAllocator allocator;
    private final int rows;
    private final List<Long> lengths = new ArrayList<>();
    private final List<ArrowBuf> buffers = new ArrayList<>();

    Builder(BufferAllocator allocator, int rows) {
      this.allocator = allocator;
      this.rows = rows;
    }

    private ArrowBuf buffer(long bytes) {
      ArrowBuf buffer = allocator.buffer(Math.max(bytes, 8));
      buffer.setZero(0, buffer.capacity());
      buffer.writerIndex(bytes);
      return buffer;
    }

    private void node(long length) {
      lengths.add(length);
      buffers.add(allocator.getEmpty());
    }

    private <T> long offsets(List<T> values, ToIntFunction<T> size) {
      ArrowBuf offsets = buffer(4L * (rows + 1));
      int at = 0;
      for (int i = 0; i < rows; i++) {
        at += size.applyAsInt(values.get(i));
        offsets.setInt(4L * (i + 1), at);
      }
      buffers.add(offsets);
      return at;
    }

    void text(List<String> values) {
      node(rows);
      List<byte[]> bytes =
          values.stream().map(value -> value.getBytes(StandardCharsets.UTF_8)).toList();
      ArrowBuf data = buffer(offsets(bytes, value -> value.length));
      long at = 0;
      for (byte[] value : bytes) {
        data.setBytes(at, value);
        at += value.length;
      }
      buffers.add(data);
    }

    void int64(long[] values) {
      node(values.length);
      ArrowBuf data = buffer(8L * values.length);
      for (int i = 0; i < values.length; i++) {
        data.setLong(8L * i, values[i]);
      }
      buffers.add(data);
    }

    void int32(int[] values) {
      node(values.length);
      ArrowBuf data = buffer(4L * values.length);
      for (int i = 0; i < values.length; i++) {
        data.setInt(4L * i, values[i]);
      }
      buffers.add(data);
    }

    void listOfInt64(List<long[]> values) {
      node(rows);
      offsets(values, value -> value.length);
      int64(values.stream().flatMapToLong(java.util.Arrays::stream).toArray());
    }

    void listOfInt32(List<int[]> values) {
      node(rows);
      offsets(values, value -> value.length);
      int32(values.stream().flatMapToInt(java.util.Arrays::stream).toArray());
    }

    void tensors(DType dtype, int elements, List<float[]> values) {
      node(rows);
      long tensors = offsets(values, value -> value.length / elements);
      node(tensors);
      node(tensors * elements);
      int width = dtype.byteWidth();
      ArrowBuf data = buffer(tensors * elements * width);
      long at = 0;
      for (float[] row : values) {
        for (float value : row) {
          if (width == 4) {
            data.setInt(at, encode(dtype, value));
          } else {
            data.setShort(at, encode(dtype, value));
          }
          at += width;
        }
      }
      buffers.add(data);
    }

    ArrowBatch build(BatchSchema schema) {
      return ArrowBatch.adopt(
          schema,
          rows,
          lengths.stream().mapToLong(Long::longValue).toArray(),
          new long[lengths.size()],
          buffers.toArray(new ArrowBuf[0]),
          0);
    }
  }
}
