// SPDX-License-Identifier: Apache-2.0
package io.broadhead.kernel;

import io.broadhead.arrow.DType;
import java.util.Objects;

/**
 * What one attention layer computes ({@code bh_layer_options}). Build one with {@link #builder}.
 *
 * @param name used in messages
 * @param dtype type of query, key and value
 * @param slidingWindow tokens a query sees, itself included; 0: all
 * @param logitsSoftCap 0: none
 * @param alibiSlopes one per head, or null
 * @param sinks one per head, or null
 * @param kScale fp8 caches store key / kScale; 1 otherwise
 * @param outputScale above 0: the output is float8_e4m3fn of result / outputScale; 0: none
 * @param returnLse whether the result carries {@code lse}
 * @param readOnlyCache whether key and value are not written, because the layer shares a cache
 * @param rope null: none
 */
public record LayerConfig(
    String name,
    int numHeads,
    int numKvHeads,
    int headSize,
    AttentionType attentionType,
    DType dtype,
    float scale,
    long slidingWindow,
    float logitsSoftCap,
    float[] alibiSlopes,
    float[] sinks,
    float kScale,
    float vScale,
    float outputScale,
    boolean returnLse,
    boolean readOnlyCache,
    RopeConfig rope) {
  public LayerConfig {
    Objects.requireNonNull(name, "name");
    Objects.requireNonNull(attentionType, "attentionType");
    Objects.requireNonNull(dtype, "dtype");
    requireOnePerHead("alibi_slopes", alibiSlopes, numHeads);
    requireOnePerHead("sinks", sinks, numHeads);
  }

  private static void requireOnePerHead(String key, float[] values, int numHeads) {
    if (values != null && values.length != numHeads) {
      throw new IllegalArgumentException(
          key + ": expected " + numHeads + " values, one per head, got " + values.length);
    }
  }

  /** Type of the output's elements. */
  public DType outputDType() {
    return outputScale > 0 ? DType.FLOAT8_E4M3FN : dtype;
  }

  /** A decoder layer of the given shape with scale {@code headSize ** -0.5} and nothing else. */
  public static Builder builder(String name, int numHeads, int numKvHeads, int headSize) {
    return new Builder(name, numHeads, numKvHeads, headSize);
  }

  /** Collects the settings of a layer; used by one thread. */
  public static final class Builder {
    private final String name;
    private final int numHeads;
    private final int numKvHeads;
    private final int headSize;
    private AttentionType attentionType = AttentionType.DECODER;
    private DType dtype = DType.FLOAT32;
    private float scale;
    private long slidingWindow;
    private float logitsSoftCap;
    private float[] alibiSlopes;
    private float[] sinks;
    private float kScale = 1;
    private float vScale = 1;
    private float outputScale;
    private boolean returnLse;
    private boolean readOnlyCache;
    private RopeConfig rope;

    private Builder(String name, int numHeads, int numKvHeads, int headSize) {
      this.name = name;
      this.numHeads = numHeads;
      this.numKvHeads = numKvHeads;
      this.headSize = headSize;
      this.scale = (float) (1 / Math.sqrt(headSize));
    }

    public Builder attentionType(AttentionType value) {
      attentionType = value;
      return this;
    }

    public Builder dtype(DType value) {
      dtype = value;
      return this;
    }

    public Builder scale(float value) {
      scale = value;
      return this;
    }

    public Builder slidingWindow(long value) {
      slidingWindow = value;
      return this;
    }

    public Builder logitsSoftCap(float value) {
      logitsSoftCap = value;
      return this;
    }

    public Builder alibiSlopes(float... value) {
      alibiSlopes = value;
      return this;
    }

    public Builder sinks(float... value) {
      sinks = value;
      return this;
    }

    public Builder kScale(float value) {
      kScale = value;
      return this;
    }

    public Builder vScale(float value) {
      vScale = value;
      return this;
    }

    public Builder outputScale(float value) {
      outputScale = value;
      return this;
    }

    public Builder returnLse(boolean value) {
      returnLse = value;
      return this;
    }

    public Builder readOnlyCache(boolean value) {
      readOnlyCache = value;
      return this;
    }

    public Builder rope(RopeConfig value) {
      rope = value;
      return this;
    }

    public LayerConfig build() {
      return new LayerConfig(
          name,
          numHeads,
          numKvHeads,
          headSize,
          attentionType,
          dtype,
          scale,
          slidingWindow,
          logitsSoftCap,
          alibiSlopes,
          sinks,
          kScale,
          vScale,
          outputScale,
          returnLse,
          readOnlyCache,
          rope);
    }
  }
}
