// SPDX-License-Identifier: Apache-2.0
package io.broadhead.attention.cache;

import io.broadhead.kernel.ErrorCode;
import io.broadhead.kernel.PlannedRows;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.concurrent.ConcurrentHashMap;

/**
 * Managed block tables. Each sequence has one table, shared by all layers of the job: block 7 of a
 * sequence is the same place of the pool in every layer's cache.
 *
 * <p>Rows are planned one after the other and computed together: {@link #plan} decides where a
 * row's tokens go, as if the rows before it had been computed; {@link #commit} follows a step that
 * was computed, {@link #rollBack} one that was not. Blocks become free with a commit, never within
 * a step, so that no row of a step overwrites what another one reads.
 *
 * <p><b>Life of an id.</b> Every state is of one id in one shard:
 *
 * <ul>
 *   <li><i>unknown</i>: a row with tokens {@linkplain #begin begins} a sequence, one with a parent
 *       {@linkplain #fork forks} one.
 *   <li><i>living</i>: in the pool or swapped out, which {@link Residency} knows; rows append. Its
 *       layers end one by one, each with the row that says so.
 *   <li><i>ended in a layer</i>: still living in the others. Rows of that layer that are not
 *       padding are refused: they are of a new sequence of the id, whose rows in the other layers
 *       could not be told from those that are still to come of the old one. When the last layer has
 *       ended, or at once by a row without tokens that says so, the id is unknown again.
 *   <li><i>lost</i>: what it had is gone ({@link #lose}: no blocks, a parent that was not there, or
 *       a restart without contents). Rows are refused until one {@linkplain Sequence#isRestartedBy
 *       begins it anew} from its first token, which supersedes it, or until all layers have ended.
 * </ul>
 *
 * <p><b>Sharing.</b> A sequence that is forked has its parent's blocks; the last one, if it is not
 * full, is copied before the child appends to it. Full blocks whose token ids are known are found
 * by {@link BlockHash} and shared by every sequence of the shard that begins alike; they are kept
 * when nobody uses them, until their place is needed.
 *
 * <p>Used by one thread; {@link #sequences}, {@link #capacity} and {@link #free} may be asked for
 * by others.
 */
public final class KvCacheManager {
  private final CacheShape shape;
  private final BlockSaver blockSaver;
  private final CacheSaver saver;
  private final Residency residency;
  private final TokenWriter writer;
  private final RowPlacer placer;
  private final CacheCounters counters = new CacheCounters();

  /** Metrics count what is in there meanwhile. */
  private final Map<Integer, Shard> shards = new ConcurrentHashMap<>();

  private final UndoLog undo = new UndoLog();
  private final List<PlannedRow> step = new ArrayList<>();

  /** Lost sequences whose ids rows of the step begin anew: they end with its commit. */
  private final List<Sequence> superseded = new ArrayList<>();

  private long stepNumber;
  private boolean mayBeginAnew;
  private long losses;

  /** What a commit has to do for a row. */
  private record PlannedRow(Sequence sequence, RowRequest row) {}

  /**
   * @param stores where sequences go that are swapped out, and all of them when they are saved
   * @param swaps whether sequences that were not used for long make room for others
   */
  public KvCacheManager(CacheShape shape, BlockMemory memory, CacheStores stores, boolean swaps) {
    this.shape = shape;
    this.blockSaver =
        new BlockSaver(memory, shape.blockSize(), stores.parts(), stores.blockRecords(), counters);
    this.saver =
        new CacheSaver(blockSaver, stores.records(), stores.savesContents(), shape.blockSize());
    this.residency =
        new Residency(blockSaver, stores.records(), shape.numBlocks(), swaps, counters);
    this.writer = new TokenWriter(shape, memory, residency, counters, undo);
    this.placer = new RowPlacer(shape, writer, undo);
  }

  public CacheCounters counters() {
    return counters;
  }

  /** Places of the pool. */
  public int capacity() {
    return residency.capacity();
  }

  /** Places of the pool that no sequence uses. */
  public int free() {
    return residency.free();
  }

  /** Sequences that have begun and not ended. */
  public long sequences() {
    return shards.values().stream().mapToLong(shard -> shard.sequences.size()).sum();
  }

