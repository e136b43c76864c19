// SPDX-License-Identifier: Apache-2.0
package io.broadhead.attention;

import io.broadhead.arrow.ArrowBatch;
import io.broadhead.arrow.BatchRows;
import io.broadhead.arrow.BatchSchema;
import io.broadhead.arrow.DType;
import io.broadhead.arrow.StepColumns;
import io.broadhead.arrow.TensorField;
import io.broadhead.kernel.AttentionType;
import io.broadhead.kernel.CacheConfig;
import io.broadhead.kernel.EngineConfig;
import io.broadhead.kernel.EngineInfo;
import io.broadhead.kernel.ErrorCode;
import io.broadhead.kernel.KernelCache;
import io.broadhead.kernel.KernelEngine;
import io.broadhead.kernel.KernelException;
import io.broadhead.kernel.KernelLayer;
import io.broadhead.kernel.LayerConfig;
import io.broadhead.kernel.ResultColumns;
import io.broadhead.kernel.ResultMerger;
import io.broadhead.kernel.RopeConfig;
import io.broadhead.kernel.RowError;
import io.broadhead.kernel.StepBinding;
import io.broadhead.kernel.StepStats;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.Iterator;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.function.Consumer;
import java.util.function.Function;
import java.util.stream.Collectors;
import org.apache.arrow.memory.BufferAllocator;

/**
 * Paged attention over step batches: the layers of a {@link Job}, their KV caches and the opened
 * backend. Usable by itself; the Flink operator is a shell around it.
 *
 * <p><b>Threads.</b> One thread at a time; it need not always be the same.
 *
 * <p><b>Ownership.</b> The caller owns the batches that it passes and the results that it gets, and
 * closes both. A result shares buffers with its batch, which therefore may be closed first. Results
 * are allocated from the caller's allocator, which must outlive them. {@link #close} frees caches
 * and backend.
 *
 * <p><b>Caches.</b> A layer's cache is reserved at its first batch, and with {@code kv_cache_dtype:
 * auto} takes that batch's element type.
 */
public final class PagedAttention implements AutoCloseable {
  /** Schemas whose bindings are kept; a stream has one for each layer shape, or few. */
  private static final int MAX_SCHEMAS = 64;

  /** Element types that queries, keys and values may have. */
  private static final List<DType> ELEMENT_TYPES =
      List.of(DType.FLOAT32, DType.FLOAT16, DType.BFLOAT16);

  private final Job job;
  private final Map<String, LayerSpec> layersByName;
  private final BufferAllocator allocator;
  private final KernelEngine engine;
  private final Map<String, KernelCache> caches = new HashMap<>();
  private final Map<RopeSpec, RopeConfig> ropes = new HashMap<>();
  private final Map<LayerKey, KernelLayer> layers = new HashMap<>();
  private final Map<BatchSchema, Bound> schemas = new LinkedHashMap<>(16, 0.75f, true);
  private StepStats lastStep;
  private long lastRowBytesCopied;
  private long cacheBytes;

  private record LayerKey(String name, DType dtype) {}

  /** The bindings of one schema. */
  private static final class Bound implements AutoCloseable {
    final StepBatchSchema schema;
    final Map<String, StepBinding> bindings = new HashMap<>();

    Bound(BatchSchema schema) {
      this.schema = new StepBatchSchema(schema);
    }

    @Override
    public void close() {
      bindings.values().forEach(StepBinding::close);
      bindings.clear();
    }
  }

  private PagedAttention(Job job, KernelEngine engine, BufferAllocator allocator) {
    this.job = job;
    this.layersByName =
        job.layers().stream().collect(Collectors.toMap(LayerSpec::name, Function.identity()));
    this.engine = engine;
    this.allocator = allocator;
  }

