// SPDX-License-Identifier: Apache-2.0
package io.broadhead.attention.job;

import io.broadhead.arrow.DType;
import java.io.Serializable;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.OptionalLong;

/**
 * The layers of a job and the KV cache they keep: a checked job file. Every layer has its {@code
 * kvCacheDtype} filled in, and a layer that shares a cache has the dtype and scales of that cache.
 * Immutable.
 */
public record Job(KvCacheSpec kvCache, List<LayerSpec> layers) implements Serializable {

  public Job {
    if (layers.isEmpty()) {
      throw InvalidJobException.expected(
          JobFileKey.LAYERS.key(), "at least one layer", "an empty list");
    }
    Map<String, LayerSpec> byName = new LinkedHashMap<>();
    for (int i = 0; i < layers.size(); i++) {
      String path = JobFileKey.LAYERS.key() + "[" + i + "]";
      try {
        LayerSpec layer = resolve(layers.get(i), kvCache, byName);
        byName.put(layer.name(), layer);
      } catch (InvalidJobException e) {
        throw e.under(path);
      }
    }
    layers = List.copyOf(byName.values());
    for (LayerSpec layer : layers) {
      if (kvCache.isFraction()) {
        requireDtype(layer);
      } else if (layer.attnType().cached() && kvCache.numBlocks() == 0) {
        throw new InvalidJobException(
            JobFileKey.KV_CACHE.key() + "." + JobFileKey.NUM_BLOCKS.key(),
            "missing; expected "
                + JobFileKey.NUM_BLOCKS.accepted()
                + ", because layer '"
                + layer.name()
                + "' keeps a KV cache");
      }
    }
    requireCountableBytes(kvCache, layers);
  }

  /** How many blocks there can be must not depend on the first batch. */
  private static void requireDtype(LayerSpec layer) {
    if (layer.attnType().cached() && layer.kvCacheDtype() == KvCacheDtype.AUTO) {
      throw InvalidJobException.expected(
          JobFileKey.KV_CACHE.key() + "." + JobFileKey.MEMORY_FRACTION.key(),
          "a kv_cache_dtype other than auto, which says how large a block is, for layer '"
              + layer.name()
              + "'",
          KvCacheDtype.AUTO.label());
    }
  }

  /** Even the widest element type leaves the bytes of all caches a number that a long holds. */
  private static void requireCountableBytes(KvCacheSpec kvCache, List<LayerSpec> layers) {
    long sum = 0;
    try {
      for (LayerSpec layer : layers) {
        sum = Math.addExact(sum, kvCache.bytes(layer, DType.FLOAT32));
      }
    } catch (ArithmeticException e) {
      throw InvalidJobException.expected(
          JobFileKey.KV_CACHE.key() + "." + JobFileKey.NUM_BLOCKS.key(),
          "caches of less than 2^63 bytes in all",
          kvCache.numBlocks() + " blocks of " + kvCache.blockSize() + " tokens");
    }
  }

  /** The layer of that name, if there is one. */
  public Optional<LayerSpec> layer(String name) {
    return layers.stream().filter(l -> l.name().equals(name)).findFirst();
  }

  /**
   * The layer whose cache {@code layer} reads: itself, or the one at the end of its sharing chain.
   */
  public LayerSpec cacheOwner(LayerSpec layer) {
    LayerSpec owner = layer;
    while (owner.kvSharingTargetLayerName() != null) {
      owner = layer(owner.kvSharingTargetLayerName()).orElseThrow();
    }
    return owner;
  }

  /**
   * Bytes that the KV caches of all layers take in one parallel instance; empty if a layer's dtype
   * is {@code auto}, so that its first batch decides, or if the free memory of a GPU decides.
   */
  public OptionalLong cacheBytes() {
    if (kvCache.isFraction()) {
      return OptionalLong.empty();
    }
    long sum = 0;
    for (LayerSpec layer : cacheOwners()) {
      if (layer.kvCacheDtype() == KvCacheDtype.AUTO) {
        return OptionalLong.empty();
      }
      sum = Math.addExact(sum, kvCache.bytes(layer, layer.kvCacheDtype().dtype().orElseThrow()));
    }
    return OptionalLong.of(sum);
  }

  private List<LayerSpec> cacheOwners() {
    return layers.stream()
        .filter(layer -> layer.attnType().cached() && layer.kvSharingTargetLayerName() == null)
        .toList();
  }

