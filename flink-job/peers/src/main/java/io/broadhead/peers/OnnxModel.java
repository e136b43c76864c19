// SPDX-License-Identifier: Apache-2.0
package io.broadhead.peers;

import java.io.ByteArrayOutputStream;
import java.nio.charset.StandardCharsets;
import java.util.List;

/**
 * An ONNX model of one GroupQueryAttention operator, written in ONNX's protocol buffers. Field
 * numbers are those of {@code onnx.proto}.
 */
final class OnnxModel {
  /** Values of {@code TensorProto.DataType}. */
  static final int FLOAT32 = 1;

  static final int FLOAT16 = 10;
  private static final int INT32 = 6;

  private static final int IR_VERSION = 10;
  private static final int OPSET = 21;
  private static final String CONTRIBUTED = "com.microsoft";

  static final List<String> TENSOR_INPUTS =
      List.of("query", "key", "value", "past_key", "past_value");
  static final List<String> COUNT_INPUTS = List.of("seqlens_k", "total_sequence_length");
  static final List<String> OUTPUTS = List.of("output", "present_key", "present_value");

  private OnnxModel() {}

  /** The model's bytes, for elements of {@code type}. */
  static byte[] groupQueryAttention(int numHeads, int numKvHeads, int type) {
    Message node = new Message();
    TENSOR_INPUTS.forEach(name -> node.text(1, name));
    COUNT_INPUTS.forEach(name -> node.text(1, name));
    OUTPUTS.forEach(name -> node.text(2, name));
    node.text(4, "GroupQueryAttention")
        .message(5, integerAttribute("num_heads", numHeads))
        .message(5, integerAttribute("kv_num_heads", numKvHeads))
        .text(7, CONTRIBUTED);
    Message graph = new Message().message(1, node).text(2, "attention");
    TENSOR_INPUTS.forEach(name -> graph.message(11, value(name, type)));
    COUNT_INPUTS.forEach(name -> graph.message(11, value(name, INT32)));
    OUTPUTS.forEach(name -> graph.message(12, value(name, type)));
    return new Message()
        .integer(1, IR_VERSION)
        .message(7, graph)
        .message(8, new Message().text(1, "").integer(2, OPSET))
        .message(8, new Message().text(1, CONTRIBUTED).integer(2, 1))
        .bytes();
  }

  private static Message integerAttribute(String name, int value) {
    int integerType = 2;
    return new Message().text(1, name).integer(3, value).integer(20, integerType);
  }

  /** A tensor of any shape. */
  private static Message value(String name, int type) {
    Message tensor = new Message().integer(1, type);
    return new Message().text(1, name).message(2, new Message().message(1, tensor));
  }

  /** A message being written. */
  private static final class Message {
    private final ByteArrayOutputStream out = new ByteArrayOutputStream();

    Message integer(int field, long value) {
      varint((long) field << 3);
      varint(value);
      return this;
    }

    Message text(int field, String value) {
      return bytes(field, value.getBytes(StandardCharsets.UTF_8));
    }

    Message message(int field, Message value) {
      return bytes(field, value.bytes());
    }

    private Message bytes(int field, byte[] value) {
      varint((long) field << 3 | 2);
      varint(value.length);
      out.writeBytes(value);
      return this;
    }

    private void varint(long value) {
      long rest = value;
      for (; (rest & ~0x7fL) != 0; rest >>>= 7) {
        out.write((int) (rest & 0x7f | 0x80));
      }
      out.write((int) rest);
    }

    byte[] bytes() {
      return out.toByteArray();
    }
  }
}
