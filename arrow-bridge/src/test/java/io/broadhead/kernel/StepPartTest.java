// SPDX-License-Identifier: Apache-2.0
package io.broadhead.kernel;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import io.broadhead.arrow.ArrowBatch;
import io.broadhead.arrow.ArrowColumn;
import io.broadhead.arrow.DType;
import io.broadhead.testing.NoLeaks;
import io.broadhead.testing.StepBatchBuilder;
import java.util.ArrayList;
import java.util.List;
import java.util.stream.IntStream;
import org.apache.arrow.memory.BufferAllocator;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.extension.ExtendWith;

@ExtendWith(NoLeaks.class)
class StepPartTest {
  private static final int HEADS = 4;
  private static final int KV_HEADS = 2;
  private static final int HEAD_SIZE = 32;
  private static final int BLOCK = 16;
  private static final int ROWS = 5;
  private static final int TOKENS = 20;

  private static final LayerConfig LAYER =
      LayerConfig.builder("layer0", HEADS, KV_HEADS, HEAD_SIZE)
          .dtype(DType.FLOAT16)
          .returnLse(true)
          .build();

  /** A layer on a cache of its own, and parts for it. */
  private static final class Session implements AutoCloseable {
    final BufferAllocator allocator;
    final KernelEngine engine = KernelEngine.open(new EngineConfig("cpu", 1, 0));
    final KernelCache cache =
        new KernelCache(engine, new CacheConfig(64, BLOCK, KV_HEADS, HEAD_SIZE, DType.FLOAT16));
    final KernelLayer layer = new KernelLayer(engine, LAYER, cache);
    final StepBinding binding;
    final StepSchema schema;
    final ResultColumns results;
    final List<StepPart> parts = new ArrayList<>();

    Session(BufferAllocator allocator, StepSchema schema) {
      this.allocator = allocator;
      this.schema = schema;
      this.binding = new StepBinding(layer, schema, allocator);
      this.results = new ResultColumns(LAYER, schema.batches(), allocator);
    }

    StepPart part() {
      StepPart part = new StepPart(schema, results, allocator);
      parts.add(part);
      return part;
    }

    @Override
    public void close() {
      parts.forEach(StepPart::close);
      binding.close();
      layer.close();
      cache.close();
      engine.close();
    }
  }

  private static StepBatchBuilder steps(BufferAllocator allocator) {
    return StepBatchBuilder.decoderStep(
            allocator, ROWS, TOKENS, TOKENS, HEADS, KV_HEADS, HEAD_SIZE, BLOCK, DType.FLOAT16)
        .utf8("request", row -> "request " + row);
  }

  private static ArrowBatch whole(BufferAllocator allocator, ArrowBatch batch) {
    try (Session session = new Session(allocator, StepSchema.asSent(batch.schema()))) {
      return session.binding.step(batch);
    }
  }

  private static void assertRow(ArrowBatch got, int gotRow, ArrowBatch expected, int row) {
    assertThat(got.column("request").getString(gotRow)).isEqualTo("request " + row);
    for (String column : List.of("output", "lse")) {
      ArrowColumn left = got.column(column);
      ArrowColumn right = expected.column(column);
      assertThat(left.listSize(gotRow)).isEqualTo(right.listSize(row));
      int width = column.equals("output") ? HEADS * HEAD_SIZE : HEADS;
      for (long i = 0; i < left.listSize(gotRow) * width; i++) {
        assertThat(left.child().child().getLong(left.offset(gotRow) * width + i))
            .isEqualTo(right.child().child().getLong(right.offset(row) * width + i));
      }
    }
  }

  private static void assertRows(ArrowBatch got, ArrowBatch expected, int... rows) {
    assertThat(got.schema()).isEqualTo(expected.schema());
    assertThat(got.numRows()).isEqualTo(rows.length);
    for (int i = 0; i < rows.length; i++) {
      assertRow(got, i, expected, rows[i]);
    }
  }

