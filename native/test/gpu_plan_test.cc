// SPDX-License-Identifier: Apache-2.0
// Plans of GPU steps, without a GPU: whatever the rows are, items see every key of every token
// once.
#include "gpu/gpu_plan.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <set>
#include <vector>

#include "core/failure.h"
#include "random.h"

namespace broadhead::gpu {
namespace {

struct Sequence {
  int queries;
  int length;
};

struct PlanCase {
  const char* name;
  std::vector<Sequence> rows;
  int shared_blocks = 0;  ///< that all rows begin with
  int group_size = 4;
  int64_t window = 0;
  int decode_rows = 16;
  int divided_rows = 16;
  int prefill_rows = 128;
  int slots = 6;
};

/// What plan.write() puts in front of attention's arrays, read where it was written.
struct Written {
  std::vector<char> memory;
  int64_t offset = 0;
  const StepArgs& args() const {
    return *reinterpret_cast<const StepArgs*>(memory.data() + offset);
  }
};

class PlanChecker {
 public:
  explicit PlanChecker(const PlanCase& c) : case_(c) {
    constexpr int kBlockSize = 16;
    spec_.num_heads = c.group_size;
    spec_.num_kv_heads = 1;
    spec_.head_size = 64;
    spec_.dtype = BH_FLOAT16;
    spec_.attn_type = BH_DECODER;
    spec_.sliding_window = c.window;
    int32_t next_block = c.shared_blocks;
    for (const Sequence& sequence : c.rows) {
      StepRow row{};
      row.query = row.output = num_queries_;
      row.num_queries = sequence.queries;
      row.seq_len = sequence.length;
      row.blocks = static_cast<int64_t>(blocks_.size());
      num_queries_ += sequence.queries;
      for (int b = 0; b * kBlockSize < sequence.length; ++b) {
        blocks_.push_back(b < c.shared_blocks ? b : next_block++);
      }
      rows_.push_back(row);
    }
    StepPart part{};
    part.blocks = blocks_.data();
    Step step{};
    step.rows = rows_.data();
    step.num_rows = static_cast<int64_t>(rows_.size());
    step.parts = &part;
    step.num_queries = num_queries_;
    outputs_.resize(static_cast<size_t>(num_queries_ * TensorBytes(spec_).output));
    PartTensors tensors{};
    tensors.query = tensors.output = outputs_.data();
    const PlanLimits limits = {.decode_rows = c.decode_rows,
                               .divided_rows = c.divided_rows,
                               .prefill_rows = c.prefill_rows,
                               .columns = 8,
                               .slots = {c.slots, c.slots},
                               .multiprocessors = 8,
                               .group_size = c.group_size,
                               .num_groups = 1};
    plan_.plan(spec_, step, kBlockSize, {tensors}, nullptr, limits);
    written_.memory.resize(static_cast<size_t>(plan_.bytes()));
    plan_.write({}, written_.memory.data(), written_.memory.data());
    written_.offset = plan_.attention_offset();
  }

  void check() {
    const StepArgs& args = written_.args();
    std::set<int> reached;
    for (int slot = 0; slot < plan_.decode_blocks(); ++slot) {
      if (args.decode_items()[slot].num_tokens == 0) continue;
      for (int i = slot; i >= 0; i = args.decode_items()[i].next) {
        ASSERT_TRUE(reached.insert(i).second) << "item " << i << " twice";
        EXPECT_LE(args.decode_items()[i].num_tokens * case_.group_size, case_.decode_rows);
        add(args.decode_items()[i]);
        check_first_blocks(args.decode_items()[i]);
      }
    }
    for (int i = 0; i < args.num_prefill_items; ++i) add(args.prefill_items[i]);
    int64_t tokens = 0;
    for (const auto& [output, seen] : seen_) {
      ++tokens;
      const Token& token = seen.token;
      EXPECT_EQ(static_cast<int>(seen.keys.size()), token.end - token.first) << "token " << tokens;
      EXPECT_EQ(static_cast<int>(seen.pieces.size()), token.num_partials) << "token " << tokens;
      EXPECT_EQ(*seen.pieces.rbegin(), token.num_partials - 1);
    }
    EXPECT_EQ(tokens, num_queries_);
    for (int r = 0; r < plan_.num_runs(); ++r) {
      const Run& run = args.runs[r];
      EXPECT_EQ(run.items, items_of_run_[r]) << "run " << r;
      // One block of threads joins them.
      EXPECT_LE(run.num_tokens * case_.group_size, std::max(case_.decode_rows, case_.prefill_rows));
      for (int t = 0; t < run.num_tokens; ++t) {
        EXPECT_EQ(args.tokens[run.first_token + t].run, r) << "token " << run.first_token + t;
      }
    }
  }

