// SPDX-License-Identifier: Apache-2.0
package io.broadhead.attention;

import io.broadhead.attention.cache.CacheShape;
import io.broadhead.attention.cache.LayerRole;
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

  CacheShape shape(KvCacheSpec cache) {
    return new CacheShape(
        cache.blockSize(), Math.toIntExact(cache.numBlocks()), List.copyOf(roles.values()));
  }
}
