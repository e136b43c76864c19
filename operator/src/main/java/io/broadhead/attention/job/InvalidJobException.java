// SPDX-License-Identifier: Apache-2.0
package io.broadhead.attention.job;

/**
 * A job description that cannot be run. The message names the file, line and column where there is
 * a file, the key, the accepted values and what was found.
 */
public final class InvalidJobException extends RuntimeException {
  private static final long serialVersionUID = 1;

  private final String key;
  private final String problem;

  InvalidJobException(String key, String problem) {
    super(key.isEmpty() ? problem : key + ": " + problem);
    this.key = key;
    this.problem = problem;
  }

  private InvalidJobException(String place, String key, String problem) {
    super(place + ": " + (key.isEmpty() ? problem : key + ": " + problem));
    this.key = key;
    this.problem = problem;
  }

  /** Path of the key at fault, such as {@code layers[2].head_size}; empty for the whole file. */
  public String key() {
    return key;
  }

  /** The same problem of a key below {@code parent}. */
  InvalidJobException under(String parent) {
    return new InvalidJobException(parent + "." + key, problem);
  }

  /** The same problem, found at {@code place} (file, line and column). */
  InvalidJobException at(String place) {
    return new InvalidJobException(place, key, problem);
  }

  static InvalidJobException expected(String key, String accepted, Object got) {
    return new InvalidJobException(
        key, "expected " + accepted + ", got " + ("".equals(got) ? "''" : got));
  }
}
