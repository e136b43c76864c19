// SPDX-License-Identifier: Apache-2.0
package io.broadhead.attention.job;

import java.util.List;
import java.util.stream.Stream;

/** Every key of the job file: the parser knows no other, and the reference page lists these. */
public enum JobFileKey {
  KV_CACHE(Section.JOB, "kv_cache", "mapping", "required by layers with a cache", "the KV cache"),
  LAYERS(
      Section.JOB, "layers", "list of mappings", "required", "the attention layers, one or more"),

  BLOCK_SIZE(
      Section.KV_CACHE,
      "block_size",
      "multiple of 16",
      "16",
      "tokens per block: slot = block * block_size + offset"),
  NUM_BLOCKS(
      Section.KV_CACHE,
      "num_blocks",
      "integer, 1 to 2147483647",
      "required by layers with a cache, unless memory_fraction is set",
      "blocks in the pool of each layer with a cache, in every parallel instance"),
  MEMORY_FRACTION(
      Section.KV_CACHE,
      "memory_fraction",
      "number above 0, at most 1",
      "none",
      "instead of num_blocks: fraction of the memory that is free on the GPU when an"
          + " instance opens it, for the pools of all layers together; their kv_cache_dtype"
          + " must not be auto"),
  DTYPE(
      Section.KV_CACHE,
      "dtype",
      "as kv_cache_dtype",
      "auto",
      "kv_cache_dtype of the layers that do not set their own"),

  NAME(
      Section.LAYER,
      "name",
      "text",
      "required",
      "unique name, used in the layer column of step batches"),
  NUM_HEADS(Section.LAYER, "num_heads", "integer, at least 1", "required", "query heads"),
  NUM_KV_HEADS(
      Section.LAYER, "num_kv_heads", "integer that divides num_heads", "num_heads", "KV heads"),
  HEAD_SIZE(
      Section.LAYER,
      "head_size",
      "32, 64, 80, 96, 128, 160, 192, 224 or 256",
      "required",
      "elements per head"),
  SCALE(
      Section.LAYER,
      "scale",
      "finite number",
      "head_size ** -0.5",
      "factor of the dot product of query and key"),
  ATTN_TYPE(
      Section.LAYER,
      "attn_type",
      "decoder, encoder, encoder_only or encoder_decoder",
      "decoder",
      "decoder: causal over the cache; encoder and encoder_only: both directions over the row's own"
          + " keys, no cache; encoder_decoder: over all cached encoder tokens"),
  SLIDING_WINDOW(
      Section.LAYER,
      "sliding_window",
      "integer, at least 1",
      "none",
      "tokens that a query sees, including itself; on each side in layers that are not"
          + " causal"),
  LOGITS_SOFT_CAP(
      Section.LAYER,
      "logits_soft_cap",
      "number, at least 0",
      "none",
      "c of c * tanh(score / c); 0 means none"),
  ALIBI_SLOPES(
      Section.LAYER,
      "alibi_slopes",
      "list of num_heads finite numbers",
      "none",
      "per head: slope * (key position - query position) is added to the score"),
  SINKS(
      Section.LAYER,
      "sinks",
      "list of num_heads finite numbers",
      "none",
      "per head: logit in the softmax of an extra key that has no value"),
  KV_CACHE_DTYPE(
      Section.LAYER,
      "kv_cache_dtype",
      "auto, float16, bfloat16, float32, fp8 (= fp8_e4m3), fp8_e4m3 or fp8_e5m2",
      "kv_cache.dtype",
      "element type of the layer's cache; auto: that of the layer's first batch"),
  K_SCALE(
      Section.LAYER,
      "k_scale",
      "number above 0",
      "1",
      "fp8 caches only: the cache stores key / k_scale"),
  V_SCALE(
      Section.LAYER,
      "v_scale",
      "number above 0",
      "1",
      "fp8 caches only: the cache stores value / v_scale"),
  OUTPUT_SCALE(
      Section.LAYER,
      "output_scale",
      "number above 0",
      "none",
      "the output column holds output / output_scale as float8_e4m3fn"),
  KV_SHARING_TARGET_LAYER_NAME(
      Section.LAYER,
      "kv_sharing_target_layer_name",
      "name of an earlier layer",
      "none",
      "read that layer's cache and write nothing; both layers need the same attn_type,"
          + " num_kv_heads, head_size and kv_cache_dtype"),
  ROPE(Section.LAYER, "rope", "mapping", "none", "rotate queries and keys by the position column"),
  RETURN_LSE(
      Section.LAYER,
      "return_lse",
      "true or false",
      "false",
      "add the lse column to results: natural log of the softmax denominator"),

