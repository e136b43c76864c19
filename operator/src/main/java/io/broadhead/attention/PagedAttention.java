// SPDX-License-Identifier: Apache-2.0
package io.broadhead.attention;

import io.broadhead.arrow.ArrowBatch;
import io.broadhead.arrow.BatchSchema;
import io.broadhead.arrow.DType;
import io.broadhead.arrow.StepColumns;
import io.broadhead.arrow.TensorField;
import io.broadhead.attention.cache.CacheHeader;
import io.broadhead.attention.cache.CacheShape;
import io.broadhead.attention.cache.CacheStores;
import io.broadhead.attention.cache.ExternalBlocks;
import io.broadhead.attention.cache.KvCacheManager;
import io.broadhead.attention.cache.RowRefusedException;
import io.broadhead.kernel.EngineInfo;
import io.broadhead.kernel.ErrorCode;
import io.broadhead.kernel.KernelCache;
import io.broadhead.kernel.KernelEngine;
import io.broadhead.kernel.KernelException;
import io.broadhead.kernel.LayerConfig;
import io.broadhead.kernel.ResultColumns;
import io.broadhead.kernel.ResultDraft;
import io.broadhead.kernel.ResultMerger;
import io.broadhead.kernel.StepStats;
import java.util.ArrayList;
import java.util.Comparator;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.function.Consumer;
import java.util.function.Function;
import java.util.function.IntUnaryOperator;
import org.apache.arrow.memory.BufferAllocator;

/**
 * Paged attention over step batches: the layers of a {@link Job}, their KV caches and the opened
 * backend. Usable by itself; the Flink operator is a shell around it.
 *
 * <p><b>Threads.</b> One thread at a time, {@link #cancel} apart; it need not always be the same.
 *
 * <p><b>Ownership.</b> The caller owns the batches that it passes and the results that it gets, and
 * closes both. A result shares buffers with its batch, which therefore may be closed first. Results
 * are allocated from the caller's allocator, which must outlive them. {@link #close} frees caches
 * and backend.
 *
 * <p><b>Caches.</b> A layer's cache is reserved at its first batch, and with {@code kv_cache_dtype:
 * auto} takes that batch's element type. Batches with {@code block_table} and {@code slot_mapping}
 * say themselves where their tokens are; for those without, the blocks of each sequence are kept
 * here. One job does the one or the other.
 */
public final class PagedAttention implements AutoCloseable {
  /** The shard of batches that nobody divides. */
  static final int ONLY_SHARD = 0;

  private final Job job;
  private final BufferAllocator allocator;
  private final KernelEngine engine;
  private final LayerSet layers;
  private final BoundSchemas schemas;
  private final CacheLayers cacheLayers;
  private final PoolMemory memory;
  private final CacheStores stores;
  private final OutOfBlocks outOfBlocks;
  private final StepRunner runner;
  private final StepQueue direct;

  /** Whether block tables are managed, once a batch said so. */
  private Boolean managed;

  private KvCacheManager manager;
  private ExternalBlocks external;
  private long lastBytesCopied;

  private PagedAttention(
      Job job,
      OutOfBlocks outOfBlocks,
      KernelEngine engine,
      BufferAllocator allocator,
      CacheStores stores) {
    this.job = job;
    this.engine = engine;
    this.allocator = allocator;
    this.layers = new LayerSet(job, engine);
    this.stores = stores;
    this.outOfBlocks = outOfBlocks;
    this.cacheLayers = CacheLayers.of(job);
    this.schemas = new BoundSchemas(layers, cacheLayers.roles(), allocator);
    this.memory = new PoolMemory(layers, cacheLayers.owners(), allocator);
    this.runner = new StepRunner(outOfBlocks);
    this.direct =
        new StepQueue(
            this, runner, 0, false, step -> lastBytesCopied += step.stats().bytesStaged());
  }

  /**
   * Opens a backend for {@code job}. Sequences that are swapped out go to the Java heap, and
   * nothing is saved.
   *
   * @param allocator results are allocated from it; stays the caller's
   * @throws KernelException with the reason if the backend cannot be used, or cannot run a layer
   */
  public static PagedAttention open(Job job, AttentionConfig config, BufferAllocator allocator) {
    return open(job, config, allocator, CacheStores.onHeap());
  }

  /**
   * As above.
   *
   * @param stores where sequences go that are swapped out, and all of them with {@link #save}
   */
  public static PagedAttention open(
      Job job, AttentionConfig config, BufferAllocator allocator, CacheStores stores) {
    return open(job, config.openEngine(), config.outOfBlocks(), allocator, stores);
  }