  /** Sequences that were lost so far. */
  public long losses() {
    return losses;
  }

  /** Whether there may be sequences that are lost, or have ended in some layer. */
  public boolean mayBeginAnew() {
    return mayBeginAnew;
  }

  /**
   * Whether what {@code row} means depends on rows of all layers that came before it: it forks a
   * sequence, ends one in all layers, or is of one that is lost or has ended in its layer, and may
   * begin it anew.
   */
  public boolean dependsOnAllLayers(int shard, RowRequest row) {
    Sequence known = shard(shard).sequences.get(row.sequence());
    if (known == null) {
      return row.endsAtOnce() || row.parent() != null;
    }
    return row.endsAtOnce() || known.lost != null || known.ended.get(row.layer().index());
  }

  // ---- a step -----------------------------------------------------------------------------------

  /**
   * Places the tokens of the next row of the step.
   *
   * @throws RowRefusedException if the row does not fit what the cache has of its sequence
   * @throws StepFullException if the rows that were planned before are to be computed first
   */
  public void plan(int shard, RowRequest row, PlannedRows places)
      throws RowRefusedException, StepFullException {
    int mark = undo.mark();
    boolean planned = false;
    try {
      plan(shard(shard), row, places);
      planned = true;
    } finally {
      if (!planned) {
        undo.rollBackTo(mark);
        places.abandonRow();
      }
    }
  }

  private void plan(Shard shard, RowRequest row, PlannedRows places)
      throws RowRefusedException, StepFullException {
    Sequence known = shard.sequences.get(row.sequence());
    if (known != null && known.endStep == stepNumber) {
      throw new StepFullException("a sequence of the same id ends in the step that is planned");
    }
    boolean isLost = known != null && known.lost != null;
    boolean hasEnded = hasEndedIn(known, row.layer());
    if ((isLost || hasEnded) && row.endsAtOnce()) {
      places.endRow(0);
      note(known, row);
      return;
    }
    if ((known == null || hasEnded) && isPadding(row)) {
      places.endRow(0);
      return;
    }
    if (hasEnded) {
      throw livesElsewhere(known, row);
    }
    Sequence sequence = known;
    if (isLost) {
      supersede(known, row);
      sequence = null;
    }
    if (sequence == null) {
      sequence = row.parent() == null ? begin(shard, row) : fork(shard, row);
    } else if (row.parent() != null && !row.parent().equals(sequence.parent)) {
      throw RowRefusedException.badRow(
          "column parent_sequence_id: sequence %s has begun already, expected %s, got %s",
          row.sequence(), sequence.parent, row.parent());
    }
    use(sequence);
    if (!row.endsAtOnce()) {
      residency.use(sequence);
    }
    placer.place(sequence, row, step.isEmpty(), places);
    note(sequence, row);
  }

  /** While it is in the step, a sequence does not make room for others. */
  private void use(Sequence sequence) {
    long before = sequence.lastStep;
    undo.add(() -> sequence.lastStep = before);
    sequence.lastStep = stepNumber;
  }

  /** Leaves to the commit what is to be done for a row. */
  private void note(Sequence sequence, RowRequest row) {
    step.add(new PlannedRow(sequence, row));
    undo.add(() -> step.remove(step.size() - 1));
    if (row.endsNow()) {
      long before = sequence.endStep;
      undo.add(() -> sequence.endStep = before);
      sequence.endStep = stepNumber;
    }
  }

  /** A row without new tokens of a sequence that is not there: it sees nothing. */
  private static boolean isPadding(RowRequest row) {
    boolean adds = row.layer().newTokens(row.queries(), row.keys()) > 0;
    boolean seesNothing = row.parent() == null && (row.seqLen() == 0 || row.queries() == 0);
    return row.endsAtOnce() || !adds && seesNothing;
  }

