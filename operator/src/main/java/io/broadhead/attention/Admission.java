// SPDX-License-Identifier: Apache-2.0
package io.broadhead.attention;

import io.broadhead.arrow.ArrowBatch;
import io.broadhead.arrow.BatchSchema;
import io.broadhead.arrow.StepColumns;
import io.broadhead.arrow.TensorField;
import io.broadhead.attention.job.LayerSpec;
import io.broadhead.kernel.ErrorCode;
import io.broadhead.kernel.KernelException;
import io.broadhead.kernel.ResultColumns;
import io.broadhead.kernel.ResultDraft;
import java.util.Optional;
import java.util.function.IntUnaryOperator;
import org.apache.arrow.memory.BufferAllocator;

/**
 * Finds the layers that batches are of, and keeps what belongs to their schemas. Its owner closes
 * it; used by one thread at a time.
 */
final class Admission implements AutoCloseable {
  private final LayerSet layers;
  private final BoundSchemas schemas;
  private final BlockTables tables;
  private final BufferAllocator allocator;

  Admission(
      LayerSet layers, CacheLayers cacheLayers, BlockTables tables, BufferAllocator allocator) {
    this.layers = layers;
    this.schemas = new BoundSchemas(layers, cacheLayers.roles(), allocator);
    this.tables = tables;
    this.allocator = allocator;
  }

  /**
   * Takes a batch on: finds its layer, and refuses rows that are of no sequence or another layer.
   *
   * @param time now, by the caller's clock
   * @return empty if no row names a layer of the job: the batch is done then
   */
  Optional<PendingBatch> admit(
      ArrowBatch batch, IntUnaryOperator shardOfRow, long time, StepHandler handler) {
    StepBatchSchema schema = schemas.of(batch.schema());
    Optional<LayerSpec> named = layerOf(batch, schema);
    if (named.isEmpty()) {
      turnDown(batch, schema, handler);
      return Optional.empty();
    }
    LayerSpec layer = named.get();
    PendingBatch pending;
    try {
      BoundLayer bound = schemas.of(batch.schema(), layer);
      tables.requireOneMode(bound);
      pending = new PendingBatch(batch, bound, shardOfRow, tables.losses(), time, handler);
    } catch (KernelException e) {
      throw StepRunner.named(e, layer);
    }
    boolean admitted = false;
    try {
      if (schema.firstNullSequence(batch, 0) >= 0
          || schema.hasLayer() && batch.numRows() > 0 && !isOfOneLayer(batch, schema)) {
        refuseMisplaced(pending, layer);
      }
      admitted = true;
      return Optional.of(pending);
    } finally {
      if (!admitted) {
        pending.close();
      }
    }
  }

  /**
   * Refuses all rows of a batch of no layer, if it has any, and hands over a result without rows.
   * Touches no cache and reserves none: whose it would be nobody can tell.
   */
  private void turnDown(ArrowBatch batch, StepBatchSchema schema, StepHandler handler) {
    LayerSpec layer = layerByQuery(batch.schema());
    try (ResultDraft draft = resultColumns(layer, schema).draft(batch)) {
      for (int row = 0; row < batch.numRows(); row++) {
        String name = schema.layer(batch, row);
        String message =
            schema.firstNullSequence(batch, row) == row
                ? StepBatchSchema.NULL_SEQUENCE
                : misplacedMessage(Optional.empty(), null, name);
        handler.refused(
            new RefusedRow(
                ErrorCode.INVALID_ROW, name, schema.sequenceId(batch, row), row, message));
        draft.refuse(row);
      }
      handler.done(draft.finish(0));
    }
  }

  private ResultColumns resultColumns(LayerSpec layer, StepBatchSchema schema) {
    try {
      return new ResultColumns(layers.config(layer, schema.dtype()), schema.schema(), allocator);
    } catch (KernelException e) {
      throw StepRunner.named(e, layer);
    }
  }

  /** Whether no row of {@code batch} names a layer of the job. */
  boolean isOfNoLayer(ArrowBatch batch) {
    return layerOf(batch, schemas.of(batch.schema())).isEmpty();
  }

