// SPDX-License-Identifier: Apache-2.0
package io.broadhead.attention.cache;

import java.nio.BufferUnderflowException;
import java.nio.ByteBuffer;
import java.nio.charset.StandardCharsets;
import java.util.BitSet;

/** Reads what {@link RecordWriter} wrote. */
final class RecordReader {
  private final ByteBuffer bytes;
  private final int version;

  /**
   * @param what for messages
   * @param newest the newest format that this program knows
   * @throws IllegalStateException if the record has a newer one
   */
  RecordReader(byte[] record, String what, int newest) {
    bytes = ByteBuffer.wrap(record);
    version = record.length == 0 ? 0 : bytes.get();
    if (version < 1 || version > newest) {
      throw new IllegalStateException(
          what
              + " in the state: expected format 1 to "
              + newest
              + ", got "
              + version
              + "; it was written by a newer Broadhead");
    }
  }

  /** The record's format. */
  int version() {
    return version;
  }

  boolean flag() {
    return bytes.get() != 0;
  }

  long number() {
    long value = 0;
    for (int shift = 0; ; shift += 7) {
      if (shift > 63) {
        throw new BufferUnderflowException();
      }
      byte next = bytes.get();
      value |= (long) (next & 0x7f) << shift;
      if (next >= 0) {
        return value;
      }
    }
  }

  int integer() {
    return Math.toIntExact(number());
  }

  long signed() {
    long value = number();
    return value >>> 1 ^ -(value & 1);
  }

  float decimal() {
    return Float.intBitsToFloat((int) number());
  }

  int[] numbers() {
    int[] values = new int[integer()];
    for (int i = 0; i < values.length; i++) {
      values[i] = integer();
    }
    return values;
  }

  BitSet bits() {
    return BitSet.valueOf(array());
  }

  String text() {
    return new String(array(), StandardCharsets.UTF_8);
  }

  private byte[] array() {
    byte[] array = new byte[integer()];
    bytes.get(array);
    return array;
  }
}
