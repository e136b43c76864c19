// SPDX-License-Identifier: Apache-2.0
package io.broadhead.attention.cache;

/**
 * Sequence ids as text that tells numbers from texts: {@code #12} is a Long, {@code =12} is not.
 */
final class SequenceKey {
  private SequenceKey() {}

  static String of(Object id) {
    return id instanceof Long ? "#" + id : "=" + id;
  }

  static Object parse(String key) {
    String id = key.substring(1);
    return key.charAt(0) == '#' ? (Object) Long.valueOf(id) : id;
  }
}
