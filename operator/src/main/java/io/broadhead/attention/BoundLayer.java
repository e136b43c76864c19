// SPDX-License-Identifier: Apache-2.0
package io.broadhead.attention;

import io.broadhead.attention.cache.LayerRole;
import io.broadhead.attention.job.LayerSpec;
import io.broadhead.kernel.KernelLayer;
import io.broadhead.kernel.ResultColumns;
import io.broadhead.kernel.StepBinding;
import io.broadhead.kernel.StepPart;
import io.broadhead.kernel.StepSchema;
import java.util.ArrayList;
import java.util.List;
import org.apache.arrow.memory.BufferAllocator;

/**
 * A layer and the schema of some of its batches, with all that is laid out once for them. Its owner
 * closes it; used by one thread at a time.
 */
final class BoundLayer implements AutoCloseable {
  private final LayerSpec spec;
  private final LayerRole role;
  private final boolean managed;
  private final StepBatchSchema batchSchema;
  private final StepSchema schema;
  private final StepBinding binding;
  private final ResultColumns results;
  private final BufferAllocator allocator;
  private final List<StepPart> free = new ArrayList<>();

  /**
   * @param role of the layer in the cache, or null if it has none
   */
  BoundLayer(
      LayerSpec spec,
      LayerRole role,
      KernelLayer layer,
      StepBatchSchema batchSchema,
      BufferAllocator allocator) {
    this.spec = spec;
    this.role = role;
    this.managed = role != null && batchSchema.isManaged();
    this.batchSchema = batchSchema;
    this.schema =
        managed
            ? StepSchema.planned(batchSchema.schema())
            : StepSchema.asSent(batchSchema.schema());
    this.binding = new StepBinding(layer, schema, allocator);
    this.results = new ResultColumns(layer.config(), batchSchema.schema(), allocator);
    this.allocator = allocator;
  }

  LayerSpec spec() {
    return spec;
  }

  LayerRole role() {
    return role;
  }

  StepBatchSchema batchSchema() {
    return batchSchema;
  }

  StepBinding binding() {
    return binding;
  }

  ResultColumns results() {
    return results;
  }

  boolean isManaged() {
    return managed;
  }

  /** The cache that the layer writes, or -1 if it writes none. */
  int writesCache() {
    return role != null && role.writes() ? role.cache() : -1;
  }

  /** Whether the batches bring block tables of their own. */
  boolean isExternal() {
    return role != null && !managed;
  }

  /** Whether rows of both can be computed in one step. */
  boolean joins(BoundLayer other) {
    return this == other
        || binding.layer() == other.binding.layer()
            && schema.isPlanned() == other.schema.isPlanned()
            && schema.columns().equals(other.schema.columns());
  }

  /** A part to point; goes back with {@link #giveBack}. */
  StepPart takePart() {
    return free.isEmpty() ? new StepPart(schema, results, allocator) : free.remove(free.size() - 1);
  }

  void giveBack(StepPart part) {
    free.add(part);
  }

  @Override
  public void close() {
    free.forEach(StepPart::close);
    free.clear();
    binding.close();
  }
}