  /**
   * As above, on an engine that is open; this closes it. On a GPU results need not be copied if
   * {@code allocator} is one of {@link KernelEngine#memory}.
   */
  public static PagedAttention open(
      Job job,
      KernelEngine engine,
      OutOfBlocks outOfBlocks,
      BufferAllocator allocator,
      CacheStores stores) {
    try {
      Job sized = job.sizedFor(engine.info().freeMemory());
      PagedAttention attention = new PagedAttention(sized, outOfBlocks, engine, allocator, stores);
      job.layers().forEach(attention.layers::requireSupport);
      return attention;
    } catch (RuntimeException e) {
      engine.close();
      throw e;
    }
  }

  // ---- steps ---------------------------------------------------------------------------------

  /**
   * One attention step: appends the batch's keys and values to the cache of its layer, attends, and
   * returns the result batch, row for row. On any error the cache is as it was before, unless the
   * pool of managed block tables is too small for the batch, so that it takes several steps.
   *
   * @throws InvalidBatchException if the batch or one of its rows is wrong
   * @throws KernelException if memory or the device fails
   */
  public ArrowBatch step(ArrowBatch batch) {
    return step(
        batch,
        row -> {
          throw new InvalidBatchException(row, null);
        });
  }

  /**
   * As {@link #step(ArrowBatch)}, but rows that are wrong are handed to {@code refused} and left
   * out; the result has the others in their order, and may have none.
   */
  public ArrowBatch step(ArrowBatch batch, Consumer<RefusedRow> refused) {
    Outcome outcome = new Outcome(refused);
    lastBytesCopied = 0;
    try {
      direct.add(batch, outcome);
      direct.drain();
    } finally {
      direct.close();
    }
    trim();
    lastBytesCopied += outcome.result.bytesCopied();
    return outcome.result;
  }

  /** What becomes of the batch of one call. */
  private static final class Outcome implements StepHandler {
    private final Consumer<RefusedRow> refused;
    private ArrowBatch result;

    Outcome(Consumer<RefusedRow> refused) {
      this.refused = refused;
    }

    @Override
    public void refused(RefusedRow row) {
      refused.accept(row);
    }

    @Override
    public void done(ArrowBatch computed) {
      result = computed;
    }
  }

  /**
   * A queue that joins batches to steps of up to {@code maxTokens} new tokens, and divides rows
   * that have more; 0: each batch is a step by itself. Its steps overlap with the caller's work
   * where the backend can do that. The caller closes it before this.
   *
   * @param steps is told of every step, before its results are handed over
   */
  public StepQueue queue(int maxTokens, Consumer<StepReport> steps) {
    return new StepQueue(this, runner, maxTokens, engine.info().overlaps(), steps);
  }

  /** As above, for a caller who need not know what steps did. */
  public StepQueue queue(int maxTokens) {
    return queue(maxTokens, step -> {});
  }

  /**
   * Finds every row that a step would refuse, in row order; computes nothing.
   *
   * @throws InvalidBatchException if the schema is wrong
   */
  public List<RefusedRow> check(ArrowBatch batch) {
    return refusedOf(
        batch,
        pending -> {
          while (!pending.isDone() && !runner.check(StepSelector.all(pending))) {
            continue;
          }
        });
  }

  /**
   * As {@link #check}, and then counts the rows that are right as computed: so a series of batches
   * can be checked whose managed block tables depend on one another.
   */
  public List<RefusedRow> rehearse(ArrowBatch batch) {
    return refusedOf(
        batch,
        pending -> {
          while (!pending.isDone()) {
            runner.rehearse(StepSelector.all(pending));
          }
        });
  }

  private List<RefusedRow> refusedOf(ArrowBatch batch, Consumer<PendingBatch> rehearsal) {
    List<RefusedRow> refused = new ArrayList<>();
    Outcome outcome = new Outcome(refused::add);
    Optional<PendingBatch> taken = pend(batch, row -> ONLY_SHARD, outcome);
    if (taken.isEmpty()) {
      outcome.result.close();
    } else {
      try (PendingBatch pending = taken.get()) {
        rehearsal.accept(pending);
      }
    }
    trim();
    refused.sort(Comparator.comparingLong(RefusedRow::row));
    return refused;
  }

  /** Whether so many schemas are bound that {@link #trim} is due. */
  boolean hasManySchemas() {
    return schemas.isOverfull();
  }