  /**
   * Opens a backend for {@code job}.
   *
   * @param allocator results are allocated from it; stays the caller's
   * @throws KernelException with the reason if the backend cannot be used, or cannot run a layer
   */
  public static PagedAttention open(Job job, AttentionConfig config, BufferAllocator allocator) {
    KernelEngine engine =
        KernelEngine.open(new EngineConfig(config.backend(), config.threads(), config.device()));
    try {
      PagedAttention attention = new PagedAttention(job, engine, allocator);
      for (LayerSpec layer : job.layers()) {
        attention.requireSupport(layer);
      }
      return attention;
    } catch (RuntimeException e) {
      engine.close();
      throw e;
    }
  }

  /** Fails if no element type that a batch may have will do. */
  private void requireSupport(LayerSpec layer) {
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

  /**
   * One attention step: appends the batch's keys and values to the cache of its layer, attends, and
   * returns the result batch, row for row. On any error the cache is as it was before.
   *
   * @throws InvalidBatchException if the batch or one of its rows is wrong
   * @throws KernelException if memory or the device fails
   */
  public ArrowBatch step(ArrowBatch batch) {
    Bound bound = bound(batch);
    requireSequenceIds(batch, bound.schema);
    LayerSpec layer = layerOf(batch, bound.schema);
    try {
      StepBinding binding = binding(bound, layer, batch.schema());
      ArrowBatch result = binding.step(batch);
      lastStep = binding.lastStats();
      lastRowBytesCopied = 0;
      return result;
    } catch (KernelException e) {
      throw named(e, layer, batch, bound.schema);
    }
  }

  /**
   * As {@link #step(ArrowBatch)}, but rows that are wrong are handed to {@code refused} and left
   * out; the result has the others in their order, and may have none.
   */
  public ArrowBatch step(ArrowBatch batch, Consumer<RefusedRow> refused) {
    try {
      return step(batch);
    } catch (InvalidBatchException e) {
      if (e.code() != ErrorCode.INVALID_ROW) {
        throw e;
      }
      List<RefusedRow> bad = check(batch);
      if (bad.isEmpty()) {
        throw e;
      }
      try (ArrowBatch rest = BatchRows.take(batch, without(bad, batch.numRows()), allocator)) {
        ArrowBatch result = step(rest);
        lastRowBytesCopied = rest.bytesCopied();
        bad.forEach(refused);
        return result;
      }
    }
  }

  /**
   * A profile run: the result that {@code batch} would have if no query saw a key, zeros and -inf
   * in {@code lse}, in the shape and element type of the layer's results. The batch needs only a
   * query column, and a layer column if the job has several layers. Touches no cache and reserves
   * none: it is what a framework calls to size its buffers before the first step.
   *
   * @throws InvalidBatchException if the queries are not those of the layer
   */
  public ArrowBatch profile(ArrowBatch batch) {
    LayerSpec layer = profiledLayer(batch);
    int query = batch.schema().index(StepColumns.QUERY);
    Optional<TensorField> tensors =
        query < 0 ? Optional.empty() : TensorField.of(batch.schema().field(query));
    boolean fits =
        tensors
            .filter(t -> ELEMENT_TYPES.contains(t.dtype()))
            .filter(t -> t.elements() == layer.numHeads() * layer.headSize())
            .filter(t -> !t.canonical() || t.shape().get(0) == layer.numHeads())
            .isPresent();
    if (!fits) {
      throw new InvalidBatchException(
          ErrorCode.SCHEMA_MISMATCH,
          -1,
          "layer '"
              + layer.name()
              + "': column query: expected list<tensor["
              + layer.numHeads()
              + ", "
              + layer.headSize()
              + "]> of float16, bfloat16 or float32, got "
              + (query < 0 ? "no such column" : batch.schema().field(query)),
          null);
    }
    try {
      return new ResultColumns(config(layer, tensors.get().dtype()), batch.schema(), allocator)
          .zeros(batch);
    } catch (KernelException e) {
      throw new InvalidBatchException(
          e.code(), e.row(), "layer '" + layer.name() + "': " + e.getMessage(), e);
    }
  }

  private LayerSpec profiledLayer(ArrowBatch batch) {
    if (!batch.schema().contains(StepColumns.LAYER)) {
      return onlyLayer();
    }
    if (batch.numRows() == 0) {
      return layerByQuery(batch.schema());
    }
    String name = StepBatchSchema.layerOf(batch);
    return layer(name)
        .orElseThrow(
            () ->
                new InvalidBatchException(
                    ErrorCode.SCHEMA_MISMATCH,
                    -1,
                    misplacedMessage(Optional.empty(), null, name),
                    null));
  }

  /** As {@link PartialResults#merge}, with the backend that is open here. */
  public ArrowBatch merge(List<ArrowBatch> parts) {
    return PartialResults.merge(new ResultMerger(engine, allocator), parts);
  }

  /**
   * Copies blocks of a layer's cache: block {@code source[i]} to block {@code target[i]}, for each
   * i in order. Nothing is copied if an id is out of range.
   *
   * @throws KernelException {@link ErrorCode#INVALID_ARGUMENT} naming what is wrong
   */
  public void copyBlocks(String layer, long[] source, long[] target) {
    if (source.length != target.length) {
      throw badArgument(
          layer, "copyBlocks: expected " + source.length + " target blocks, got " + target.length);
    }
    withCache(
        layer,
        null,
        cache -> {
          cache.copyBlocks(source, target);
          return null;
        });
  }

  /**
   * One block of a layer's cache in logical order: a batch of one row with the columns {@code key}
   * and {@code value}, each a tensor [block_size, num_kv_heads, head_size] of the cache's element
   * type. An fp8 cache gives its codes, before {@code k_scale} and {@code v_scale}. The caller
   * closes the batch.
   *
   * @throws KernelException {@link ErrorCode#INVALID_ARGUMENT} naming what is wrong
   */
  public ArrowBatch readBlock(String layer, long block) {
    return swapOut(layer, block);
  }

  /** Writes what {@link #readBlock} read, or contents of that form, to a block. */
  public void writeBlock(String layer, long block, ArrowBatch contents) {
    swapIn(layer, new long[] {block}, contents);
  }

  /**
   * Copies blocks of a layer's cache out, one a row, in the form of {@link #readBlock}; whoever
   * hands out block ids may give the blocks to others then. The caller closes the batch.
   *
   * @throws KernelException {@link ErrorCode#INVALID_ARGUMENT} naming what is wrong
   */
  public ArrowBatch swapOut(String layer, long... blocks) {
    return withCache(layer, null, cache -> cache.readBlocks(blocks, allocator));
  }

  /**
   * Copies what {@link #swapOut} gave back in: row i to block {@code blocks[i]}, which need not be
   * the block that it came from, nor in the same process or backend. Reserves the layer's cache if
   * it has had no batch yet. Nothing is written if anything is wrong.
   *
   * @throws KernelException {@link ErrorCode#INVALID_ARGUMENT} or {@link ErrorCode#SCHEMA_MISMATCH}
   *     naming what is wrong
   */
  public void swapIn(String layer, long[] blocks, ArrowBatch contents) {
    int key = contents.schema().index(StepColumns.KEY);
    DType stored =
        key < 0
            ? null
            : TensorField.ofTensor(contents.schema().field(key))
                .map(TensorField::dtype)
                .filter(ELEMENT_TYPES::contains)
                .orElse(null);
    withCache(
        layer,
        stored,
        cache -> {
          cache.writeBlocks(blocks, contents);
          return null;
        });
  }

  /**
   * Calls {@code use} with the cache of the layer called {@code name}.
   *
   * @param dtype what a cache with kv_cache_dtype auto becomes if there is none yet, or null
   */
  private <T> T withCache(String name, DType dtype, Function<KernelCache, T> use) {
    LayerSpec layer = layer(name).orElseThrow(() -> badArgument(name, "expected " + layerNames()));
    if (!layer.attnType().cached()) {
      throw badArgument(
          name, "expected a layer with a KV cache, got one of type " + layer.attnType().label());
    }
    LayerSpec owner = job.cacheOwner(layer);
    KernelCache cache = caches.get(owner.name());
    try {
      if (cache == null) {
        Optional<DType> stored = owner.kvCacheDtype().dtype().or(() -> Optional.ofNullable(dtype));
        if (stored.isEmpty()) {
          throw badArgument(
              name,
              "its cache does not exist before the layer's first batch, which settles kv_cache_dtype"
                  + " auto; set kv_cache_dtype to reserve it at once");
        }
        cache = cache(owner, stored.get());
      }
      return use.apply(cache);
    } catch (KernelException e) {
      if (e.code() != ErrorCode.INVALID_ARGUMENT && e.code() != ErrorCode.SCHEMA_MISMATCH
          || e.getMessage().startsWith("layer '")) {
        throw e;
      }
      throw new KernelException(e.code(), e.row(), "layer '" + name + "': " + e.getMessage());
    }
  }

  private static KernelException badArgument(String layer, String message) {
    return new KernelException(ErrorCode.INVALID_ARGUMENT, -1, "layer '" + layer + "': " + message);
  }

  private String layerNames() {
    return job.layers().stream().map(LayerSpec::name).collect(Collectors.joining("', '", "'", "'"));
  }

  private static int[] without(List<RefusedRow> bad, int rows) {
    int[] good = new int[rows - bad.size()];
    Iterator<RefusedRow> next = bad.iterator();
    long skip = next.next().row();
    for (int row = 0, kept = 0; row < rows; row++) {
      if (row == skip) {
        skip = next.hasNext() ? next.next().row() : -1;
      } else {
        good[kept++] = row;
      }
    }
    return good;
  }

  /**
   * Finds every row that a step would refuse, in row order; computes nothing.
   *
   * @throws InvalidBatchException if the schema is wrong
   */
  public List<RefusedRow> check(ArrowBatch batch) {
    Bound bound = bound(batch);
    List<RefusedRow> refused = new ArrayList<>();
    Optional<LayerSpec> layer = Optional.empty();
    boolean[] misplaced = new boolean[batch.numRows()];
    long nullSequence = bound.schema.firstNullSequence(batch, 0);
    for (int row = 0; row < batch.numRows(); row++) {
      Optional<LayerSpec> rowLayer =
          bound.schema.hasLayer()
              ? layer(bound.schema.layer(batch, row))
              : Optional.of(onlyLayer());
      if (layer.isEmpty()) {
        layer = rowLayer;
      }
      String message = null;
      String got = bound.schema.hasLayer() ? bound.schema.layer(batch, row) : "";
      if (row == nullSequence) {
        message = StepBatchSchema.NULL_SEQUENCE;
        nullSequence = bound.schema.firstNullSequence(batch, row + 1);
      } else if (rowLayer.isEmpty() || rowLayer.get() != layer.get()) {
        message = misplacedMessage(rowLayer, layer.orElse(null), got);
      }
      if (message != null) {
        misplaced[row] = true;
        refused.add(refuse(batch, bound.schema, row, got, message));
      }
    }
    layer.ifPresent(spec -> addBadRows(batch, bound, spec, misplaced, refused));
    refused.sort((a, b) -> Long.compare(a.row(), b.row()));
    return refused;
  }

  private void addBadRows(
      ArrowBatch batch,
      Bound bound,
      LayerSpec layer,
      boolean[] misplaced,
      List<RefusedRow> refused) {
    try {
      StepBinding binding = binding(bound, layer, batch.schema());
      Optional<RowError> bad = binding.firstBadRow(batch, 0);
      while (bad.isPresent()) {
        RowError error = bad.get();
        if (!misplaced[(int) error.row()]) {
          refused.add(
              new RefusedRow(
                  error.code(),
                  layer.name(),
                  bound.schema.sequenceId(batch, error.row()),
                  error.row(),
                  error.message()));
        }
        long next = error.row() + 1;
        bad = next < batch.numRows() ? binding.firstBadRow(batch, next) : Optional.empty();
      }
    } catch (KernelException e) {
      throw named(e, layer, batch, bound.schema);
    }
  }

  private static RefusedRow refuse(
      ArrowBatch batch, StepBatchSchema schema, long row, String layer, String message) {
    return new RefusedRow(
        ErrorCode.INVALID_ROW, layer, schema.sequenceId(batch, row), row, message);
  }

  private String misplacedMessage(Optional<LayerSpec> rowLayer, LayerSpec layer, String got) {
    String quoted = got.isEmpty() ? "null" : "'" + got + "'";
    if (rowLayer.isEmpty()) {
      return "column layer: expected " + layerNames() + ", got " + quoted;
    }
    return "column layer: expected the same layer in every row, '"
        + layer.name()
        + "', got "
        + quoted;
  }

  private static void requireSequenceIds(ArrowBatch batch, StepBatchSchema schema) {
    long row = schema.firstNullSequence(batch, 0);
    if (row >= 0) {
      String layer = schema.hasLayer() ? schema.layer(batch, row) : "";
      throw new InvalidBatchException(
          refuse(batch, schema, row, layer, StepBatchSchema.NULL_SEQUENCE), null);
    }
  }

  /** The layer of a batch whose rows all say the same, or the error of the first that does not. */
  private LayerSpec layerOf(ArrowBatch batch, StepBatchSchema schema) {
    if (!schema.hasLayer()) {
      return onlyLayer();
    }
    if (batch.numRows() == 0) {
      return layerByQuery(batch.schema());
    }
    String name = schema.layer(batch, 0);
    Optional<LayerSpec> layer = layer(name);
    long other = layer.isEmpty() ? 0 : schema.firstOtherLayer(batch);
    if (other < 0) {
      return layer.get();
    }
    String got = schema.layer(batch, other);
    throw new InvalidBatchException(
        refuse(batch, schema, other, got, misplacedMessage(layer(got), layer.orElse(null), got)),
        null);
  }

  private Optional<LayerSpec> layer(String name) {
    return Optional.ofNullable(layersByName.get(name));
  }

  private LayerSpec onlyLayer() {
    if (job.layers().size() != 1) {
      throw new InvalidBatchException(
          ErrorCode.SCHEMA_MISMATCH,
          -1,
          "column layer: expected it, because the job has "
              + job.layers().size()
              + " layers, got no such column",
          null);
    }
    return job.layers().get(0);
  }

  /** A batch without rows names no layer: its result has the shape of the first that fits. */
  private LayerSpec layerByQuery(BatchSchema schema) {
    int query = schema.index(StepColumns.QUERY);
    Optional<TensorField> tensors =
        query < 0 ? Optional.empty() : TensorField.of(schema.field(query));
    return job.layers().stream()
        .filter(l -> tensors.stream().anyMatch(t -> t.elements() == l.numHeads() * l.headSize()))
        .findFirst()
        .orElse(job.layers().get(0));
  }

  private Bound bound(ArrowBatch batch) {
    Bound bound = schemas.get(batch.schema());
    if (bound == null) {
      bound = new Bound(batch.schema());
      schemas.put(batch.schema(), bound);
      if (schemas.size() > MAX_SCHEMAS) {
        Iterator<Bound> eldest = schemas.values().iterator();
        eldest.next().close();
        eldest.remove();
      }
    }
    return bound;
  }

  private StepBinding binding(Bound bound, LayerSpec layer, BatchSchema schema) {
    StepBinding binding = bound.bindings.get(layer.name());
    if (binding == null) {
      binding = new StepBinding(kernelLayer(layer, bound.schema.dtype()), schema, allocator);
      bound.bindings.put(layer.name(), binding);
    }
    return binding;
  }

  private KernelLayer kernelLayer(LayerSpec layer, DType dtype) {
    LayerKey key = new LayerKey(layer.name(), dtype);
    KernelLayer opened = layers.get(key);
    if (opened == null) {
      KernelCache cache = layer.attnType().cached() ? cache(layer, dtype) : null;
      opened = new KernelLayer(engine, config(layer, dtype), cache);
      layers.put(key, opened);
    }
    return opened;
  }

  private KernelCache cache(LayerSpec layer, DType dtype) {
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
          "the KV cache of layer '"
              + owner.name()
              + "' needs "
              + kv.bytes(owner, stored)
              + " bytes ("
              + kv.numBlocks()
              + " blocks of "
              + kv.blockSize()
              + " tokens, "
              + stored.label()
              + ") beside the "
              + cacheBytes
              + " bytes of the caches before it; lower kv_cache.num_blocks or choose a smaller"
              + " kv_cache_dtype ("
              + e.getMessage()
              + ")");
    }
  }

  private LayerConfig config(LayerSpec layer, DType dtype) {
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
      config.rope(ropes.computeIfAbsent(layer.rope(), PagedAttention::ropeConfig));
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

  /** Names the layer and, where a row is to blame, its sequence. */
  private static RuntimeException named(
      KernelException e, LayerSpec layer, ArrowBatch batch, StepBatchSchema schema) {
    if (e.code() == ErrorCode.INVALID_ROW) {
      String sequence = schema.sequenceId(batch, e.row());
      return new InvalidBatchException(
          new RefusedRow(e.code(), layer.name(), sequence, e.row(), e.getMessage()), e);
    }
    String message = "layer '" + layer.name() + "': " + e.getMessage();
    return e.code() == ErrorCode.SCHEMA_MISMATCH
        ? new InvalidBatchException(e.code(), e.row(), message, e)
        : new KernelException(e.code(), e.row(), message);
  }

  public Job job() {
    return job;
  }

  /** The opened backend: name, tier, device, threads, and why it was chosen. */
  public EngineInfo engine() {
    return engine.info();
  }

  /** One line on what was opened and what memory the KV caches take. */
  public String describe() {
    EngineInfo info = engine.info();
    String device = info.device().isEmpty() ? "" : " on " + info.device();
    String planned =
        job.cacheBytes().isPresent()
            ? job.cacheBytes().getAsLong() + " bytes"
            : "sized by each layer's first batch (kv_cache_dtype auto)";
    return "backend "
        + info.backend()
        + ", tier "
        + info.tier()
        + device
        + " ("
        + info.reason()
        + "), "
        + info.threads()
        + " threads, "
        + job.layers().size()
        + (job.layers().size() == 1 ? " layer" : " layers")
        + ", KV cache "
        + planned;
  }

  /** What the last successful step did, or null before the first. */
  public StepStats lastStep() {
    return lastStep;
  }

  /**
   * Payload bytes that the last successful step copied, beyond those that were copied to make its
   * batch: rows that were gathered because others were left out, and what was staged for kernels.
   */
  public long lastBytesCopied() {
    return lastStep == null ? 0 : lastRowBytesCopied + lastStep.bytesStaged();
  }

  /** Bytes of the KV caches that exist by now. */
  public long cacheBytes() {
    return cacheBytes;
  }

  /** Frees caches and backend; idempotent. Results stay valid. */
  @Override
  public void close() {
    schemas.values().forEach(Bound::close);
    schemas.clear();
    layers.values().forEach(KernelLayer::close);
    layers.clear();
    caches.values().forEach(KernelCache::close);
    caches.clear();
    cacheBytes = 0;
    engine.close();
  }
}
