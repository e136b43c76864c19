// SPDX-License-Identifier: Apache-2.0
package io.broadhead.job.bench;

import java.util.List;
import java.util.stream.Collectors;

/**
 * The attention heads of a model.
 *
 * @param name what tables call it
 */
public record Heads(String name, int numHeads, int numKvHeads, int headSize) {
  /** The models that are measured unless others are asked for. */
  public static final List<Heads> MODELS =
      List.of(
          new Heads("llama-3-8b", 32, 8, 128),
          new Heads("llama-2-7b", 32, 32, 128),
          new Heads("qwen3-0.6b", 16, 8, 128),
          new Heads("gpt-2", 12, 12, 64),
          new Heads("gemma", 8, 4, 256));

  public Heads {
    if (numHeads < 1 || numKvHeads < 1 || headSize < 1 || numHeads % numKvHeads != 0) {
      throw new IllegalArgumentException(
          "expected heads that are a multiple of the KV heads, got "
              + numHeads
              + "/"
              + numKvHeads
              + "/"
              + headSize);
    }
  }

  /**
   * The model called {@code text}, or heads written as {@code 32/8/128}: heads, KV heads, head
   * size.
   *
   * @throws IllegalArgumentException naming what is accepted
   */
  public static Heads parse(String text) {
    for (Heads model : MODELS) {
      if (model.name.equals(text)) {
        return model;
      }
    }
    String[] sizes = text.split("/", -1);
    try {
      if (sizes.length == 3) {
        return new Heads(
            text,
            Integer.parseInt(sizes[0]),
            Integer.parseInt(sizes[1]),
            Integer.parseInt(sizes[2]));
      }
    } catch (NumberFormatException e) {
      // Told below.
    }
    throw new IllegalArgumentException(
        "expected "
            + MODELS.stream().map(Heads::name).collect(Collectors.joining(", "))
            + " or HEADS/KV_HEADS/HEAD_SIZE, got "
            + text);
  }

  /** Query heads that share a KV head. */
  public int groupSize() {
    return numHeads / numKvHeads;
  }

  /** {@code 32/8/128}. */
  public String sizes() {
    return numHeads + "/" + numKvHeads + "/" + headSize;
  }
}
