// SPDX-License-Identifier: Apache-2.0
// Steps of several batches, steps in flight, and steps that are cancelled.
#include <gtest/gtest.h>

#include <cstring>
#include <thread>
#include <utility>

#include "harness.h"
#include "random.h"
#include "summary.h"

namespace broadhead::test {
namespace {

constexpr int kBlockSize = 16;

/// Sequences that grow, each in blocks of its own.
class Sequences {
 public:
  explicit Sequences(const LayerConfig& layer) : layer_(layer) {}

  /// The next tokens of a sequence.
  StepRow next(size_t sequence, int tokens) {
    std::vector<int32_t> blocks;
    for (int i = 0; i < kBlocksEach; ++i) {
      blocks.push_back(static_cast<int32_t>(sequence) * kBlocksEach + kBlocksEach - 1 - i);
    }
    lengths_[sequence] += tokens;
    return random_row(random_, layer_, tokens, lengths_[sequence], blocks, kBlockSize);
  }

  static constexpr int kBlocksEach = 5;
  static constexpr int kCount = 4;

 private:
  LayerConfig layer_;
  Random random_{"sequences"};
  int32_t lengths_[kCount] = {};
};

bh_cache_options pool_of(int dtype) {
  bh_cache_options pool{};
  pool.num_blocks = Sequences::kBlocksEach * Sequences::kCount;
  pool.block_size = kBlockSize;
  pool.dtype = dtype;
  return pool;
}

class Parts : public TargetTest {};

/// Where kernels read and write is told of the first row, whichever part it is in.
TEST_P(Parts, MayBeEmptyBeforeTheFirstRow) {
  LayerConfig config;
  Session session(GetParam(), 1, config, pool_of(BH_FLOAT32));
  BH_SKIP_IF_UNUSABLE(session, GetParam());
  Sequences sequences(config);
  const StepBatch batch = {{sequences.next(0, 3), sequences.next(1, 1)}};
  const Outcome behind = run_parts(session.layer(), config, {StepBatch{}, batch, batch});
  ASSERT_EQ(behind.status, BH_OK) << behind.error.message;
  EXPECT_NE(behind.stats.query_address, 0);
  EXPECT_NE(behind.stats.key_address, 0);
  EXPECT_NE(behind.stats.value_address, 0);
  if (GetParam().backend == "cpu") {  // others stage it
    EXPECT_EQ(behind.stats.output_address,
              reinterpret_cast<int64_t>(behind.results[1]->output_address()));
  }

  const Outcome empty = run_parts(session.layer(), config, {StepBatch{}});
  ASSERT_EQ(empty.status, BH_OK) << empty.error.message;
  EXPECT_EQ(empty.stats.query_address, 0);
  EXPECT_EQ(empty.stats.output_address, 0);
}

TEST_P(Parts, AreOneStepWithResultsOfTheirOwn) {
  for (const int attn_type : {BH_DECODER, BH_ENCODER}) {
    for (const int threads : {1, 3}) {
      LayerConfig config;
      config.attn_type = attn_type;
      config.dtype = BH_FLOAT16;
      bh_cache_options pool = pool_of(BH_FLOAT16);
      if (!config.uses_cache()) pool.num_blocks = 0;
      Session session(GetParam(), threads, config, pool);
      BH_SKIP_IF_UNUSABLE(session, GetParam());
      Sequences sequences(config);
      // A prompt, decode rows, no row at all, and the next token of a sequence of an earlier part.
      session.step_parts({{{sequences.next(0, 37), sequences.next(1, 1)}},
                          {},
                          {{sequences.next(2, 1)}},
                          {{sequences.next(3, 5), sequences.next(0, 1)}}});
      EXPECT_LE(session.worst(), 1);
      record("parts", GetParam(), session.worst());
    }
  }
}

TEST_P(Parts, AreCheckedBeforeAnythingIsWritten) {
  LayerConfig config;
  Session session(GetParam(), 1, config, pool_of(BH_FLOAT32));
  BH_SKIP_IF_UNUSABLE(session, GetParam());
  Sequences sequences(config);
  std::vector<StepBatch> parts = {{{sequences.next(0, 3), sequences.next(1, 1)}},
                                  {{sequences.next(2, 1), sequences.next(3, 2)}}};
  parts[1].rows[1].slots[1] = 100000;
  const Outcome outcome = run_parts(session.layer(), config, parts);
  EXPECT_EQ(outcome.status, BH_INVALID_ROW);
  EXPECT_EQ(outcome.error.row, 3) << "rows of all parts count";
  EXPECT_NE(std::string(outcome.error.message).find("column slot_mapping: entry "),
            std::string::npos)
      << outcome.error.message;
  for (const auto& result : outcome.results) EXPECT_TRUE(result->untouched());
  compare_cache(config, session.cache(), *session.mirror());
}

TEST_P(Parts, AreReleasedHoweverTheCallEnds) {
  LayerConfig config;
  Session session(GetParam(), 1, config, pool_of(BH_FLOAT32));
  BH_SKIP_IF_UNUSABLE(session, GetParam());
  Sequences sequences(config);
  const StepBatch batch = {{sequences.next(0, 1)}};
  const Binding binding = make_binding(session.layer(), step_schema(config, batch));
  StepResult result(config, batch);
  const int64_t before = live_c_data();
  auto call = [&](bh_binding* bound, bool with_result, int64_t count) {
    ArrowArray array = export_array(step_array(config, batch));
    const bh_step_part part{&array, with_result ? result.array() : nullptr};
    bh_error error{};
    const int32_t status = bh_step_parts(bound, &part, count, nullptr, &error);
    if (count != 1) array.release(&array);
    return status;
  };
  EXPECT_EQ(call(nullptr, true, 1), BH_INVALID_ARGUMENT);
  EXPECT_EQ(call(binding.get(), false, 1), BH_INVALID_ARGUMENT);
  EXPECT_EQ(call(binding.get(), true, -1), BH_INVALID_ARGUMENT);
  EXPECT_EQ(call(binding.get(), true, int64_t{1} << 31), BH_INVALID_ARGUMENT);
  EXPECT_EQ(call(binding.get(), true, 0), BH_OK) << "no parts, nothing to do";
  EXPECT_EQ(bh_step_parts(binding.get(), nullptr, 1, nullptr, nullptr), BH_INVALID_ARGUMENT);
  EXPECT_TRUE(result.untouched());
  EXPECT_EQ(call(binding.get(), true, 1), BH_OK);
  EXPECT_EQ(live_c_data(), before);
}

/// A step that was begun, of one batch and an empty one.
struct Begun {
  Begun(bh_layer* layer, const LayerConfig& layer_config, StepBatch rows)
      : config(layer_config), batch(std::move(rows)), result(config, batch) {
    const Binding binding = make_binding(layer, step_schema(config, batch));
    ArrowArray array = export_array(step_array(config, batch));
    ArrowArray none = export_array(step_array(config, {}));
    StepResult no_result(config, {});
    const bh_step_part parts[] = {{&array, result.array()}, {&none, no_result.array()}};
    status = bh_step_begin(binding.get(), parts, std::size(parts), &pending, &error);
    EXPECT_EQ(array.release, nullptr) << "batches are taken by move";
    EXPECT_EQ(none.release, nullptr);
  }