  /** The rows that were planned have been computed. */
  public void commit() {
    undo.clear();
    writer.commit();
    superseded.forEach(residency::end);
    superseded.clear();
    for (PlannedRow planned : step) {
      Sequence sequence = planned.sequence();
      int layer = planned.row().layer().index();
      sequence.done[layer] = sequence.planned[layer];
      if (planned.row().endsNow()) {
        sequence.endsWith(planned.row());
        mayBeginAnew = true;
      }
    }
    for (PlannedRow planned : step) {
      RowRequest row = planned.row();
      Sequence sequence = planned.sequence();
      if (row.endsAtOnce() || sequence.isOver(shape.layers())) {
        residency.end(sequence);
      }
    }
    step.clear();
    stepNumber++;
  }

  /** The rows that were planned are not computed: everything is as it was before. */
  public void rollBack() {
    undo.rollBackTo(0);
    stepNumber++;
  }

  private Shard shard(int key) {
    return shards.computeIfAbsent(key, Shard::new);
  }

  // ---- sequences that begin, and the ones before them -------------------------------------------

  /**
   * Begins the sequence of {@code row} with what its parent has now, if the row forks it; no row is
   * planned. The child of a parent that is not in the cache is lost.
   *
   * @throws RowRefusedException if there is no such parent
   */
  public void fork(int shard, RowRequest row) throws RowRefusedException {
    Shard place = shard(shard);
    Sequence known = place.sequences.get(row.sequence());
    if (row.parent() == null || row.endsAtOnce()) {
      return;
    }
    if (hasEndedIn(known, row.layer())) {
      throw livesElsewhere(known, row);
    }
    if (known != null) {
      return;
    }
    try {
      Sequence child = fork(place, row);
      child.lastStep = stepNumber; // saved, even if none of its rows is computed
    } catch (RowRefusedException e) {
      lose(place, row, "its parent " + row.parent() + " was not in the cache");
      throw e;
    }
    undo.clear();
  }

  /**
   * The child has the tokens that its parent has in every layer that it has been to, without those
   * of the step that is being planned.
   */
  private Sequence fork(Shard shard, RowRequest row) throws RowRefusedException {
    Sequence parent = shard.sequences.get(row.parent());
    if (parent == null) {
      throw RowRefusedException.badRow(
          "column parent_sequence_id: expected a sequence in the cache, got %s; where there are"
              + " several shards, parent and child need the same sequence_group",
          row.parent());
    }
    if (parent.lost != null) {
      throw parent.lostRow();
    }
    Sequence child = new Sequence(shard, row.sequence(), parent.id, shape.layers().size());
    int own = parent.tokensInAllLayers(shape.layers(), false);
    int cross = parent.tokensInAllLayers(shape.layers(), true);
    child.own.borrow(parent.own, own, shape.blockSize());
    child.cross.borrow(parent.cross, cross, shape.blockSize());
    for (LayerRole layer : shape.layers()) {
      int tokens = layer.cross() ? cross : own;
      child.done[layer.index()] = tokens;
      child.planned[layer.index()] = tokens;
      child.unverified.set(layer.index(), parent.done[layer.index()] < tokens);
    }
    return added(child);
  }

  private Sequence begin(Shard shard, RowRequest row) throws RowRefusedException {
    if (row.layer().newTokens(row.queries(), row.keys()) == 0) {
      throw RowRefusedException.badRow(
          "column key: sequence %s is not in the cache, expected its first tokens, got none",
          row.sequence());
    }
    Sequence sequence = new Sequence(shard, row.sequence(), null, shape.layers().size());
    residency.enter(sequence);
    return added(sequence);
  }

  private Sequence added(Sequence sequence) {
    sequence.shard.sequences.put(sequence.id, sequence);
    undo.add(() -> residency.end(sequence));
    return sequence;
  }

  /** Ends a lost sequence, with the step, because {@code row} begins it anew. */
  private void supersede(Sequence lost, RowRequest row) throws RowRefusedException {
    if (!lost.isRestartedBy(row)) {
      throw lost.lostRow();
    }
    Map<Object, Sequence> sequences = lost.shard.sequences;
    sequences.remove(lost.id);
    undo.add(() -> sequences.put(lost.id, lost));
    superseded.add(lost);
    undo.add(() -> superseded.remove(superseded.size() - 1));
  }

