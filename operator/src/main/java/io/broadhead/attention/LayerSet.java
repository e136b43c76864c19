// SPDX-License-Identifier: Apache-2.0
package io.broadhead.attention;

import io.broadhead.arrow.DType;
import io.broadhead.attention.job.AttnType;
import io.broadhead.attention.job.Job;
import io.broadhead.attention.job.KvCacheSpec;
import io.broadhead.attention.job.LayerSpec;
import io.broadhead.attention.job.RopeSpec;
import io.broadhead.kernel.AttentionType;
import io.broadhead.kernel.CacheConfig;
import io.broadhead.kernel.ErrorCode;
import io.broadhead.kernel.KernelCache;
import io.broadhead.kernel.KernelEngine;
import io.broadhead.kernel.KernelException;
import io.broadhead.kernel.KernelLayer;
import io.broadhead.kernel.LayerConfig;
import io.broadhead.kernel.RopeConfig;
import java.util.EnumMap;
import java.util.HashMap;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.function.Function;
import java.util.stream.Collectors;

/**
 * The layers of a job on an engine, and their caches. A layer is opened, and its cache reserved, at
 * its first batch; with {@code kv_cache_dtype: auto} the cache takes that batch's element type.
 *
 * <p>Its owner closes it, and the engine after it. Used by one thread at a time.
 */
final class LayerSet implements AutoCloseable {
  /** Element types that queries, keys and values may have. */
  static final List<DType> ELEMENT_TYPES = List.of(DType.FLOAT32, DType.FLOAT16, DType.BFLOAT16);

  private final Job job;
  private final KernelEngine engine;
  private final Map<String, LayerSpec> byName;
  private final Map<String, KernelCache> caches = new HashMap<>();
  private final Map<RopeSpec, RopeConfig> ropes = new HashMap<>();
  private final Map<String, Map<DType, KernelLayer>> opened = new HashMap<>();
  private long cacheBytes;

  LayerSet(Job job, KernelEngine engine) {
    this.job = job;
    this.engine = engine;
    this.byName =
        job.layers().stream()
            .collect(
                Collectors.toMap(
                    LayerSpec::name, Function.identity(), (a, b) -> a, LinkedHashMap::new));
  }

  Job job() {
    return job;
  }

  Optional<LayerSpec> find(String name) {
    return Optional.ofNullable(byName.get(name));
  }

  /** The names of all layers, quoted, for messages. */
  String names() {
    return byName.keySet().stream().collect(Collectors.joining("', '", "'", "'"));
  }

  /** Bytes of the caches that exist by now. */
  long cacheBytes() {
    return cacheBytes;
  }

  /**
   * @throws KernelException with the reason if no element type that a batch may have will do
   */
  void requireSupport(LayerSpec layer) {
    KernelException reason = null;
    for (DType dtype : ELEMENT_TYPES) {
      DType cacheDtype =
          layer.attnType().cached() ? layer.kvCacheDtype().dtype().orElse(dtype) : null;
      Optional<KernelException> unsupported =
          KernelLayer.unsupported(
              engine, config(layer, dtype), cacheDtype, job.kvCache().blockSize());
      if (unsupported.isEmpty()) {
        return;
      }
      reason = unsupported.get();
    }
    throw new KernelException(
        reason.code(),
        -1,
        "layer '"
            + layer.name()
            + "' on backend "
            + engine.info().backend()
            + ": "
            + reason.getMessage());
  }

  /** The layer for batches of {@code dtype}, opened if this is the first. */
  KernelLayer open(LayerSpec layer, DType dtype) {
    Map<DType, KernelLayer> ofLayer =
        opened.computeIfAbsent(layer.name(), name -> new EnumMap<>(DType.class));
    KernelLayer kernels = ofLayer.get(dtype);
    if (kernels == null) {
      KernelCache cache = layer.attnType().cached() ? cache(layer, dtype) : null;
      kernels = new KernelLayer(engine, config(layer, dtype), cache);
      ofLayer.put(dtype, kernels);
    }
    return kernels;
  }

  /** The cache that {@code layer} reads, if it exists by now. */
  Optional<KernelCache> cache(LayerSpec layer) {
    return Optional.ofNullable(caches.get(job.cacheOwner(layer).name()));
  }