  /// Items of each block of threads.
  std::vector<int> rounds() const {
    std::vector<int> rounds;
    for (int slot = 0; slot < plan_.decode_blocks(); ++slot) {
      rounds.push_back(0);
      for (int i = slot; i >= 0; i = written_.args().decode_items()[i].next) ++rounds.back();
    }
    return rounds;
  }

 private:
  struct Seen {
    Token token;
    std::set<int> keys;
    std::set<int> pieces;
  };

  void add(const AttendItem& item) {
    const StepArgs& args = written_.args();
    EXPECT_EQ(item.first_key % kTile, 0);
    std::set<int> partial_runs;
    for (int t = 0; t < item.num_tokens; ++t) {
      const Token& token = args.tokens[item.first_token + t];
      Seen& seen = seen_[token.output];
      seen.token = token;
      if (token.num_partials > 1) partial_runs.insert(token.run);
      EXPECT_TRUE(seen.pieces.insert(item.piece).second);
      const int first = std::max({token.first, item.first_seen, item.first_key});
      for (int key = first; key < std::min(token.end, item.end_key); ++key) {
        EXPECT_TRUE(seen.keys.insert(key).second) << "key " << key << " twice";
        EXPECT_EQ(args.blocks[item.blocks + key / 16],
                  blocks_[static_cast<size_t>(row_of(token).blocks + key / 16)]);
      }
    }
    EXPECT_EQ(item.is_partial != 0, !partial_runs.empty());
    for (const int run : partial_runs) ++items_of_run_[run];
  }

  const StepRow& row_of(const Token& token) const {
    const int64_t index = (token.output - outputs_.data()) / TensorBytes(spec_).output;
    return *std::find_if(rows_.begin(), rows_.end(), [&](const StepRow& row) {
      return index >= row.output && index < row.output + row.num_queries;
    });
  }

  void check_first_blocks(const AttendItem& item) {
    int key = item.first_key;
    for (const int32_t block : item.first_blocks) {
      if (key >= item.end_key) break;
      EXPECT_EQ(block, written_.args().blocks[item.blocks + key / 16]) << "key " << key;
      key += kTile;
    }
  }