  /** The layer of the first row that names one of the job. */
  private Optional<LayerSpec> layerOf(ArrowBatch batch, StepBatchSchema schema) {
    if (!schema.hasLayer()) {
      return Optional.of(onlyLayer());
    }
    if (batch.numRows() == 0 && layers.job().layers().size() == 1) {
      return Optional.of(layers.job().layers().get(0));
    }
    for (int row = 0; row < batch.numRows(); row++) {
      Optional<LayerSpec> layer = layers.find(schema.layer(batch, row));
      if (layer.isPresent()) {
        return layer;
      }
    }
    return Optional.empty();
  }

  private boolean isOfOneLayer(ArrowBatch batch, StepBatchSchema schema) {
    return layers.find(schema.layer(batch, 0)).isPresent() && schema.firstOtherLayer(batch) < 0;
  }

  private void refuseMisplaced(PendingBatch pending, LayerSpec layer) {
    StepBatchSchema schema = pending.layer().batchSchema();
    ArrowBatch batch = pending.batch();
    for (int row = 0; row < batch.numRows(); row++) {
      String name = schema.hasLayer() ? schema.layer(batch, row) : layer.name();
      if (schema.firstNullSequence(batch, row) == row) {
        String message = StepBatchSchema.NULL_SEQUENCE;
        pending.refuse(row, schema.hasLayer() ? name : "", ErrorCode.INVALID_ROW, message);
      } else if (!name.equals(layer.name())) {
        String message = misplacedMessage(layers.find(name), layer, name);
        pending.refuse(row, name, ErrorCode.INVALID_ROW, message);
      }
    }
  }

  private String misplacedMessage(Optional<LayerSpec> rowLayer, LayerSpec layer, String got) {
    String quoted = got.isEmpty() ? "no name" : "'" + got + "'";
    if (rowLayer.isEmpty()) {
      return "column layer: expected " + layers.names() + ", got " + quoted;
    }
    return "column layer: expected the same layer in every row, '"
        + layer.name()
        + "', got "
        + quoted;
  }

  private LayerSpec onlyLayer() {
    if (layers.job().layers().size() != 1) {
      throw new InvalidBatchException(
          ErrorCode.SCHEMA_MISMATCH,
          -1,
          "column layer: expected it, because the job has "
              + layers.job().layers().size()
              + " layers, got no such column",
          null);
    }
    return layers.job().layers().get(0);
  }

  /** A batch that names no layer: its result has the shape of the first that fits. */
  private LayerSpec layerByQuery(BatchSchema schema) {
    int query = schema.index(StepColumns.QUERY);
    Optional<TensorField> tensors =
        query < 0 ? Optional.empty() : TensorField.of(schema.field(query));
    return layers.job().layers().stream()
        .filter(l -> tensors.stream().anyMatch(t -> fits(t, l)))
        .findFirst()
        .orElse(layers.job().layers().get(0));
  }

  /** Whether queries are of the shape that the layer has. */
  static boolean fits(TensorField query, LayerSpec layer) {
    return query.elements() == layer.numHeads() * layer.headSize()
        && (!query.canonical() || query.shape().get(0) == layer.numHeads());
  }

  /**
   * The layer of a batch that need not be a step: of its first row, or of its queries if it has
   * none.
   */
  LayerSpec layerOf(ArrowBatch batch) {
    if (!batch.schema().contains(StepColumns.LAYER)) {
      return onlyLayer();
    }
    if (batch.numRows() == 0) {
      return layerByQuery(batch.schema());
    }
    String name = StepBatchSchema.layerOf(batch);
    return layers
        .find(name)
        .orElseThrow(
            () ->
                new InvalidBatchException(
                    ErrorCode.SCHEMA_MISMATCH,
                    -1,
                    misplacedMessage(Optional.empty(), null, name),
                    null));
  }

  /** Whether so many schemas are bound that {@link #trim} is due. */
  boolean hasManySchemas() {
    return schemas.isOverfull();
  }

  /** Lets go of schemas that were not used for the longest time; no batch may be pending. */
  void trim() {
    schemas.trim();
  }

  @Override
  public void close() {
    schemas.close();
  }
}
