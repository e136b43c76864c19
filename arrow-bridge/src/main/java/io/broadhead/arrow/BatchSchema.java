// SPDX-License-Identifier: Apache-2.0
package io.broadhead.arrow;

import java.io.ByteArrayOutputStream;
import java.io.IOException;
import java.io.UncheckedIOException;
import java.lang.ref.WeakReference;
import java.nio.ByteBuffer;
import java.nio.channels.WritableByteChannel;
import java.security.MessageDigest;
import java.security.NoSuchAlgorithmException;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashMap;
import java.util.HexFormat;
import java.util.List;
import java.util.Map;
import java.util.WeakHashMap;
import org.apache.arrow.vector.ipc.WriteChannel;
import org.apache.arrow.vector.ipc.message.MessageSerializer;
import org.apache.arrow.vector.types.pojo.Field;
import org.apache.arrow.vector.types.pojo.Schema;

/**
 * An Arrow schema with what is worth computing once: its serialised bytes, a fingerprint, and where
 * each column's nodes and buffers lie in a record batch.
 *
 * <p>Immutable and interned by its bytes: two equal schemas in one JVM are the same object as long
 * as one of them is in use. Names are unique, and only layouts that {@link BatchRows} can take
 * apart are allowed: no dictionary encoding, no unions, no run-end encoding, no views.
 */
public final class BatchSchema {
  private static final Map<BatchSchema, WeakReference<BatchSchema>> INTERNED = new WeakHashMap<>();

  private final Schema schema;
  private final byte[] bytes;
  private final int hash;
  private final String fingerprint;
  private final Map<String, Integer> indexByName;
  private final NodeLayout[] nodes;
  private final int[] columnNode;
  private final int bufferCount;

  private BatchSchema(Schema schema, byte[] bytes) {
    this.schema = schema;
    this.bytes = bytes;
    this.hash = Arrays.hashCode(bytes);
    this.fingerprint = fingerprintOf(bytes);
    this.indexByName = new HashMap<>();
    List<Field> fields = schema.getFields();
    List<NodeLayout> layouts = new ArrayList<>();
    this.columnNode = new int[fields.size() + 1];
    int buffer = 0;
    for (int i = 0; i < fields.size(); i++) {
      Field field = fields.get(i);
      if (indexByName.put(field.getName(), i) != null) {
        throw new IllegalArgumentException(
            "column " + field.getName() + ": expected one column of that name, got two");
      }
      columnNode[i] = layouts.size();
      buffer = layOut(field, field.getName(), buffer, layouts);
    }
    columnNode[fields.size()] = layouts.size();
    this.nodes = layouts.toArray(new NodeLayout[0]);
    this.bufferCount = buffer;
  }

  private static int layOut(Field field, String path, int firstBuffer, List<NodeLayout> layouts) {
    NodeLayout.Kind kind = NodeLayout.kindOf(field, path);
    int self = layouts.size();
    layouts.add(null);
    int buffer = firstBuffer + kind.buffers;
    for (Field child : field.getChildren()) {
      buffer = layOut(child, path + "." + child.getName(), buffer, layouts);
    }
    layouts.set(
        self,
        new NodeLayout(
            kind,
            NodeLayout.widthOf(kind, field.getType()),
            firstBuffer,
            self + 1,
            layouts.size(),
            buffer,
            path));
    return buffer;
  }

  /**
   * The interned schema equal to {@code schema}.
   *
   * @throws IllegalArgumentException naming the column that a step batch cannot carry
   */
  public static BatchSchema of(Schema schema) {
    return intern(new BatchSchema(schema, serialize(schema)));
  }

  /** As Arrow does it, except that an interrupt of the thread does not make it fail. */
  private static byte[] serialize(Schema schema) {
    ByteArrayOutputStream bytes = new ByteArrayOutputStream();
    try (WriteChannel channel = new WriteChannel(new UninterruptibleChannel(bytes))) {
      MessageSerializer.serialize(channel, schema);
    } catch (IOException e) {
      throw new UncheckedIOException("writing to memory does not fail", e);
    }
    return bytes.toByteArray();
  }

  private record UninterruptibleChannel(ByteArrayOutputStream target)
      implements WritableByteChannel {
    @Override
    public int write(ByteBuffer source) {
      byte[] bytes = new byte[source.remaining()];
      source.get(bytes);
      target.writeBytes(bytes);
      return bytes.length;
    }

    @Override
    public boolean isOpen() {
      return true;
    }

    @Override
    public void close() {}
  }

