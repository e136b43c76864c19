// SPDX-License-Identifier: Apache-2.0
package io.broadhead.job.bench;

import java.util.Locale;

/** What is measured. */
public enum Mode {
  /** One new token of each sequence against its context. */
  DECODE,
  /** The tokens of a prompt, or of a chunk of one. */
  PREFILL,
  /** Decode of some sequences and a chunk of another one in one step. */
  MIXED,
  /** New keys and values into the cache, without attention. */
  UPDATE,
  /** What a whole step costs beside its kernels. */
  STEP;

  /** The word that the command line and tables use. */
  @Override
  public String toString() {
    return name().toLowerCase(Locale.ROOT);
  }

  static Mode parse(String text) {
    return valueOf(text.toUpperCase(Locale.ROOT));
  }
}
