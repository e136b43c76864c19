// SPDX-License-Identifier: Apache-2.0
package io.broadhead.attention.job;

import java.util.Optional;

/** Which keys a query token sees and where they are kept. */
public enum AttnType {
  /** Causal over the KV cache. */
  DECODER("decoder", true),
  /** Both directions over the row's own keys; no cache. */
  ENCODER("encoder", false),
  /** As {@link #ENCODER}: the model has no decoder. */
  ENCODER_ONLY("encoder_only", false),
  /** Cross attention: every query token sees all cached encoder tokens. */
  ENCODER_DECODER("encoder_decoder", true);

  private final String label;
  private final boolean cached;

  AttnType(String label, boolean cached) {
    this.label = label;
    this.cached = cached;
  }

  /** The word that the job file uses. */
  public String label() {
    return label;
  }

  /** Whether layers of this type keep their keys and values in a KV cache. */
  public boolean cached() {
    return cached;
  }

  static Optional<AttnType> parse(String text) {
    for (AttnType type : values()) {
      if (type.label.equals(text)) {
        return Optional.of(type);
      }
    }
    return Optional.empty();
  }
}