  /** Lets go of schemas that were not used for the longest time; no batch may be pending. */
  void trim() {
    schemas.trim();
  }

  // ---- admission -----------------------------------------------------------------------------

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

  /**
   * Takes a batch on: finds its layer, and refuses rows that are of no sequence or another layer.
   *
   * @return empty if no row names a layer of the job: the batch is done then
   */
  Optional<PendingBatch> pend(ArrowBatch batch, IntUnaryOperator shardOfRow, StepHandler handler) {
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
      requireOneMode(bound);
      pending = new PendingBatch(batch, bound, shardOfRow, handler);
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

  /** Whether no row of {@code batch} names a layer of the job. */
  boolean isOfNoLayer(ArrowBatch batch) {
    return layerOf(batch, schemas.of(batch.schema())).isEmpty();
  }

  /** The layer of the first row that names one of the job. */
  private Optional<LayerSpec> layerOf(ArrowBatch batch, StepBatchSchema schema) {
    if (!schema.hasLayer()) {
      return Optional.of(onlyLayer());
    }
    if (batch.numRows() == 0 && job.layers().size() == 1) {
      return Optional.of(job.layers().get(0));
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
    String quoted = got.isEmpty() ? "null" : "'" + got + "'";
    if (rowLayer.isEmpty()) {
      return "column layer: expected " + layers.names() + ", got " + quoted;
    }
    return "column layer: expected the same layer in every row, '"
        + layer.name()
        + "', got "
        + quoted;
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

  /** A batch that names no layer: its result has the shape of the first that fits. */
  private LayerSpec layerByQuery(BatchSchema schema) {
    int query = schema.index(StepColumns.QUERY);
    Optional<TensorField> tensors =
        query < 0 ? Optional.empty() : TensorField.of(schema.field(query));
    return job.layers().stream()
        .filter(l -> tensors.stream().anyMatch(t -> fits(t, l)))
        .findFirst()
        .orElse(job.layers().get(0));
  }

  /** Blocks that a producer hands out and those that are handed out here would be the same. */
  private void requireOneMode(BoundLayer bound) {
    if (!bound.spec().attnType().cached()) {
      return;
    }
    if (managed == null) {
      begin(bound.isManaged());
    }
    if (managed != bound.isManaged()) {
      throw new KernelException(
          ErrorCode.SCHEMA_MISMATCH,
          -1,
          managed
              ? "columns block_table and slot_mapping: expected neither, as in the batches before,"
                  + " whose block tables are managed"
              : "columns block_table and slot_mapping: expected them, as in the batches before, got"
                  + " neither");
    }
  }

  private void begin(boolean isManaged) {
    CacheShape shape = cacheLayers.shape(job.kvCache());
    if (isManaged) {
      manager = new KvCacheManager(shape, memory, stores, outOfBlocks == OutOfBlocks.SWAP);
      runner.manage(manager);
    } else if (stores.savesContents()) {
      external = new ExternalBlocks(shape, memory, stores.parts(), stores.records());
      runner.observe(external);
    } else if (stores.savesAnything()) {
      throw new KernelException(
          ErrorCode.SCHEMA_MISMATCH,
          -1,
          "columns block_table and slot_mapping: expected neither, because only metadata is saved,"
              + " and nobody but the producer knows the sequences of these tables; save all or"
              + " nothing");
    }
    managed = isManaged;
  }

  /** Whether a row of {@code pending} would fork a sequence. */
  boolean forks(PendingBatch pending) {
    BoundLayer layer = pending.layer();
    if (!layer.isManaged() || !pending.rows().mayFork()) {
      return false;
    }
    for (int row = pending.nextOpen(0); row >= 0; row = pending.nextOpen(row + 1)) {
      try {
        int tokens = pending.rows().tokens(row);
        if (manager.forks(
            pending.shard(row), pending.rows().request(row, 0, tokens, layer.role()))) {
          return true;
        }
      } catch (RowRefusedException e) {
        // Refused for it when its turn comes.
        continue;
      }
    }
    return false;
  }

  // ---- saving --------------------------------------------------------------------------------

  /** What {@link #save} saves a cache of; empty before the first batch of a layer with a cache. */
  public Optional<CacheHeader> header(int shards) {
    return Optional.ofNullable(managed).map(isManaged -> header(isManaged, shards));
  }

  private CacheHeader header(boolean isManaged, int shards) {
    return cacheLayers.header(isManaged, stores.savesContents(), shards, job.kvCache(), layers);
  }

  /** Saves what changed in the caches since the last time. No batch may be pending. */
  public void save() {
    if (manager != null && stores.savesAnything()) {
      manager.save();
    }
    if (external != null) {
      external.save();
    }
  }

  /**
   * Restores a shard, before the first batch. Sequences whose keys and values were not saved are
   * lost: their rows are refused until they come again.
   *
   * @param header what was saved
   * @param shards that sequences are divided into now
   * @param sequences records of sequences
   * @param blocks records of blocks
   * @throws IllegalStateException naming the key in which the job differs from the one that was
   *     saved
   */
  public void restore(
      CacheHeader header,
      int shards,
      int shard,
      Iterable<Map.Entry<String, byte[]>> sequences,
      Iterable<Map.Entry<Long, byte[]>> blocks) {
    header.requireFits(header(header.managed(), shards));
    for (CacheHeader.Layer layer : header.layers()) {
      if (!layer.dtype().isEmpty()) {
        layers.reserve(layers.find(layer.name()).orElseThrow(), layer.dtype());
      }
    }
    if (managed == null) {
      begin(header.managed());
    }
    if (manager != null) {
      manager.restore(shard, sequences, blocks);
    }
    if (external != null) {
      blocks.forEach(block -> external.restore(shard, block.getKey(), block.getValue()));
    }
  }

  // ---- beside steps --------------------------------------------------------------------------

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
            .filter(t -> LayerSet.ELEMENT_TYPES.contains(t.dtype()))
            .filter(t -> fits(t, layer))
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
      LayerConfig config = layers.config(layer, tensors.get().dtype());
      return new ResultColumns(config, batch.schema(), allocator).zeros(batch);
    } catch (KernelException e) {
      throw StepRunner.named(e, layer);
    }
  }

  private static boolean fits(TensorField query, LayerSpec layer) {
    return query.elements() == layer.numHeads() * layer.headSize()
        && (!query.canonical() || query.shape().get(0) == layer.numHeads());
  }

  private LayerSpec profiledLayer(ArrowBatch batch) {
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
                .filter(LayerSet.ELEMENT_TYPES::contains)
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
    LayerSpec layer =
        layers.find(name).orElseThrow(() -> badArgument(name, "expected " + layers.names()));
    if (!layer.attnType().cached()) {
      throw badArgument(
          name, "expected a layer with a KV cache, got one of type " + layer.attnType().label());
    }
    try {
      KernelCache cache = layers.cache(layer).orElse(null);
      if (cache == null) {
        Optional<DType> stored =
            job.cacheOwner(layer).kvCacheDtype().dtype().or(() -> Optional.ofNullable(dtype));
        if (stored.isEmpty()) {
          throw badArgument(
              name,
              "its cache does not exist before the layer's first batch, which settles kv_cache_dtype"
                  + " auto; set kv_cache_dtype to reserve it at once");
        }
        cache = layers.cache(layer, stored.get());
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

  public Job job() {
    return job;
  }

  /** The opened backend: name, tier, device, threads, and why it was chosen. */
  public EngineInfo engine() {
    return engine.info();
  }

  /** One line on what was opened and what memory the KV caches take. */
  public String describe() {
    String planned =
        job.cacheBytes().isPresent()
            ? job.cacheBytes().getAsLong() + " bytes"
            : "sized by each layer's first batch (kv_cache_dtype auto)";
    return engine.info().describe()
        + ", "
        + job.layers().size()
        + (job.layers().size() == 1 ? " layer" : " layers")
        + ", KV cache "
        + planned;
  }

  /** What the last native step did, or null before the first. */
  public StepStats lastStep() {
    return runner.lastStep();
  }

  /**
   * Payload bytes that the last {@link #step(ArrowBatch)} copied, beyond those that were copied to
   * make its batch: results that were moved together because rows were left out, and what was
   * staged.
   */
  public long lastBytesCopied() {
    return lastBytesCopied;
  }

  /** Bytes of the KV caches that exist by now. */
  public long cacheBytes() {
    return layers.cacheBytes();
  }

  /** Managed block tables; empty before the first batch that needs them. */
  public Optional<KvCacheManager> blockTables() {
    return Optional.ofNullable(manager);
  }

  /**
   * Ends the step that is being computed, and all later ones, with {@link ErrorCode#CANCELLED}; to
   * be followed by {@link #close}. May be called by any thread.
   */
  public void cancel() {
    engine.cancel();
  }

  /** Frees caches and backend; idempotent. Results stay valid. */
  @Override
  public void close() {
    direct.close();
    schemas.close();
    memory.close();
    layers.close();
    engine.close();
  }
}