  PlanCase case_;
  LayerSpec spec_{};
  std::vector<StepRow> rows_;
  std::vector<int32_t> blocks_;
  int64_t num_queries_ = 0;
  GpuPlan plan_;
  Written written_;
  std::vector<char> outputs_;
  std::map<const char*, Seen> seen_;
  std::map<int, int> items_of_run_;
};

TEST(GpuPlan, ItemsSeeEveryKeyOnce) {
  // clang-format off
  const std::vector<PlanCase> cases = {
      {.name = "one row", .rows = {{1, 1}}},
      {.name = "long row", .rows = {{1, 5000}}},
      {.name = "rows", .rows = {{1, 100}, {1, 2000}, {3, 40}, {0, 20}, {1, 700}, {1, 701}}},
      {.name = "two rounds", .rows = {{1, 100}, {1, 2000}, {3, 40}, {0, 20}, {1, 700}, {1, 701}}, .slots = 4},
      {.name = "equal rounds", .rows = std::vector<Sequence>(8, {1, 1600})},
      {.name = "prefill", .rows = {{200, 200}, {1, 50}, {40, 3000}}},
      {.name = "divided prefill", .rows = {{70, 4000}, {2, 900}}},
      {.name = "window", .rows = {{1, 1000}, {300, 900}}, .window = 77},
      {.name = "shared", .rows = {{1, 300}, {1, 161}, {3, 300}, {1, 290}}, .shared_blocks = 9},
      {.name = "shared by many", .rows = std::vector<Sequence>(70, {1, 400}), .shared_blocks = 20},
      {.name = "all shared", .rows = {{1, 160}, {1, 160}, {2, 163}, {4, 170}, {1, 161}}, .shared_blocks = 10},
      {.name = "any dtypes", .rows = {{1, 300}, {200, 200}, {3, 300}}, .shared_blocks = 9, .prefill_rows = 0},
      {.name = "decode in parts", .rows = {{8, 300}, {5, 200}, {9, 400}, {1, 100}}, .shared_blocks = 3, .divided_rows = 32},
      {.name = "decode and the rest of a prompt", .rows = {{20, 330}, {1, 64}, {1, 65}, {4, 90}}, .group_size = 8, .divided_rows = 32},
      {.name = "wide groups", .rows = {{1, 300}, {2, 200}}, .group_size = 32, .divided_rows = 32},
      {.name = "more slots than work", .rows = {{1, 20}, {1, 30}}, .slots = 400},
  };
  // clang-format on
  for (const PlanCase& c : cases) {
    SCOPED_TRACE(c.name);
    PlanChecker(c).check();
  }
}

TEST(GpuPlan, DecodeTakesManyTokensInPartsWhereThereAreManyRows) {
  const std::vector<Sequence> few = {{8, 320}}, many(4, {8, 320});
  EXPECT_TRUE(PlanChecker({.name = "", .rows = few, .divided_rows = 32}).rounds().empty());
  EXPECT_EQ(PlanChecker({.name = "", .rows = many, .divided_rows = 32, .slots = 8}).rounds(),
            std::vector<int>(8, 1));
}

TEST(GpuPlan, RoundsAreEqual) {
  const PlanChecker plan({.name = "", .rows = std::vector<Sequence>(8, {1, 1600}), .slots = 6});
  EXPECT_EQ(plan.rounds(), std::vector<int>(4, 2));
}

LayerSpec one_head() {
  LayerSpec spec{};
  spec.num_heads = spec.num_kv_heads = 1;
  spec.head_size = 64;
  spec.dtype = BH_FLOAT16;
  spec.attn_type = BH_DECODER;
  return spec;
}

/// Blocks of threads write in any order: of a slot that repeats only what stays is written.
TEST(GpuPlan, WritesASlotThatRepeatsOnce) {
  const LayerSpec spec = one_head();
  const std::vector<int64_t> slots = {3, 21, 3, 4, 21, -1};
  StepRow rows[2]{};
  rows[0].num_keys = 4;
  rows[1].num_keys = 2;
  rows[1].key = rows[1].value = rows[1].slots = 4;
  StepPart part{};
  part.slots = slots.data();
  Step step{};
  step.rows = rows;
  step.num_rows = 2;
  step.parts = &part;
  step.slots_repeat = true;
  const int64_t bytes = TensorBytes(spec).key;
  std::vector<char> keys(slots.size() * static_cast<size_t>(bytes)), values = keys;
  PartTensors tensors{};
  tensors.key = keys.data();
  tensors.value = values.data();
  GpuPlan plan;
  PlanLimits limits{};
  limits.slots[0] = limits.slots[1] = limits.group_size = 1;
  plan.plan(spec, step, kTile, {tensors}, nullptr, limits);
  EXPECT_EQ(plan.written_tokens(), 5);
  std::vector<char> memory(static_cast<size_t>(plan.bytes()));
  plan.write({}, memory.data(), memory.data());
  UpdateArgs update{};
  plan.point(update, memory.data());
  std::map<int, int64_t> written;  // tensors by slot
  for (int t = 0; t < update.num_tokens; ++t) {
    const UpdateToken& token = update.tokens[t];
    const int64_t index = (token.key - keys.data()) / bytes;
    EXPECT_EQ(token.value, values.data() + index * bytes);
    EXPECT_TRUE(written.emplace(token.block * kTile + token.offset, index).second);
  }
  EXPECT_EQ(written, (std::map<int, int64_t>{{3, 2}, {4, 3}, {21, 4}}));
}

/// Rows without queries: nothing looks into their block tables.
TEST(GpuPlan, RefusesMoreBlocksThanIndicesCount) {
  const LayerSpec spec = one_head();
  StepRow row{};
  row.seq_len = kMaxSeqLen;
  const std::vector<StepRow> rows(32, row);
  const StepPart part{};
  Step step{};
  step.rows = rows.data();
  step.parts = &part;
  GpuPlan plan;
  const PlanLimits limits = {.decode_rows = 16,
                             .divided_rows = 16,
                             .prefill_rows = 128,
                             .columns = 8,
                             .slots = {6, 6},
                             .multiprocessors = 8,
                             .group_size = 1,
                             .num_groups = 1};
  step.num_rows = 31;
  plan.plan(spec, step, kTile, {PartTensors{}}, nullptr, limits);
  EXPECT_EQ(plan.num_blocks(), int64_t{31} << 26);
  step.num_rows = 32;
  try {
    plan.plan(spec, step, kTile, {PartTensors{}}, nullptr, limits);
    FAIL() << "planned";
  } catch (const Failure& failure) {
    EXPECT_EQ(failure.code(), BH_INVALID_ARGUMENT);
    EXPECT_STREQ(failure.what(),
                 "the rows of a step have 2147483648 blocks, expected at most 2147483647 on a GPU");
  }
}

}  // namespace
}  // namespace broadhead::gpu