  @Test
  void smallResultsOfOneStepShareMemoryThatGoesWithTheLast(BufferAllocator allocator) {
    try (ArrowBatch small = steps(allocator).build();
        ArrowBatch large =
            StepBatchBuilder.decoderStep(
                    allocator, 1, 300, 300, HEADS, KV_HEADS, HEAD_SIZE, BLOCK, DType.FLOAT16)
                .utf8("request", row -> "request")
                .build();
        ArrowBatch expected = whole(allocator, small)) {
      ResultColumns results = new ResultColumns(LAYER, small.schema(), allocator);
      try (ResultDraft first = results.draft(small);
          ResultDraft dropped = results.draft(small);
          ResultDraft last = results.draft(small);
          ResultDraft alone = results.draft(large)) {
        long before = allocator.getAllocatedMemory();
        ResultDraft.allocate(List.of(first, first, dropped, alone, last));
        long shared = allocator.getAllocatedMemory() - before;
        ResultDraft.allocate(List.of(first, last));
        assertThat(allocator.getAllocatedMemory() - before).isEqualTo(shared);
        long bytes = dropped.valuesAddress(0) - first.valuesAddress(0);
        assertThat(last.valuesAddress(0) - dropped.valuesAddress(0)).isEqualTo(bytes);
        assertThat(bytes).isGreaterThanOrEqualTo(first.tokens() * results.tensorBytes());
        dropped.close();
        try (ArrowBatch result = last.finish(0)) {
          first.finish(0).close();
          assertThat(allocator.getAllocatedMemory() - before).isEqualTo(shared);
          assertThat(result.schema()).isEqualTo(expected.schema());
          assertThat(result.column("output").listSize(ROWS - 1))
              .isEqualTo(expected.column("output").listSize(ROWS - 1));
        }
        assertThat(allocator.getAllocatedMemory()).isEqualTo(before);
        assertThat(alone.valuesAddress(0)).isPositive();
        assertThat(allocator.getAllocatedMemory() - before)
            .isGreaterThanOrEqualTo(300 * results.tensorBytes());
      }
    }
  }

  @Test
  void runsOfRowsInOneStepGiveWhatTheBatchGives(BufferAllocator allocator) {
    try (ArrowBatch batch = steps(allocator).build();
        ArrowBatch expected = whole(allocator, batch);
        Session session = new Session(allocator, StepSchema.asSent(batch.schema()));
        ResultDraft draft = session.results.draft(batch)) {
      StepPart first = session.part();
      StepPart rest = session.part();
      first.pointAtRows(batch, 0, 2, draft);
      rest.pointAtRows(batch, 2, 3, draft);
      session.binding.run(List.of(first, rest));
      try (ArrowBatch result = draft.finish(0)) {
        assertRows(result, expected, 0, 1, 2, 3, 4);
        assertThat(result.column("output").child().child().values().memoryAddress())
            .isEqualTo(session.binding.lastStats().outputAddress());
        assertThat(result.column("request").values().memoryAddress())
            .isEqualTo(batch.column("request").values().memoryAddress());
        assertThat(result.bytesCopied()).isZero();
      }
    }
  }

  @Test
  void refusedRowsLeaveNoGap(BufferAllocator allocator) {
    try (ArrowBatch batch = steps(allocator).build();
        ArrowBatch expected = whole(allocator, batch);
        Session session = new Session(allocator, StepSchema.asSent(batch.schema()));
        ResultDraft draft = session.results.draft(batch)) {
      StepPart first = session.part();
      StepPart last = session.part();
      first.pointAtRows(batch, 1, 1, draft);
      last.pointAtRows(batch, 3, 2, draft);
      session.binding.run(List.of(first, last));
      draft.refuse(0);
      draft.refuse(2);
      assertThat(draft.rowsLeft()).isEqualTo(3);
      try (ArrowBatch result = draft.finish(0)) {
        assertRows(result, expected, 1, 3, 4);
        assertThat(result.bytesCopied())
            .isBetween(
                3L * TOKENS * HEADS * HEAD_SIZE * 2, 3L * TOKENS * HEADS * HEAD_SIZE * 2 + 400);
      }
    }
  }

  @Test
  void aRowInRunsOfTokensGivesWhatItGivesWhole(BufferAllocator allocator) {
    try (ArrowBatch batch = steps(allocator).build();
        ArrowBatch expected = whole(allocator, batch);
        Session session = new Session(allocator, StepSchema.asSent(batch.schema()));
        ResultDraft draft = session.results.draft(batch)) {
      StepPart part = session.part();
      for (int row = 0; row < ROWS; row++) {
        for (int[] run : new int[][] {{0, 7}, {7, 8}, {8, TOKENS}}) {
          part.pointAtTokens(batch, row, run[0], run[1], run[1], draft);
          session.binding.run(List.of(part));
          assertThat(session.binding.lastStats().queryTokens()).isEqualTo(run[1] - run[0]);
          assertThat(session.binding.lastStats().writtenTokens()).isEqualTo(run[1] - run[0]);
        }
      }
      try (ArrowBatch result = draft.finish(0)) {
        assertRows(result, expected, IntStream.range(0, ROWS).toArray());
      }
    }
  }