  /** Whether its last row has been in {@code layer}, while it lives in others. */
  private static boolean hasEndedIn(Sequence known, LayerRole layer) {
    return known != null && known.lost == null && known.ended.get(layer.index());
  }

  /** What a row is refused with that is of a layer in which its sequence has ended. */
  private RowRefusedException livesElsewhere(Sequence sequence, RowRequest row) {
    return RowRefusedException.badRow(
        "column sequence_id: sequence %s has ended in layer %s and not in layer %s; expected its"
            + " last rows there before the id begins again, or a row without tokens that ends it",
        sequence.id,
        row.layer().name(),
        sequence.unfinished(shape.layers()).map(LayerRole::name).orElseThrow());
  }

  // ---- sequences that are lost ------------------------------------------------------------------

  /** What a row is refused with that can get no blocks, though no other row is planned. */
  public RowRefusedException shortage(int shard, RowRequest row, StepFullException reason) {
    Sequence known = shard(shard).sequences.get(row.sequence());
    int tokens = begins(known, row) ? 0 : known.planned[row.layer().index()];
    return new RowRefusedException(
        ErrorCode.OUT_OF_BLOCKS,
        "sequence "
            + row.sequence()
            + " has "
            + tokens
            + " tokens in the cache and "
            + (row.layer().newTokens(row.queries(), row.keys()) + row.later())
            + " new ones, and "
            + reason.getMessage()
            + "; raise kv_cache.num_blocks in the job file");
  }

  /**
   * Gives the sequence of such a row up. Later rows of it are refused until it comes again from its
   * first token.
   */
  public void giveUp(int shard, RowRequest row) {
    lose(shard(shard), row, "it was given up for want of blocks in layer " + row.layer().name());
  }

  /** Such a row was refused because its sequence is lost; it may have been its last one. */
  public void passOver(int shard, RowRequest row) {
    Sequence sequence = shard(shard).sequences.get(row.sequence());
    if (sequence == null || sequence.lost == null) {
      return; // its parent is lost
    }
    if (hasEnded(sequence, row)) {
      residency.end(sequence);
    } else if (row.ends()) {
      sequence.lastStep = stepNumber;
    }
  }

  private void lose(Shard shard, RowRequest row, String why) {
    Sequence sequence = shard.sequences.get(row.sequence());
    if (sequence != null) {
      residency.end(sequence);
    }
    if (begins(sequence, row)) {
      sequence = new Sequence(shard, row.sequence(), row.parent(), shape.layers().size());
    }
    if (hasEnded(sequence, row)) {
      return;
    }
    sequence.lost = why;
    sequence.lostAt = row.layer().index();
    sequence.loss = ++losses;
    sequence.lastStep = stepNumber;
    shard.sequences.put(sequence.id, sequence);
    mayBeginAnew = true;
  }

  /** Whether a row that fits is the first of its sequence, of whose id {@code known} is or was. */
  private static boolean begins(Sequence known, RowRequest row) {
    return known == null || known.lost != null;
  }

  /** Whether a sequence that is lost has had its last row in every layer, now with {@code row}. */
  private boolean hasEnded(Sequence sequence, RowRequest row) {
    if (row.ends()) {
      sequence.ended.set(row.layer().index());
    }
    return row.endsAtOnce() || sequence.ended.cardinality() == shape.layers().size();
  }

  // ---- saving -----------------------------------------------------------------------------------

  /** Saves what changed since the last time; no row is planned. */
  public void save() {
    saver.save(shards.values(), stepNumber);
  }

  /**
   * Restores a shard from its records, before the first step. Contents are read when they are
   * needed.
   *
   * @throws IllegalStateException if a record cannot be read
   */
  public void restore(
      int shard,
      Iterable<Map.Entry<String, byte[]>> sequences,
      Iterable<Map.Entry<Long, byte[]>> blocks) {
    CacheRestorer restorer = new CacheRestorer(shard(shard), shape, blockSaver);
    blocks.forEach(block -> restorer.addBlock(block.getKey(), block.getValue()));
    sequences.forEach(sequence -> restorer.addSequence(sequence.getKey(), sequence.getValue()));
    restorer.finish();
    mayBeginAnew = true; // records may be of such
  }
}