  /**
   * The cache that {@code layer} reads, reserved if it does not exist yet.
   *
   * @param dtype of the layer's batches: what a cache with kv_cache_dtype auto stores
   */
  KernelCache cache(LayerSpec layer, DType dtype) {
    LayerSpec owner = job.cacheOwner(layer);
    DType stored = owner.kvCacheDtype().dtype().orElse(dtype);
    KernelCache cache = caches.get(owner.name());
    if (cache == null) {
      cache = reserve(owner, stored);
      caches.put(owner.name(), cache);
      cacheBytes += cache.bytes();
    }
    if (cache.config().dtype() != stored) {
      throw new KernelException(
          ErrorCode.SCHEMA_MISMATCH,
          -1,
          "column query: expected "
              + cache.config().dtype().label()
              + ", which the cache has had since its first batch, got "
              + dtype.label()
              + "; to mix both, set kv_cache_dtype of layer '"
              + owner.name()
              + "'");
    }
    return cache;
  }

  /**
   * Reserves the cache that {@code layer} reads, with elements of the type called {@code label}.
   */
  void reserve(LayerSpec layer, String label) {
    DType stored =
        DType.find(label)
            .orElseThrow(
                () -> new IllegalStateException("kv_cache_dtype in the state: unknown " + label));
    cache(layer, stored);
  }

  private KernelCache reserve(LayerSpec owner, DType stored) {
    KvCacheSpec kv = job.kvCache();
    try {
      return new KernelCache(
          engine,
          new CacheConfig(
              kv.numBlocks(), kv.blockSize(), owner.numKvHeads(), owner.headSize(), stored));
    } catch (KernelException e) {
      if (e.code() != ErrorCode.OUT_OF_MEMORY) {
        throw e;
      }
      throw new KernelException(
          e.code(),
          -1,
          e.getMessage()
              + "; a smaller kv_cache_dtype than "
              + stored.label()
              + " helps, too, or a lower memory_fraction where that decides; the caches before that"
              + " of layer '"
              + owner.name()
              + "' have "
              + cacheBytes
              + " bytes");
    }
  }

  /** What kernels need to know of {@code layer} for batches of {@code dtype}. */
  LayerConfig config(LayerSpec layer, DType dtype) {
    LayerConfig.Builder config =
        LayerConfig.builder(layer.name(), layer.numHeads(), layer.numKvHeads(), layer.headSize())
            .attentionType(attentionType(layer.attnType()))
            .dtype(dtype)
            .scale(layer.scale())
            .slidingWindow(layer.slidingWindow())
            .logitsSoftCap(layer.logitsSoftCap())
            .kScale(layer.kScale())
            .vScale(layer.vScale())
            .outputScale(layer.outputScale())
            .returnLse(layer.returnLse())
            .readOnlyCache(layer.kvSharingTargetLayerName() != null);
    if (!layer.alibiSlopes().isEmpty()) {
      config.alibiSlopes(floats(layer.alibiSlopes()));
    }
    if (!layer.sinks().isEmpty()) {
      config.sinks(floats(layer.sinks()));
    }
    if (layer.rope() != null) {
      config.rope(ropes.computeIfAbsent(layer.rope(), LayerSet::ropeConfig));
    }
    return config.build();
  }

  private static RopeConfig ropeConfig(RopeSpec rope) {
    return new RopeConfig(rope.rotaryDim(), rope.maxPosition(), rope.isNeox(), rope.cosSin());
  }

  private static AttentionType attentionType(AttnType type) {
    return switch (type) {
      case DECODER -> AttentionType.DECODER;
      case ENCODER -> AttentionType.ENCODER;
      case ENCODER_ONLY -> AttentionType.ENCODER_ONLY;
      case ENCODER_DECODER -> AttentionType.ENCODER_DECODER;
    };
  }

  private static float[] floats(List<Float> values) {
    float[] floats = new float[values.size()];
    for (int i = 0; i < floats.length; i++) {
      floats[i] = values.get(i);
    }
    return floats;
  }

  @Override
  public void close() {
    opened.values().forEach(ofLayer -> ofLayer.values().forEach(KernelLayer::close));
    opened.clear();
    caches.values().forEach(KernelCache::close);
    caches.clear();
    cacheBytes = 0;
  }
}