  @Test
  void plannedRowsSayWhereTokensGo(BufferAllocator allocator) {
    try (ArrowBatch sent = steps(allocator).build();
        ArrowBatch expected = whole(allocator, sent);
        ArrowBatch batch =
            sent.select(IntStream.range(0, 5).toArray()); // without lengths, slots and blocks
        Session session = new Session(allocator, StepSchema.planned(batch.schema()))) {
      ResultColumns columns = new ResultColumns(LAYER, sent.schema(), allocator);
      StepPart part = session.part();
      for (int[] blocks : new int[][] {{40, 3}, {7, 8}}) {
        part.planned().clear();
        for (int row = 0; row < ROWS; row++) {
          part.planned().addSlots(1, 3);
          part.planned().addBlocks(new int[] {9}, 1);
          part.planned().abandonRow();
          int[] table = {blocks[0] + 2 * row, blocks[1] + 2 * row};
          part.planned().addSlots(BLOCK * (long) table[0], BLOCK);
          part.planned().addSlots(BLOCK * (long) table[1], TOKENS - BLOCK);
          part.planned().addBlocks(table, 2);
          part.planned().endRow(TOKENS);
        }
        try (ResultDraft draft = session.results.draft(batch)) {
          part.pointAtRows(batch, 0, ROWS, draft);
          session.binding.run(List.of(part));
        }
        // The passing column is not among those selected, so outputs alone are compared.
        try (ResultDraft draft = columns.draft(sent);
            StepPart same = new StepPart(StepSchema.planned(sent.schema()), columns, allocator)) {
          for (int row = 0; row < ROWS; row++) {
            int[] table = {blocks[0] + 2 * row, blocks[1] + 2 * row};
            same.planned().addPadding(TOKENS);
            same.planned().addBlocks(table, 2);
            same.planned().endRow(TOKENS);
          }
          same.pointAtRows(sent, 0, ROWS, draft);
          session.binding.run(List.of(same));
          assertThat(session.binding.lastStats().writtenTokens()).isZero();
          try (ArrowBatch result = draft.finish(0)) {
            assertRows(result, expected, IntStream.range(0, ROWS).toArray());
          }
        }
      }
    }
  }

  @Test
  void badRowsAreCountedOverAllParts(BufferAllocator allocator) {
    try (ArrowBatch batch = steps(allocator).build();
        Session session = new Session(allocator, StepSchema.asSent(batch.schema()));
        ResultDraft draft = session.results.draft(batch)) {
      batch.column("block_table").child().values().setInt(4L * 2 * 4, 4711);
      StepPart first = session.part();
      StepPart rest = session.part();
      first.pointAtRows(batch, 0, 2, draft);
      rest.pointAtRows(batch, 2, 3, draft);
      assertThatThrownBy(() -> session.binding.run(List.of(first, rest)))
          .isInstanceOfSatisfying(KernelException.class, e -> assertThat(e.row()).isEqualTo(4))
          .hasMessageContaining("column block_table: entry 0 is block 4711");
      assertThat(session.binding.firstBadRow(rest, 0))
          .hasValueSatisfying(error -> assertThat(error.row()).isEqualTo(2));
      assertThat(session.binding.firstBadRow(first, 0)).isEmpty();
    }
  }

  @Test
  void cancelledEnginesEndTheirSteps(BufferAllocator allocator) {
    KernelEngine engine;
    try (ArrowBatch batch = steps(allocator).build();
        Session session = new Session(allocator, StepSchema.asSent(batch.schema()))) {
      engine = session.engine;
      session.binding.step(batch).close();
      engine.cancel();
      assertThatThrownBy(() -> session.binding.step(batch))
          .isInstanceOfSatisfying(
              KernelException.class, e -> assertThat(e.code()).isEqualTo(ErrorCode.CANCELLED));
    }
    engine.cancel(); // closed: nothing to end
  }
}
