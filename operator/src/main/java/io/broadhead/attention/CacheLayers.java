// SPDX-License-Identifier: Apache-2.0
package io.broadhead.attention;

import io.broadhead.arrow.DType;
import io.broadhead.attention.cache.CacheHeader;
import io.broadhead.attention.cache.CacheShape;
import io.broadhead.attention.cache.LayerRole;
import io.broadhead.attention.job.AttnType;
import io.broadhead.attention.job.Job;
import io.broadhead.attention.job.KvCacheSpec;
import io.broadhead.attention.job.LayerSpec;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;

/**
 * The layers of a job that have a cache, as managed block tables see them. Immutable.
 *
 * @param roles by the layer's name, in the job's order
 * @param owners the layers that write the caches, in the caches' order
 */
record CacheLayers(Map<String, LayerRole> roles, List<LayerSpec> owners) {
  static CacheLayers of(Job job) {
    Map<String, LayerRole> roles = new LinkedHashMap<>();
    List<LayerSpec> owners = new ArrayList<>();
    for (LayerSpec layer : job.layers()) {
      if (!layer.attnType().cached()) {
        continue;
      }
      int index = roles.size();
      boolean cross = layer.attnType() == AttnType.ENCODER_DECODER;
      LayerSpec owner = job.cacheOwner(layer);
      if (owner == layer) {
        roles.put(layer.name(), new LayerRole(index, layer.name(), owners.size(), index, cross));
        owners.add(layer);
      } else {
        LayerRole shared = roles.get(owner.name());
        roles.put(
            layer.name(),
            new LayerRole(index, layer.name(), shared.cache(), shared.index(), cross));
      }
    }
    return new CacheLayers(roles, owners);
  }

  /**
   * What is written down of the caches, whose element types {@code layers} knows.
   *
   * @param managed whether block tables are managed
   * @param contents whether keys and values are saved
   */
  CacheHeader header(
      boolean managed, boolean contents, int shards, KvCacheSpec cache, LayerSet layers) {
    List<CacheHeader.Layer> saved = new ArrayList<>();
    for (LayerRole role : roles.values()) {
      LayerSpec owner = owners.get(role.cache());
      String dtype =
          layers
              .cache(owner)
              .map(pool -> pool.config().dtype())
              .or(() -> owner.kvCacheDtype().dtype())
              .map(DType::label)
              .orElse("");
      saved.add(
          new CacheHeader.Layer(
              role.name(),
              owner.name(),
              owner.numKvHeads(),
              owner.headSize(),
              dtype,
              owner.kScale(),
              owner.vScale()));
    }
    return new CacheHeader(managed, contents, shards, cache.blockSize(), saved);
  }

  CacheShape shape(KvCacheSpec cache) {
    return new CacheShape(
        cache.blockSize(), Math.toIntExact(cache.numBlocks()), List.copyOf(roles.values()));
  }
}
