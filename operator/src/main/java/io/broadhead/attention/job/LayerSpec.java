// SPDX-License-Identifier: Apache-2.0
package io.broadhead.attention.job;

import java.io.Serializable;
import java.util.List;

/**
 * What one attention layer computes; the keys of a layer in the job file. Immutable.
 *
 * @param name what the layer column says
 * @param numKvHeads divides numHeads
 * @param scale factor of the dot product of query and key
 * @param slidingWindow tokens that a query sees, itself included; 0: all
 * @param logitsSoftCap 0: none
 * @param alibiSlopes one per head, or empty
 * @param sinks one per head, or empty
 * @param kvCacheDtype null: the job's default; never null in the layers of a {@link Job}
 * @param kScale stored = key / kScale; 1 unless the cache is fp8
 * @param outputScale above 0: the output is float8_e4m3fn of result / outputScale; 0: none
 * @param kvSharingTargetLayerName layer whose cache is read, or null
 * @param rope null: none
 */
public record LayerSpec(
    String name,
    int numHeads,
    int numKvHeads,
    int headSize,
    float scale,
    AttnType attnType,
    long slidingWindow,
    float logitsSoftCap,
    List<Float> alibiSlopes,
    List<Float> sinks,
    KvCacheDtype kvCacheDtype,
    float kScale,
    float vScale,
    float outputScale,
    String kvSharingTargetLayerName,
    RopeSpec rope,
    boolean returnLse)
    implements Serializable {

  static final List<Integer> HEAD_SIZES = List.of(32, 64, 80, 96, 128, 160, 192, 224, 256);

  public LayerSpec {
    alibiSlopes = List.copyOf(alibiSlopes);
    sinks = List.copyOf(sinks);
    require(name != null && !name.isBlank(), JobFileKey.NAME, "text that is not empty", name);
    require(numHeads >= 1, JobFileKey.NUM_HEADS, "at least 1", numHeads);
    require(
        numKvHeads >= 1 && numHeads % numKvHeads == 0,
        JobFileKey.NUM_KV_HEADS,
        "a number that divides num_heads " + numHeads,
        numKvHeads);
    require(
        HEAD_SIZES.contains(headSize),
        JobFileKey.HEAD_SIZE,
        "one of " + JobFileKey.HEAD_SIZE.accepted(),
        headSize);
    int mostHeads = Integer.MAX_VALUE / headSize;
    require(numHeads <= mostHeads, JobFileKey.NUM_HEADS, "at most " + mostHeads, numHeads);
    require(Float.isFinite(scale), JobFileKey.SCALE, "a finite number", scale);
    require(slidingWindow >= 0, JobFileKey.SLIDING_WINDOW, "at least 1", slidingWindow);
    require(
        logitsSoftCap >= 0 && Float.isFinite(logitsSoftCap),
        JobFileKey.LOGITS_SOFT_CAP,
        "a finite number, 0 (none) or above",
        logitsSoftCap);
    perHead(JobFileKey.ALIBI_SLOPES, alibiSlopes, numHeads);
    perHead(JobFileKey.SINKS, sinks, numHeads);
    scale(JobFileKey.K_SCALE, kScale);
    scale(JobFileKey.V_SCALE, vScale);
    if (outputScale != 0) {
      scale(JobFileKey.OUTPUT_SCALE, outputScale);
    }
    if (!attnType.cached()) {
      require(
          kvCacheDtype == null || kvCacheDtype == KvCacheDtype.AUTO,
          JobFileKey.KV_CACHE_DTYPE,
          "auto or no such key: an " + attnType.label() + " layer has no KV cache",
          kvCacheDtype == null ? "" : kvCacheDtype.label());
      require(
          kvSharingTargetLayerName == null,
          JobFileKey.KV_SHARING_TARGET_LAYER_NAME,
          "no such key: an " + attnType.label() + " layer has no KV cache",
          kvSharingTargetLayerName);
    }
    if (rope != null && rope.rotaryDim() > headSize) {
      throw InvalidJobException.expected(
              JobFileKey.ROTARY_DIM.key(),
              "an even number, 2 to head_size " + headSize,
              rope.rotaryDim())
          .under(JobFileKey.ROPE.key());
    }
  }

  /** Starts a decoder layer with as many KV heads as heads and everything else at its default. */
  public static Builder builder(String name, int numHeads, int headSize) {
    return new Builder(name, numHeads, headSize);
  }

  /** Starts from this layer. */
  public Builder toBuilder() {
    Builder builder = new Builder(name, numHeads, headSize);
    builder.numKvHeads = numKvHeads;
    builder.scale = scale;
    builder.attnType = attnType;
    builder.slidingWindow = slidingWindow;
    builder.logitsSoftCap = logitsSoftCap;
    builder.alibiSlopes = alibiSlopes;
    builder.sinks = sinks;
    builder.kvCacheDtype = kvCacheDtype;
    builder.kScale = kScale;
    builder.vScale = vScale;
    builder.outputScale = outputScale;
    builder.kvSharingTargetLayerName = kvSharingTargetLayerName;
    builder.rope = rope;
    builder.returnLse = returnLse;
    return builder;
  }

  private static void require(boolean holds, JobFileKey key, String accepted, Object got) {
    if (!holds) {
      throw InvalidJobException.expected(key.key(), accepted, got);
    }
  }

  private static void scale(JobFileKey key, float value) {
    require(value > 0 && Float.isFinite(value), key, "a finite number above 0", value);
  }

  private static void perHead(JobFileKey key, List<Float> values, int numHeads) {
    if (values.isEmpty()) {
      return;
    }
    require(
        values.size() == numHeads,
        key,
        "num_heads = " + numHeads + " numbers",
        values.size() + " numbers");
    for (int i = 0; i < values.size(); i++) {
      if (!Float.isFinite(values.get(i))) {
        throw InvalidJobException.expected(
            key.key() + "[" + i + "]", "a finite number", values.get(i));
      }
    }
  }

  /** Builds a {@link LayerSpec}; {@link #build} checks every value. Not thread-safe. */
  public static final class Builder {
    private final String name;
    private final int numHeads;
    private final int headSize;
    private int numKvHeads;
    private float scale;
    private AttnType attnType = AttnType.DECODER;
    private long slidingWindow;
    private float logitsSoftCap;
    private List<Float> alibiSlopes = List.of();
    private List<Float> sinks = List.of();
    private KvCacheDtype kvCacheDtype;
    private float kScale = 1;
    private float vScale = 1;
    private float outputScale;
    private String kvSharingTargetLayerName;
    private RopeSpec rope;
    private boolean returnLse;

    private Builder(String name, int numHeads, int headSize) {
      this.name = name;
      this.numHeads = numHeads;
      this.headSize = headSize;
      this.numKvHeads = numHeads;
      this.scale = (float) (1 / Math.sqrt(headSize));
    }

    public Builder numKvHeads(int value) {
      numKvHeads = value;
      return this;
    }

    public Builder scale(float value) {
      scale = value;
      return this;
    }

    public Builder attnType(AttnType value) {
      attnType = value;
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

    public Builder alibiSlopes(List<Float> value) {
      alibiSlopes = value;
      return this;
    }

    public Builder sinks(List<Float> value) {
      sinks = value;
      return this;
    }

    public Builder kvCacheDtype(KvCacheDtype value) {
      kvCacheDtype = value;
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

    public Builder kvSharingTargetLayerName(String value) {
      kvSharingTargetLayerName = value;
      return this;
    }

    public Builder rope(RopeSpec value) {
      rope = value;
      return this;
    }

    public Builder returnLse(boolean value) {
      returnLse = value;
      return this;
    }

    public LayerSpec build() {
      return new LayerSpec(
          name,
          numHeads,
          numKvHeads,
          headSize,
          scale,
          attnType,
          slidingWindow,
          logitsSoftCap,
          alibiSlopes,
          sinks,
          kvCacheDtype,
          kScale,
          vScale,
          outputScale,
          kvSharingTargetLayerName,
          rope,
          returnLse);
    }
  }
}
