// SPDX-License-Identifier: Apache-2.0
package io.broadhead.attention.cache;

import java.io.ByteArrayOutputStream;
import java.nio.charset.StandardCharsets;
import java.util.BitSet;

/** Writes the fields of a record: integers in as few bytes as they need. */
final class RecordWriter {
  private final ByteArrayOutputStream bytes = new ByteArrayOutputStream();

  /** Begins a record of format {@code version}. */
  RecordWriter(int version) {
    bytes.write(version);
  }

  RecordWriter flag(boolean value) {
    bytes.write(value ? 1 : 0);
    return this;
  }

  /** A number that is not negative. */
  RecordWriter number(long value) {
    long left = value;
    while (left >= 0x80 || left < 0) {
      bytes.write((int) (left & 0x7f | 0x80));
      left >>>= 7;
    }
    bytes.write((int) left);
    return this;
  }

  /** Any number; small ones of either sign take few bytes. */
  RecordWriter signed(long value) {
    return number(value << 1 ^ value >> 63);
  }

  RecordWriter decimal(float value) {
    return number(Integer.toUnsignedLong(Float.floatToIntBits(value)));
  }

  RecordWriter numbers(int[] values) {
    number(values.length);
    for (int value : values) {
      number(value);
    }
    return this;
  }

  RecordWriter bits(BitSet value) {
    byte[] set = value.toByteArray();
    number(set.length);
    bytes.writeBytes(set);
    return this;
  }

  RecordWriter text(String value) {
    byte[] utf8 = value.getBytes(StandardCharsets.UTF_8);
    number(utf8.length);
    bytes.writeBytes(utf8);
    return this;
  }

  byte[] toBytes() {
    return bytes.toByteArray();
  }
}