  ROTARY_DIM(
      Section.ROPE,
      "rotary_dim",
      "even integer, 2 to head_size",
      "required",
      "leading elements of each head that are rotated"),
  MAX_POSITION(
      Section.ROPE,
      "max_position",
      "integer, at least 1",
      "required",
      "positions must be below it"),
  BASE(Section.ROPE, "base", "number above 0", "10000", "wavelength base"),
  IS_NEOX(
      Section.ROPE,
      "is_neox",
      "true or false",
      "true",
      "true pairs element j with j + rotary_dim / 2, false pairs 2j with 2j + 1"),
  ROPE_SCALING(
      Section.ROPE,
      "rope_scaling",
      "mapping",
      "none",
      "stretches the frequencies as Hugging Face configurations of the same name do"),

  ROPE_TYPE(
      Section.ROPE_SCALING,
      "rope_type",
      RopeScaling.Type.NAMES,
      "required",
      "the scaling rule; dynamic uses max_position as the length of the sequence"),
  FACTOR(
      Section.ROPE_SCALING,
      "factor",
      "number, at least 1",
      "required unless rope_type is default",
      "factor by which the context is stretched"),
  ORIGINAL_MAX_POSITION_EMBEDDINGS(
      Section.ROPE_SCALING,
      "original_max_position_embeddings",
      "integer, at least 1",
      "required by dynamic, llama3 and yarn",
      "context the model was trained on"),
  LOW_FREQ_FACTOR(
      Section.ROPE_SCALING,
      "low_freq_factor",
      "number above 0",
      "1",
      "llama3: wavelengths above original context / low_freq_factor are stretched in full"),
  HIGH_FREQ_FACTOR(
      Section.ROPE_SCALING,
      "high_freq_factor",
      "number above low_freq_factor",
      "4",
      "llama3: wavelengths below original context / high_freq_factor are unchanged"),
  BETA_FAST(
      Section.ROPE_SCALING,
      "beta_fast",
      "number, at least beta_slow",
      "32",
      "yarn: pairs that rotate more often within the original context are unchanged"),
  BETA_SLOW(
      Section.ROPE_SCALING,
      "beta_slow",
      "number above 0",
      "1",
      "yarn: pairs that rotate less often are stretched in full"),
  TRUNCATE(
      Section.ROPE_SCALING,
      "truncate",
      "true or false",
      "true",
      "yarn: round both bounds outward to whole pairs"),
  ATTENTION_FACTOR(
      Section.ROPE_SCALING,
      "attention_factor",
      "number above 0",
      "yarn: computed from factor, mscale and mscale_all_dim",
      "yarn: factor applied to cosines and sines"),
  MSCALE(
      Section.ROPE_SCALING,
      "mscale",
      "number above 0",
      "none",
      "yarn: weight of log(factor) in attention_factor"),
  MSCALE_ALL_DIM(
      Section.ROPE_SCALING,
      "mscale_all_dim",
      "number above 0",
      "none",
      "yarn: the same in the denominator; set both or neither");

  /** The mappings of a job file. */
  public enum Section {
    JOB(""),
    KV_CACHE("kv_cache"),
    LAYER("layers[]"),
    ROPE("layers[].rope"),
    ROPE_SCALING("layers[].rope.rope_scaling");

    private final String path;

    Section(String path) {
      this.path = path;
    }

    /** Where the mapping stands; empty for the file itself. */
    public String path() {
      return path;
    }

    /** The keys of this mapping, in the order of the reference page. */
    public List<JobFileKey> keys() {
      return Stream.of(JobFileKey.values()).filter(k -> k.section == this).toList();
    }
  }

  private final Section section;
  private final String key;
  private final String accepted;
  private final String byDefault;
  private final String description;

  JobFileKey(Section section, String key, String accepted, String byDefault, String description) {
    this.section = section;
    this.key = key;
    this.accepted = accepted;
    this.byDefault = byDefault;
    this.description = description;
  }

  public Section section() {
    return section;
  }

  /** The key as it is written in the file. */
  public String key() {
    return key;
  }

  /** Accepted values, in words. */
  public String accepted() {
    return accepted;
  }

  /** What holds where the key is absent, in words. */
  public String byDefault() {
    return byDefault;
  }

  public String description() {
    return description;
  }
}