  /**
   * This job with as many blocks as {@code kv_cache.memory_fraction} allows.
   *
   * @param freeMemory bytes that a GPU has free; 0: the backend is none
   * @throws InvalidJobException if there is no GPU, or not one block fits
   */
  public Job sizedFor(long freeMemory) {
    if (!kvCache.isFraction() || cacheOwners().isEmpty()) {
      return this;
    }
    String key = JobFileKey.KV_CACHE.key() + "." + JobFileKey.MEMORY_FRACTION.key();
    if (freeMemory == 0) {
      throw InvalidJobException.expected(
          key,
          "num_blocks instead on a backend without memory of its own",
          kvCache.memoryFraction());
    }
    long blockBytes = 0;
    for (LayerSpec layer : cacheOwners()) {
      DType stored = layer.kvCacheDtype().dtype().orElseThrow();
      blockBytes = Math.addExact(blockBytes, kvCache.blockBytes(layer, stored));
    }
    long budget = (long) ((double) kvCache.memoryFraction() * freeMemory);
    long blocks = Math.min(budget / blockBytes, KvCacheSpec.MAX_BLOCKS);
    if (blocks == 0) {
      throw InvalidJobException.expected(
          key,
          "room for a block of every layer, " + blockBytes + " bytes",
          budget + " bytes of " + freeMemory + " free ones");
    }
    return new Job(new KvCacheSpec(kvCache.blockSize(), blocks, kvCache.dtype()), layers);
  }

  private static LayerSpec resolve(
      LayerSpec layer, KvCacheSpec kvCache, Map<String, LayerSpec> earlier) {
    if (earlier.containsKey(layer.name())) {
      throw new InvalidJobException(
          JobFileKey.NAME.key(),
          "'"
              + layer.name()
              + "' is the name of layers["
              + List.copyOf(earlier.keySet()).indexOf(layer.name())
              + "] too; expected a unique name");
    }
    LayerSpec.Builder resolved = layer.toBuilder();
    if (layer.kvSharingTargetLayerName() != null) {
      LayerSpec target = sharingTarget(layer, earlier);
      return resolved
          .kvCacheDtype(target.kvCacheDtype())
          .kScale(target.kScale())
          .vScale(target.vScale())
          .build();
    }
    KvCacheDtype dtype = layer.kvCacheDtype();
    if (dtype == null) {
      dtype = layer.attnType().cached() ? kvCache.dtype() : KvCacheDtype.AUTO;
    }
    fp8Only(JobFileKey.K_SCALE, layer.kScale(), dtype);
    fp8Only(JobFileKey.V_SCALE, layer.vScale(), dtype);
    return resolved.kvCacheDtype(dtype).build();
  }

  private static void fp8Only(JobFileKey key, float scale, KvCacheDtype dtype) {
    if (scale != 1 && !dtype.fp8()) {
      throw InvalidJobException.expected(
          key.key(),
          "1 or no such key, because the kv_cache_dtype is "
              + dtype.label()
              + " (fp8_e4m3 and fp8_e5m2 have scales)",
          scale);
    }
  }

  private static LayerSpec sharingTarget(LayerSpec layer, Map<String, LayerSpec> earlier) {
    String key = JobFileKey.KV_SHARING_TARGET_LAYER_NAME.key();
    String name = layer.kvSharingTargetLayerName();
    if (name.equals(layer.name())) {
      throw InvalidJobException.expected(key, "another layer", "the layer itself");
    }
    LayerSpec target = earlier.get(name);
    if (target == null) {
      throw InvalidJobException.expected(
          key,
          earlier.isEmpty()
              ? "an earlier layer, and this is the first"
              : "one of the layers before this one (" + String.join(", ", earlier.keySet()) + ")",
          "'" + name + "'");
    }
    same(key, name, JobFileKey.ATTN_TYPE, target.attnType().label(), layer.attnType().label());
    same(key, name, JobFileKey.NUM_KV_HEADS, target.numKvHeads(), layer.numKvHeads());
    same(key, name, JobFileKey.HEAD_SIZE, target.headSize(), layer.headSize());
    if (layer.kvCacheDtype() != null) {
      same(
          key,
          name,
          JobFileKey.KV_CACHE_DTYPE,
          target.kvCacheDtype().label(),
          layer.kvCacheDtype().label());
    }
    if (layer.kScale() != 1) {
      same(key, name, JobFileKey.K_SCALE, target.kScale(), layer.kScale());
    }
    if (layer.vScale() != 1) {
      same(key, name, JobFileKey.V_SCALE, target.vScale(), layer.vScale());
    }
    return target;
  }

  private static void same(
      String key, String target, JobFileKey what, Object expected, Object got) {
    if (!expected.equals(got)) {
      throw InvalidJobException.expected(
          key,
          "a layer with the same " + what.key() + " ('" + target + "' has " + expected + ")",
          got + " in this layer");
    }
  }
}