  /** A schema of {@code fields}, without schema metadata. */
  public static BatchSchema of(Field... fields) {
    return of(new Schema(List.of(fields)));
  }

  /**
   * The schema that {@link #bytes()} describes.
   *
   * @throws MalformedArrowException if the bytes are no Arrow schema message
   */
  public static BatchSchema parse(byte[] bytes) throws MalformedArrowException {
    Schema schema;
    try {
      schema = Schema.deserializeMessage(ByteBuffer.wrap(bytes));
    } catch (RuntimeException | StackOverflowError e) {
      throw new MalformedArrowException("the bytes are no Arrow schema: " + e.getMessage(), e);
    }
    try {
      return of(schema);
    } catch (IllegalArgumentException e) {
      throw new MalformedArrowException(e.getMessage(), e);
    }
  }

  private static BatchSchema intern(BatchSchema candidate) {
    synchronized (INTERNED) {
      WeakReference<BatchSchema> known = INTERNED.get(candidate);
      BatchSchema schema = known == null ? null : known.get();
      if (schema == null) {
        INTERNED.put(candidate, new WeakReference<>(candidate));
        schema = candidate;
      }
      return schema;
    }
  }

  private static String fingerprintOf(byte[] bytes) {
    try {
      byte[] digest = MessageDigest.getInstance("SHA-256").digest(bytes);
      return HexFormat.of().formatHex(digest, 0, 16);
    } catch (NoSuchAlgorithmException e) {
      throw new IllegalStateException("every Java platform has SHA-256", e);
    }
  }

  /** Arrow's own schema. */
  public Schema arrow() {
    return schema;
  }

  /** The schema as an encapsulated Arrow IPC message; a copy. */
  public byte[] bytes() {
    return bytes.clone();
  }

  byte[] sharedBytes() {
    return bytes;
  }

  /** 128 bits of a SHA-256 over {@link #bytes()}, in hexadecimal. */
  public String fingerprint() {
    return fingerprint;
  }

  public int columnCount() {
    return columnNode.length - 1;
  }

  public Field field(int column) {
    return schema.getFields().get(column);
  }

  /** Column index of {@code name}, or -1. */
  public int index(String name) {
    Integer index = indexByName.get(name);
    return index == null ? -1 : index;
  }

  public boolean contains(String name) {
    return indexByName.containsKey(name);
  }

  /** Nodes of a batch: one for each field, children behind their parent. */
  public int nodeCount() {
    return nodes.length;
  }

  /** Buffers of a batch. */
  public int bufferCount() {
    return bufferCount;
  }

  /** First node of {@code column}; the end of the last column for {@code columnCount()}. */
  public int firstNode(int column) {
    return columnNode[column];
  }

  /** First buffer of {@code column}; the end of the last column for {@code columnCount()}. */
  public int firstBuffer(int column) {
    return column == columnCount() ? bufferCount : nodes[columnNode[column]].firstBuffer();
  }

  /** First buffer of node {@code node}, its validity; its next buffers follow. */
  public int nodeBuffer(int node) {
    return nodes[node].firstBuffer();
  }

  /** Buffers of node {@code node} without its children. */
  public int nodeBufferCount(int node) {
    return nodes[node].kind().buffers;
  }

  /** Name or path of the field that buffer {@code buffer} belongs to, for messages. */
  String columnOfBuffer(int buffer) {
    String path = "?";
    for (NodeLayout node : nodes) {
      if (node.kind().buffers > 0 && node.firstBuffer() <= buffer) {
        path = node.path();
      }
    }
    return path;
  }

  NodeLayout node(int node) {
    return nodes[node];
  }

  /** The columns {@code columns} of this schema in that order, without schema metadata. */
  public BatchSchema select(int... columns) {
    return of(new Schema(Arrays.stream(columns).mapToObj(this::field).toList()));
  }

  /** This schema's columns followed by those of {@code other}. */
  public BatchSchema join(BatchSchema other) {
    List<Field> fields = new ArrayList<>(schema.getFields());
    fields.addAll(other.schema.getFields());
    return of(new Schema(fields, schema.getCustomMetadata()));
  }

  @Override
  public boolean equals(Object other) {
    return this == other
        || other instanceof BatchSchema that
            && hash == that.hash
            && Arrays.equals(bytes, that.bytes);
  }

  @Override
  public int hashCode() {
    return hash;
  }

  @Override
  public String toString() {
    return schema.getFields() + " (" + fingerprint.substring(0, 8) + ")";
  }
}
