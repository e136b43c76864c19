// SPDX-License-Identifier: Apache-2.0
package io.broadhead.attention;

import io.broadhead.arrow.BatchSchema;
import io.broadhead.attention.cache.LayerRole;
import io.broadhead.attention.job.LayerSpec;
import io.broadhead.kernel.KernelLayer;
import java.util.HashMap;
import java.util.Iterator;
import java.util.LinkedHashMap;
import java.util.Map;
import org.apache.arrow.memory.BufferAllocator;

/**
 * What is kept for the schemas of step batches, so that a schema is looked at once. Its owner
 * closes it; used by one thread at a time.
 */
final class BoundSchemas implements AutoCloseable {
  /** A stream has one schema for each layer shape, or few. */
  private static final int MOST = 64;

  private final LayerSet layers;
  private final Map<String, LayerRole> roles;
  private final BufferAllocator allocator;
  private final Map<BatchSchema, Bound> schemas = new LinkedHashMap<>(16, 0.75f, true);

  private static final class Bound {
    final StepBatchSchema schema;
    final Map<String, BoundLayer> layers = new HashMap<>();

    Bound(BatchSchema schema) {
      this.schema = new StepBatchSchema(schema);
    }

    void close() {
      layers.values().forEach(BoundLayer::close);
    }
  }

  /**
   * @param roles of the layers that have a cache, by name
   */
  BoundSchemas(LayerSet layers, Map<String, LayerRole> roles, BufferAllocator allocator) {
    this.layers = layers;
    this.roles = roles;
    this.allocator = allocator;
  }

  /**
   * @throws InvalidBatchException if the schema is none of a step batch
   */
  StepBatchSchema of(BatchSchema schema) {
    return bound(schema).schema;
  }

  private Bound bound(BatchSchema schema) {
    Bound bound = schemas.get(schema);
    if (bound == null) {
      bound = new Bound(schema);
      schemas.put(schema, bound);
    }
    return bound;
  }

  /**
   * @throws InvalidBatchException if the schema does not fit the layer
   */
  BoundLayer of(BatchSchema schema, LayerSpec layer) {
    Bound bound = bound(schema);
    BoundLayer boundLayer = bound.layers.get(layer.name());
    if (boundLayer == null) {
      LayerRole role = roles.get(layer.name());
      if (role != null && bound.schema.isManaged()) {
        bound.schema.requireManagedColumns(layer);
      }
      KernelLayer kernels = layers.open(layer, bound.schema.dtype());
      boundLayer = new BoundLayer(layer, role, kernels, bound.schema, allocator);
      bound.layers.put(layer.name(), boundLayer);
    }
    return boundLayer;
  }

  /** Whether {@link #trim} would let go of any. */
  boolean isOverfull() {
    return schemas.size() > MOST;
  }

  /** Lets go of schemas that were not used for the longest time; no batch may be pending. */
  void trim() {
    Iterator<Bound> eldest = schemas.values().iterator();
    while (schemas.size() > MOST) {
      eldest.next().close();
      eldest.remove();
    }
  }

  @Override
  public void close() {
    schemas.values().forEach(Bound::close);
    schemas.clear();
  }
}
