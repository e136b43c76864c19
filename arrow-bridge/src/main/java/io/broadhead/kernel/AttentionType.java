// SPDX-License-Identifier: Apache-2.0
package io.broadhead.kernel;

/** Which keys a query sees ({@code bh_attn_type}). */
public enum AttentionType {
  DECODER(0),
  ENCODER(1),
  ENCODER_ONLY(2),
  ENCODER_DECODER(3);

  private final int code;

  AttentionType(int code) {
    this.code = code;
  }

  /** The C ABI's number. */
  public int code() {
    return code;
  }
}
