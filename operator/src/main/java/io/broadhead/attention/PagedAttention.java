// SPDX-License-Identifier: Apache-2.0
package io.broadhead.attention;

import io.broadhead.arrow.ArrowBatch;
import io.broadhead.arrow.StepColumns;
import io.broadhead.arrow.TensorField;
import io.broadhead.arrow.TypeName;
import io.broadhead.attention.cache.CacheCounters;
import io.broadhead.attention.cache.CacheHeader;
import io.broadhead.attention.cache.CacheStores;
import io.broadhead.attention.cache.KvCacheManager;
import io.broadhead.attention.job.Job;
import io.broadhead.attention.job.LayerSpec;
import io.broadhead.kernel.EngineInfo;
import io.broadhead.kernel.ErrorCode;
import io.broadhead.kernel.KernelEngine;
import io.broadhead.kernel.KernelException;
import io.broadhead.kernel.LayerConfig;
import io.broadhead.kernel.ResultColumns;
import io.broadhead.kernel.ResultMerger;
import io.broadhead.kernel.StepStats;
import java.util.ArrayList;
import java.util.Comparator;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.function.Consumer;
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
  private final StepRunner runner;
  private final BlockTables tables;
  private final Admission admission;
  private final StepQueue direct;

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
    CacheLayers cacheLayers = CacheLayers.of(job);
    this.runner = new StepRunner(outOfBlocks);
    this.tables = new BlockTables(layers, cacheLayers, allocator, stores, outOfBlocks, runner);
    this.admission = new Admission(layers, cacheLayers, tables, allocator);
    this.direct = queue(0, false, step -> lastBytesCopied += step.stats().bytesStaged());
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
   * As above, on an engine that is open; this closes it. If {@code allocator} is one of {@link
   * KernelEngine#memory}, results need not be copied on a GPU, and large ones not be given new
   * pages on a CPU.
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
    admission.trim();
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
    return queue(maxTokens, engine.info().overlaps(), steps);
  }

  private StepQueue queue(int maxTokens, boolean overlaps, Consumer<StepReport> steps) {
    return new StepQueue(job, admission, tables, runner, maxTokens, overlaps, steps);
  }

  /** As above, for a caller who need not know what steps did. */
  public StepQueue queue(int maxTokens) {
    return queue(maxTokens, step -> {});
  }

  /**
   * Finds every row that a step would refuse, in row order; computes nothing and changes no
   * sequence.
   *
   * @throws InvalidBatchException if the schema is wrong
   */
  public List<RefusedRow> check(ArrowBatch batch) {
    return refusedOf(
        batch,
        row -> ONLY_SHARD,
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
    return rehearse(batch, row -> ONLY_SHARD);
  }

  /**
   * {@link #rehearse(ArrowBatch)} for a batch whose rows are of several shards.
   *
   * @param shardOfRow the shard of each row
   */
  public List<RefusedRow> rehearse(ArrowBatch batch, IntUnaryOperator shardOfRow) {
    return refusedOf(
        batch,
        shardOfRow,
        pending -> {
          tables.fork(pending);
          while (!pending.isDone()) {
            runner.rehearse(StepSelector.all(pending));
          }
        });
  }

  private List<RefusedRow> refusedOf(
      ArrowBatch batch, IntUnaryOperator shardOfRow, Consumer<PendingBatch> rehearsal) {
    List<RefusedRow> refused = new ArrayList<>();
    Outcome outcome = new Outcome(refused::add);
    Optional<PendingBatch> taken = admission.admit(batch, shardOfRow, 0, outcome);
    if (taken.isEmpty()) {
      outcome.result.close();
    } else {
      try (PendingBatch pending = taken.get()) {
        rehearsal.accept(pending);
      }
    }
    admission.trim();
    refused.sort(Comparator.comparingLong(RefusedRow::row));
    return refused;
  }

  // ---- saving --------------------------------------------------------------------------------

  /** What {@link #save} saves a cache of; empty before the first batch of a layer with a cache. */
  public Optional<CacheHeader> header(int shards) {
    return tables.header(shards);
  }

  /**
   * Saves what changed in the caches since the last time. No batch may be pending.
   *
   * @param checkpoint rises from one time to the next; where several of these share the shards of a
   *     job, the same for all that is saved together
   */
  public void save(long checkpoint) {
    tables.save(checkpoint);
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
    tables.restore(header, shards, shard, sequences, blocks);
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
    LayerSpec layer = admission.layerOf(batch);
    int query = batch.schema().index(StepColumns.QUERY);
    Optional<TensorField> tensors =
        query < 0 ? Optional.empty() : TensorField.of(batch.schema().field(query));
    boolean fits =
        tensors
            .filter(t -> LayerSet.ELEMENT_TYPES.contains(t.dtype()))
            .filter(t -> Admission.fits(t, layer))
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
              + (query < 0 ? "no such column" : TypeName.of(batch.schema().field(query))),
          null);
    }
    try {
      LayerConfig config = layers.config(layer, tensors.get().dtype());
      return new ResultColumns(config, batch.schema(), allocator).zeros(batch);
    } catch (KernelException e) {
      throw StepRunner.named(e, layer);
    }
  }

  /** As {@link PartialResults#merge}, with the backend that is open here. */
  public ArrowBatch merge(List<ArrowBatch> parts) {
    return PartialResults.merge(new ResultMerger(engine, allocator), parts);
  }

  /**
   * The blocks of the cache that the layer called {@code layer} reads.
   *
   * @throws KernelException {@link ErrorCode#INVALID_ARGUMENT} if it is no layer with a cache
   */
  public CacheBlocks blocks(String layer) {
    return new CacheBlocks(layers, layer, allocator);
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
    return tables.managed();
  }

  /**
   * What happened in the caches so far; empty before the first batch, and for external block tables
   * that are not saved.
   */
  public Optional<CacheCounters> cacheCounters() {
    return tables.counters();
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
    admission.close();
    tables.close();
    layers.close();
    engine.close();
  }
}