  int32_t end(bh_step_stats* stats = nullptr) {
    return bh_step_end(std::exchange(pending, nullptr), stats, &error);
  }

  /// Ends it and compares its result; `mirror` is as the step left it.
  void compare(const LogicalCache& mirror) {
    bh_step_stats stats{};
    ASSERT_EQ(end(&stats), BH_OK) << error.message;
    EXPECT_EQ(stats.query_tokens, batch.num_queries(config));
    EXPECT_LE(compare_result(config, result, attend_reference(config, batch, &mirror)), 1);
    EXPECT_TRUE(result.guards_intact());
    EXPECT_TRUE(result.has_offsets_of(batch));
  }

  LayerConfig config;
  StepBatch batch;
  StepResult result;
  bh_pending_step* pending = nullptr;
  int32_t status;
  bh_error error{};
};

class InFlight : public TargetTest {
 protected:
  LayerConfig config() const {
    LayerConfig config;
    config.dtype = BH_FLOAT16;
    return config;
  }
};

TEST_P(InFlight, StepsTakeEffectInTheOrderOfTheirBeginnings) {
  Session session(GetParam(), 1, config(), pool_of(BH_FLOAT16));
  BH_SKIP_IF_UNUSABLE(session, GetParam());
  Sequences sequences(config());
  const int64_t arrays = live_c_data();
  const int64_t handles = bh_live_handles();
  std::unique_ptr<Begun> before;
  LogicalCache mirror_before = *session.mirror();
  for (int step = 0; step < 8; ++step) {
    StepBatch batch;
    // Decode steps of one shape, which are recorded and replayed, between prompts.
    for (size_t s = 0; s < 2; ++s) batch.rows.push_back(sequences.next(s, step % 5 == 0 ? 9 : 1));
    auto next = std::make_unique<Begun>(session.layer(), config(), batch);
    ASSERT_EQ(next->status, BH_OK) << next->error.message;
    EXPECT_EQ(bh_live_handles(), handles + (before ? 2 : 1));
    if (before) before->compare(mirror_before);
    update_reference(config(), batch, *session.mirror());
    mirror_before = *session.mirror();
    before = std::move(next);
  }
  compare_cache(config(), session.cache(), *session.mirror());  // while the last one is in flight
  before->compare(mirror_before);
  EXPECT_EQ(live_c_data(), arrays);
  EXPECT_EQ(bh_live_handles(), handles);
}

TEST_P(InFlight, ALaterStepMayEndFirst) {
  Session session(GetParam(), 1, config(), pool_of(BH_FLOAT16));
  BH_SKIP_IF_UNUSABLE(session, GetParam());
  Sequences sequences(config());
  Begun prompt(session.layer(), config(), {{sequences.next(0, 21), sequences.next(1, 2)}});
  update_reference(config(), prompt.batch, *session.mirror());
  const LogicalCache after_prompt = *session.mirror();
  Begun decode(session.layer(), config(), {{sequences.next(0, 1)}});
  update_reference(config(), decode.batch, *session.mirror());
  std::thread waiter([&] { EXPECT_EQ(bh_step_wait(decode.pending, nullptr), BH_OK); });
  waiter.join();
  decode.compare(*session.mirror());
  prompt.compare(after_prompt);
}

TEST_P(InFlight, BlocksAreCopiedAndWrittenBehindThem) {
  Session session(GetParam(), 1, config(), pool_of(BH_FLOAT16));
  BH_SKIP_IF_UNUSABLE(session, GetParam());
  Sequences sequences(config());
  Begun prompt(session.layer(), config(), {{sequences.next(0, 16)}});
  update_reference(config(), prompt.batch, *session.mirror());
  const int64_t source = prompt.batch.rows[0].blocks[0];
  const int64_t target = Sequences::kBlocksEach;  // of another sequence
  bh_error error{};
  ASSERT_EQ(bh_cache_copy_blocks(session.cache(), &source, &target, 1, &error), BH_OK)
      << error.message;
  const LogicalCache after_prompt = *session.mirror();
  const auto bytes = static_cast<size_t>(bh_cache_block_bytes(session.cache()));
  std::vector<char> key(bytes), value(bytes);
  ASSERT_EQ(bh_cache_read_block(session.cache(), target, key.data(), value.data(), &error), BH_OK);
  EXPECT_EQ(std::memcmp(key.data(), after_prompt.keys(source), bytes), 0);
  EXPECT_EQ(std::memcmp(value.data(), after_prompt.values(source), bytes), 0);
  // Blocks that are overwritten behind a step do not change what it read.
  Begun decode(session.layer(), config(), {{sequences.next(0, 1)}});
  update_reference(config(), decode.batch, *session.mirror());
  const std::vector<char> zeros(bytes);
  ASSERT_EQ(bh_cache_write_block(session.cache(), source, zeros.data(), zeros.data(), &error),
            BH_OK);
  decode.compare(*session.mirror());
  prompt.compare(after_prompt);
}

TEST_P(InFlight, ABadRowIsRefusedAtTheBeginning) {
  Session session(GetParam(), 1, config(), pool_of(BH_FLOAT16));
  BH_SKIP_IF_UNUSABLE(session, GetParam());
  Sequences sequences(config());
  const int64_t arrays = live_c_data();
  const int64_t handles = bh_live_handles();
  Begun good(session.layer(), config(), {{sequences.next(0, 3)}});
  StepBatch wrong = {{sequences.next(1, 2)}};
  wrong.rows[0].slots[1] = 100000;
  Begun bad(session.layer(), config(), wrong);
  EXPECT_EQ(bad.status, BH_INVALID_ROW);
  EXPECT_EQ(bad.error.row, 0);
  EXPECT_EQ(bad.pending, nullptr);
  EXPECT_TRUE(bad.result.untouched());
  update_reference(config(), good.batch, *session.mirror());
  good.compare(*session.mirror());
  compare_cache(config(), session.cache(), *session.mirror());
  EXPECT_EQ(live_c_data(), arrays);
  EXPECT_EQ(bh_live_handles(), handles);
}

TEST_P(InFlight, AStepOutlivesEverythingItWasMadeFrom) {
  const int64_t arrays = live_c_data();
  auto session = std::make_unique<Session>(GetParam(), 1, config(), pool_of(BH_FLOAT16));
  BH_SKIP_IF_UNUSABLE(*session, GetParam());
  Sequences sequences(config());
  Begun first(session->layer(), config(), {{sequences.next(0, 3)}});
  update_reference(config(), first.batch, *session->mirror());
  LogicalCache after_first = *session->mirror();
  Begun second(session->layer(), config(), {{sequences.next(0, 1)}});
  update_reference(config(), second.batch, *session->mirror());
  const LogicalCache after_second = *session->mirror();
  session.reset();
  EXPECT_EQ(bh_live_handles(), 2);
  first.compare(after_first);
  second.compare(after_second);
  EXPECT_EQ(bh_live_handles(), 0);
  EXPECT_EQ(live_c_data(), arrays);
}

TEST_P(InFlight, CancelledStepsEndWithTheirStatus) {
  const int64_t arrays = live_c_data();
  Session session(GetParam(), 1, config(), pool_of(BH_FLOAT16));
  BH_SKIP_IF_UNUSABLE(session, GetParam());
  Sequences sequences(config());
  Begun begun(session.layer(), config(), {{sequences.next(0, 3)}});
  bh_engine_info info{};
  ASSERT_EQ(bh_engine_describe(session.engine(), &info), BH_OK);
  bh_engine_cancel(session.engine());
  EXPECT_EQ(begun.end(), info.overlaps ? BH_CANCELLED : BH_OK) << "it may have been complete";
  Begun late(session.layer(), config(), {{sequences.next(0, 1)}});
  EXPECT_EQ(late.status, BH_CANCELLED);
  EXPECT_TRUE(late.result.untouched());
  update_reference(config(), begun.batch, *session.mirror());
  compare_cache(config(), session.cache(), *session.mirror());  // without the late one
  EXPECT_EQ(live_c_data(), arrays);
}

TEST_P(InFlight, BadArgumentsAreRefused) {
  Session session(GetParam(), 1, config(), pool_of(BH_FLOAT16));
  BH_SKIP_IF_UNUSABLE(session, GetParam());
  Sequences sequences(config());
  bh_error error{};
  EXPECT_EQ(bh_step_end(nullptr, nullptr, &error), BH_INVALID_ARGUMENT);
  EXPECT_EQ(bh_step_wait(nullptr, &error), BH_INVALID_ARGUMENT);
  const StepBatch batch = {{sequences.next(0, 1)}};
  const Binding binding = make_binding(session.layer(), step_schema(config(), batch));
  StepResult result(config(), batch);
  ArrowArray array = export_array(step_array(config(), batch));
  const bh_step_part part{&array, result.array()};
  EXPECT_EQ(bh_step_begin(binding.get(), &part, 1, nullptr, &error), BH_INVALID_ARGUMENT);
  EXPECT_EQ(array.release, nullptr);
  EXPECT_TRUE(result.untouched());
  bh_pending_step* pending = nullptr;
  EXPECT_EQ(bh_step_begin(binding.get(), &part, 0, &pending, &error), BH_OK);
  EXPECT_EQ(bh_step_end(pending, nullptr, &error), BH_OK) << "no parts, nothing to do";
}

class Cancelled : public TargetTest {};

TEST_P(Cancelled, StepsEndWithTheirStatus) {
  LayerConfig config;
  for (const int threads : {1, 2}) {
    Session session(GetParam(), threads, config, pool_of(BH_FLOAT32));
    BH_SKIP_IF_UNUSABLE(session, GetParam());
    Sequences sequences(config);
    const StepBatch batch = {{sequences.next(0, 60), sequences.next(1, 70)}};
    std::thread canceller([&] { bh_engine_cancel(session.engine()); });
    int32_t status = BH_OK;
    bh_error error{};
    while (status == BH_OK) {
      StepResult result(config, batch);
      status = run_step(session.layer(), config, batch, result, error);
    }
    canceller.join();
    EXPECT_EQ(status, BH_CANCELLED) << error.message;
    EXPECT_EQ(error.row, -1);
  }
  bh_engine_cancel(nullptr);
}

TEST_P(Cancelled, NoOtherEngine) {
  LayerConfig config;
  Session cancelled(GetParam(), 2, config, pool_of(BH_FLOAT32));
  BH_SKIP_IF_UNUSABLE(cancelled, GetParam());
  Session other(GetParam(), 2, config, pool_of(BH_FLOAT32));
  bh_engine_cancel(cancelled.engine());
  Sequences sequences(config);
  other.step({{sequences.next(0, 60)}});
  EXPECT_LE(other.worst(), 1);
}

BH_ON_EVERY_TARGET(Parts);
BH_ON_EVERY_TARGET(InFlight);
BH_ON_EVERY_TARGET(Cancelled);

}  // namespace
}  // namespace broadhead::test
