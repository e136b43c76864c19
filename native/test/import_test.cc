// SPDX-License-Identifier: Apache-2.0
// What is wrong with a schema or a batch is refused with a status, a row and a text that name it,
// and leaves cache and result as they were. One line for each way to be wrong.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <functional>
#include <limits>

#include "harness.h"
#include "random.h"

namespace broadhead::test {
namespace {

constexpr int kBlocks = 12;
constexpr int kBlockSize = 16;
constexpr int kMaxPosition = 64;
constexpr auto kInt32Max = std::numeric_limits<int32_t>::max();
constexpr auto kInt32Min = std::numeric_limits<int32_t>::min();
constexpr auto kInt64Max = std::numeric_limits<int64_t>::max();

LayerConfig good_layer() {
  LayerConfig layer;
  layer.num_heads = 4;
  layer.head_size = 32;
  layer.dtype = BH_FLOAT16;
  layer.set_rope(32, true, kMaxPosition);
  return layer;
}

/// Rows of 1, 5 and 2 new tokens, all of them right.
StepBatch good_batch(const LayerConfig& layer) {
  Random random("good batch");
  StepBatch batch;
  int32_t block = 0;
  for (const auto& [tokens, length] : {std::pair{1, 20}, {5, 5}, {2, 40}}) {
    std::vector<int32_t> blocks;
    for (int b = 0; b < (length + kBlockSize - 1) / kBlockSize; ++b) blocks.push_back(block++);
    batch.rows.push_back(random_row(random, layer, tokens, length, blocks, kBlockSize));
  }
  return batch;
}

/// A layer, a cache of zeros and one engine for the tests of this file: the import is the same on
/// every backend and tier.
class Import : public testing::Test {
 protected:
  void SetUp() override {
    engine_ = open_engine(targets().front(), 1, reason_);
    if (!engine_) engine_ = open_engine(targets().back(), 1, reason_);
    if (!engine_) GTEST_SKIP() << reason_;
    bh_cache_options pool{};
    pool.struct_size = sizeof pool;
    pool.num_blocks = kBlocks;
    pool.block_size = kBlockSize;
    pool.num_kv_heads = config_.num_kv_heads;
    pool.head_size = config_.head_size;
    pool.dtype = BH_FLOAT16;
    cache_ = make_cache(engine_.get(), pool);
    layer_ = make_layer(engine_.get(), config_, cache_.get());
  }

  /// Computes a step of `batch` as it is in `array`.
  void accept(const StepBatch& batch, ArrowArray array) {
    const Binding binding = make_binding(layer_.get(), step_schema(config_, batch));
    StepResult result(config_, batch);
    bh_error error{};
    EXPECT_EQ(bh_step(binding.get(), &array, result.array(), nullptr, &error), BH_OK)
        << error.message;
  }

  Bytes cache_contents() const {
    const auto bytes = static_cast<size_t>(bh_cache_block_bytes(cache_.get()));
    Bytes all(2 * kBlocks * bytes);
    for (size_t block = 0; block < kBlocks; ++block) {
      bh_error error{};
      uint8_t* at = all.data() + 2 * block * bytes;
      EXPECT_EQ(
          bh_cache_read_block(cache_.get(), static_cast<int64_t>(block), at, at + bytes, &error),
          BH_OK);
    }
    return all;
  }

  /// Runs a step that must be refused.
  void expect_refused(const Field& schema, const Array& array, const StepBatch& batch,
                      int32_t status, int64_t row, const std::vector<std::string>& mentions) {
    const Binding binding = make_binding(layer_.get(), schema);
    for (const bool check_only : {true, false}) {
      StepResult result(config_, batch);
      ArrowArray exported = export_array(array);
      bh_error error{};
      error.row = -2;
      EXPECT_EQ(check_only ? bh_check_rows(binding.get(), &exported, 0, &error)
                           : bh_step(binding.get(), &exported, result.array(), nullptr, &error),
                status)
          << error.message;
      EXPECT_EQ(exported.release, nullptr);
      EXPECT_EQ(error.code, status);
      EXPECT_EQ(error.row, row);
      for (const std::string& text : mentions) {
        EXPECT_NE(std::string(error.message).find(text), std::string::npos)
            << "expected '" << text << "' in: " << error.message;
      }
      EXPECT_TRUE(result.untouched());
      const Bytes cached = cache_contents();
      EXPECT_EQ(std::count(cached.begin(), cached.end(), 0), std::ssize(cached));
    }
  }

  std::string reason_;
  LayerConfig config_ = good_layer();
  Engine engine_;
  Cache cache_;
  Layer layer_;
};

size_t index_of(const Field& schema, const std::string& column) {
  size_t i = 0;
  while (schema.children.at(i).name != column) ++i;
  return i;
}

TEST_F(Import, AcceptsTheGoodBatch) {
  const StepBatch batch = good_batch(config_);
  StepResult result(config_, batch);
  bh_error error{};
  ASSERT_EQ(run_step(layer_.get(), config_, batch, result, error), BH_OK) << error.message;
  EXPECT_TRUE(result.has_offsets_of(batch));
}

// ---- values ----

struct BadValue {
  const char* name;
  std::function<void(StepBatch&)> change;
  int64_t row;
  std::vector<std::string> mentions;
};

// clang-format off
const std::vector<BadValue> kBadValues = {
    {"slot past the end", [](auto& b) { b.rows[1].slots[2] = 192; }, 1, {"slot_mapping", "entry 2", "192", "below 192", "12 blocks of 16"}},
    {"largest slot", [](auto& b) { b.rows[2].slots[0] = kInt64Max; }, 2, {"slot_mapping", "entry 0", "9223372036854775807", "192"}},
    {"too few slots", [](auto& b) { b.rows[1].slots.pop_back(); }, 1, {"slot_mapping", "4 entries", "expected 5"}},
    {"too many slots", [](auto& b) { b.rows[0].slots.push_back(0); }, 0, {"slot_mapping", "2 entries", "expected 1"}},
    {"no slots", [](auto& b) { b.rows[2].slots.clear(); }, 2, {"slot_mapping", "0 entries", "expected 2"}},
    {"block past the end", [](auto& b) { b.rows[2].blocks[1] = 12; }, 2, {"block_table", "entry 1", "12", "0 .. 11"}},
    {"negative block", [](auto& b) { b.rows[2].blocks[2] = -1; }, 2, {"block_table", "entry 2", "-1", "0 .. 11"}},
    {"largest block", [](auto& b) { b.rows[0].blocks[0] = kInt32Max; }, 0, {"block_table", "2147483647"}},
    {"smallest block", [](auto& b) { b.rows[1].blocks[0] = kInt32Min; }, 1, {"block_table", "-2147483648"}},
    {"short block table", [](auto& b) { b.rows[2].blocks.pop_back(); }, 2, {"block_table", "2 entries", "at least 3", "seq_len 40"}},
    {"no block table", [](auto& b) { b.rows[0].blocks.clear(); }, 0, {"block_table", "0 entries", "at least 2"}},
    {"seq_len longer than its table", [](auto& b) { b.rows[1].seq_len = 17; }, 1, {"block_table", "1 entries", "at least 2", "seq_len 17"}},
    {"seq_len far beyond its table", [](auto& b) { b.rows[1].seq_len = 1 << 30; }, 1, {"block_table", "67108864"}},
    {"largest seq_len", [](auto& b) { b.rows[1].seq_len = kInt32Max; }, 1, {"seq_len", "2147483647", "at most 1073741824"}},
    {"negative seq_len", [](auto& b) { b.rows[1].seq_len = -1; }, 1, {"seq_len", "-1"}},
    {"smallest seq_len", [](auto& b) { b.rows[0].seq_len = kInt32Min; }, 0, {"seq_len", "-2147483648"}},
    {"seq_len below the queries", [](auto& b) { b.rows[1].seq_len = 4; }, 1, {"seq_len", "4", "at least 5"}},
    {"more values than keys", [](auto& b) { b.rows[1].value.resize(6 * 64); }, 1, {"value", "6", "expected 5"}},
    {"fewer values than keys", [](auto& b) { b.rows[1].value.resize(4 * 64); }, 1, {"value", "4", "expected 5"}},
    {"values without keys", [](auto& b) { b.rows[2].key.clear(); b.rows[2].slots.clear(); }, 2, {"value", "2", "expected 0"}},
    {"keys unlike queries with rope", [](auto& b) { auto& r = b.rows[2]; r.key.resize(64); r.value.resize(64); r.slots.pop_back(); }, 2, {"key", "1", "expected 2", "rope"}},
    {"too few positions", [](auto& b) { b.rows[1].positions.pop_back(); }, 1, {"position", "4 entries", "expected 5"}},
    {"too many positions", [](auto& b) { b.rows[0].positions.push_back(3); }, 0, {"position", "2 entries", "expected 1"}},
    {"negative position", [](auto& b) { b.rows[1].positions[3] = -1; }, 1, {"position", "entry 3", "-1", "0 .. 63"}},
    {"position past the table", [](auto& b) { b.rows[2].positions[1] = 64; }, 2, {"position", "entry 1", "64", "max_position 64"}},
    {"int64 position", [](auto& b) { b.wide_positions = true; b.rows[2].positions[0] = int64_t{1} << 32; }, 2, {"position", "entry 0", "4294967296"}},
    {"negative int64 position", [](auto& b) { b.wide_positions = true; b.rows[0].positions[0] = -kInt64Max; }, 0, {"position", "-9223372036854775807"}},
    {"positions of a row without queries", [](auto& b) { b.rows[1].query.clear(); b.rows[1].positions.clear(); }, 1, {"position", "0 entries", "expected 5"}},
};
// clang-format on

TEST_F(Import, RefusesBadValues) {
  for (const BadValue& bad : kBadValues) {
    SCOPED_TRACE(bad.name);
    StepBatch batch = good_batch(config_);
    bad.change(batch);
    expect_refused(step_schema(config_, batch), step_array(config_, batch), batch, BH_INVALID_ROW,
                   bad.row, bad.mentions);
  }
}

TEST_F(Import, ChecksRowsOneByOne) {
  StepBatch batch = good_batch(config_);
  batch.rows[0].slots[0] = 1000;
  batch.rows[2].seq_len = -5;
  const Binding binding = make_binding(layer_.get(), step_schema(config_, batch));
  auto first_bad_row = [&](int64_t from) {
    ArrowArray array = export_array(step_array(config_, batch));
    bh_error error{};
    const int32_t status = bh_check_rows(binding.get(), &array, from, &error);
    return status == BH_OK ? int64_t{-1} : error.row;
  };
  EXPECT_EQ(first_bad_row(0), 0);
  EXPECT_EQ(first_bad_row(1), 2);
  EXPECT_EQ(first_bad_row(2), 2);
  EXPECT_EQ(first_bad_row(3), -1);
  ArrowArray array = export_array(step_array(config_, batch));
  bh_error error{};
  EXPECT_EQ(bh_check_rows(binding.get(), &array, -1, &error), BH_INVALID_ARGUMENT);
  EXPECT_EQ(array.release, nullptr);
}

// ---- arrays ----

/// Entry `row` of a column's list offsets.
void set_offset(Array& list, int64_t row, int32_t value) {
  const auto at = static_cast<size_t>(kStructOffset + kListOffset + row) * 4;
  std::memcpy(list.buffers[1]->data() + at, &value, 4);
}

/// Moves a data buffer.
void misalign(ArrowArray* array, int bytes = 1) {
  array->buffers[1] = static_cast<const char*>(array->buffers[1]) + bytes;
}

struct BadArray {
  const char* name;
  const char* column;
  std::function<void(Array&)> change;  ///< of the column
  int32_t status;
  int64_t row;
  std::vector<std::string> mentions;
};

const char* const kLists[] = {"query", "key", "value", "slot_mapping", "block_table", "position"};
const char* const kTensors[] = {"query", "key", "value"};
const char* const kScalars[] = {"slot_mapping", "block_table", "position"};

std::vector<BadArray> bad_arrays() {
  std::vector<BadArray> all;
  auto add = [&all](auto& columns, const char* name, std::function<void(Array&)> change,
                    int32_t status, int64_t row, const char* mention) {
    for (const char* column : columns) {
      all.push_back({name, column, change, status, row, {column, mention}});
    }
  };
  const std::vector<const char*> seq_len = {"seq_len"};
  const Bytes validity(8, 0xfe);
  // clang-format off
  add(kLists, "falling offsets", [](Array& a) { set_offset(a, 2, 2); }, BH_INVALID_ROW, 1, "offsets ");
  add(kLists, "negative offset", [](Array& a) { set_offset(a, 0, -1); }, BH_INVALID_ROW, 0, ": offsets -1 .. ");
  add(kLists, "offset past the child", [](Array& a) { set_offset(a, 3, 1000); }, BH_INVALID_ROW, 2, " .. 1000, expected");
  add(kLists, "offset one past the child", [](Array& a) { set_offset(a, 3, static_cast<int32_t>(a.children[0].length) + 1); }, BH_INVALID_ROW, 2, "expected a rising range");
  add(kLists, "largest offset", [](Array& a) { set_offset(a, 1, kInt32Max); }, BH_INVALID_ROW, 0, " .. 2147483647, expected");
  add(kLists, "shorter than the batch", [](Array& a) { --a.length; }, BH_INVALID_ARGUMENT, -1, "expected at least 5");
  add(kLists, "negative length", [](Array& a) { a.length = -3; }, BH_INVALID_ARGUMENT, -1, "length is -3");
  add(kLists, "negative offset of the array", [](Array& a) { a.offset = -1; }, BH_INVALID_ARGUMENT, -1, "offset is -1");
  add(kLists, "entries beyond memory", [](Array& a) { a.offset = kInt64Max; }, BH_INVALID_ARGUMENT, -1, "more than memory can hold");
  add(kLists, "no offsets", [](Array& a) { a.buffers[1].reset(); }, BH_INVALID_ARGUMENT, -1, "NULL");
  add(kLists, "a buffer too few", [](Array& a) { a.buffers.pop_back(); }, BH_INVALID_ARGUMENT, -1, "n_buffers is 1, expected 2");
  add(kLists, "no child", [](Array& a) { a.children.clear(); }, BH_INVALID_ARGUMENT, -1, "n_children is 0, expected 1");
  add(kScalars, "null entries", [validity](Array& a) { a.children[0].null_count = 1; a.children[0].buffers[0] = validity; }, BH_SCHEMA_MISMATCH, 0, "null");
  add(kScalars, "uncounted null entries", [](Array& a) { a.children[0].null_count = -1; a.children[0].buffers[0] = Bytes(8, 0); }, BH_SCHEMA_MISMATCH, 0, "expected no nulls");
  add(kScalars, "no values", [](Array& a) { a.children[0].buffers[1].reset(); }, BH_INVALID_ARGUMENT, -1, "NULL");
  add(kScalars, "negative child length", [](Array& a) { a.children[0].length = -1; }, BH_INVALID_ARGUMENT, -1, "length is -1");
  add(kScalars, "negative child offset", [](Array& a) { a.children[0].offset = -1; }, BH_INVALID_ARGUMENT, -1, "offset is -1");
  add(kTensors, "null tensors", [validity](Array& a) { a.children[0].null_count = 1; a.children[0].buffers[0] = validity; }, BH_SCHEMA_MISMATCH, 1, "null tensors");
  add(kTensors, "uncounted null tensors", [](Array& a) { a.children[0].null_count = -1; a.children[0].buffers[0] = Bytes(8, 0); }, BH_SCHEMA_MISMATCH, 0, "expected no null tensors");
  add(kTensors, "null elements", [](Array& a) { a.children[0].children[0].null_count = 1; a.children[0].children[0].buffers[0] = Bytes(4096, 0xfe); }, BH_SCHEMA_MISMATCH, 0, "null elements");
  add(kTensors, "uncounted null elements", [](Array& a) { a.children[0].children[0].null_count = -1; a.children[0].children[0].buffers[0] = Bytes(4096, 0); }, BH_SCHEMA_MISMATCH, 0, "expected no null elements");
  add(kTensors, "too few elements", [](Array& a) { --a.children[0].children[0].length; }, BH_INVALID_ARGUMENT, -1, "number of elements");
  add(kTensors, "too many tensors", [](Array& a) { a.children[0].length = kInt64Max / 16; }, BH_INVALID_ARGUMENT, -1, "number of elements");
  add(kTensors, "tensors from far away", [](Array& a) { a.children[0].offset = kInt64Max / 9; a.children[0].length = 0; a.children[0].children[0].null_count = 1; a.children[0].children[0].buffers[0] = Bytes(8, 0); }, BH_INVALID_ARGUMENT, -1, "number of elements");
  add(kTensors, "negative number of tensors", [](Array& a) { a.children[0].length = -1; }, BH_INVALID_ARGUMENT, -1, "length is -1");
  add(kTensors, "negative element offset", [](Array& a) { a.children[0].children[0].offset = -1; }, BH_INVALID_ARGUMENT, -1, "offset is -1");
  add(kTensors, "no elements", [](Array& a) { a.children[0].children[0].buffers[1].reset(); }, BH_INVALID_ARGUMENT, -1, "NULL");
  add(seq_len, "null", [](Array& a) { a.null_count = 1; a.buffers[0] = Bytes{0b11101111}; }, BH_INVALID_ROW, 1, "null");
  add(seq_len, "uncounted null", [](Array& a) { a.null_count = -1; a.buffers[0] = Bytes{0b11101111}; }, BH_INVALID_ROW, 1, "null");
  add(seq_len, "shorter than the batch", [](Array& a) { --a.length; }, BH_INVALID_ARGUMENT, -1, "expected at least 5");
  add(seq_len, "no values", [](Array& a) { a.buffers[1].reset(); }, BH_INVALID_ARGUMENT, -1, "NULL");
  add(seq_len, "a child too many", [](Array& a) { a.children.emplace_back(); }, BH_INVALID_ARGUMENT, -1, "n_children is 1, expected 0");
  // clang-format on
  return all;
}

TEST_F(Import, RefusesBadArrays) {
  const StepBatch batch = good_batch(config_);
  const Field schema = step_schema(config_, batch);
  for (const BadArray& bad : bad_arrays()) {
    SCOPED_TRACE(std::string(bad.column) + ": " + bad.name);
    Array array = step_array(config_, batch);
    bad.change(array.children[index_of(schema, bad.column)]);
    expect_refused(schema, array, batch, bad.status, bad.row, bad.mentions);
  }
}

TEST_F(Import, RefusesBadStructs) {
  const StepBatch batch = good_batch(config_);
  const Field schema = step_schema(config_, batch);
  const Array good = step_array(config_, batch);
  auto refuse = [&](const char* name, std::function<void(Array&)> change,
                    std::vector<std::string> mentions) {
    SCOPED_TRACE(name);
    Array array = good;
    change(array);
    expect_refused(schema, array, batch, BH_INVALID_ARGUMENT, -1, mentions);
  };
  refuse("a column too few", [](Array& a) { a.children.pop_back(); }, {"n_children", "expected 8"});
  refuse("negative length", [](Array& a) { a.length = -1; }, {"length is -1"});
  refuse("negative offset", [](Array& a) { a.offset = -1; }, {"offset is -1"});
  refuse("rows beyond memory", [](Array& a) { a.offset = kInt64Max; },
         {"more than memory can hold"});
  refuse("rows to beyond memory", [](Array& a) { a.length = kInt64Max; },
         {"more than memory can hold"});
  refuse("longer than its columns", [](Array& a) { ++a.length; }, {"length", "at least 6"});
  refuse("no buffer slot", [](Array& a) { a.buffers.clear(); }, {"n_buffers"});
  auto null_rows = [](int64_t null_count) {
    return [null_count](Array& a) {
      a.null_count = null_count;
      a.buffers[0] = Bytes{0b11101111};
    };
  };
  refuse("null rows", null_rows(1), {"null rows"});
  refuse("uncounted null rows", null_rows(-1), {"null rows"});
}

/// What a producer in C can do and a tree of values cannot.
TEST_F(Import, RefusesMissingPointers) {
  const StepBatch batch = good_batch(config_);
  const Field schema = step_schema(config_, batch);
  const auto query = static_cast<int>(index_of(schema, "query"));
  const Binding binding = make_binding(layer_.get(), schema);
  using A = ArrowArray;
  for (const auto& change : std::initializer_list<std::function<void(A&)>>{
           [](A& a) { a.buffers = nullptr; },
           [](A& a) { a.children = nullptr; },
           [&](A& a) { a.children[query]->buffers = nullptr; },
           [&](A& a) { a.children[query]->children = nullptr; },
           [&](A& a) { a.children[query]->children[0]->children[0] = nullptr; },
           [&](A& a) { a.children[query] = nullptr; },
       }) {
    ArrowArray exported = export_array(step_array(config_, batch));
    change(exported);
    bh_error error{};
    EXPECT_EQ(bh_check_rows(binding.get(), &exported, 0, &error), BH_INVALID_ARGUMENT);
    EXPECT_NE(std::string(error.message).find("NULL"), std::string::npos) << error.message;
    EXPECT_EQ(exported.release, nullptr);
  }
}

TEST_F(Import, RefusesMalformedSchemas) {
  const StepBatch batch = good_batch(config_);
  const Field fields = step_schema(config_, batch);
  const auto query = static_cast<int>(index_of(fields, "query"));
  const int32_t negative_length[] = {1, -1}, negative_count[] = {-1};
  using S = ArrowSchema;
  for (const auto& change : std::initializer_list<std::function<void(S&)>>{
           [](S& s) { s.format = nullptr; },
           [](S& s) { s.children = nullptr; },
           [](S& s) {
             s = {"+l", s.name, nullptr, 0, 1, nullptr, nullptr, s.release, s.private_data};
           },
           [&](S& s) { s.children[query] = nullptr; },
           [](S& s) { s.children[0]->release(s.children[0]); },
           [&](S& s) {
             S* element = s.children[query]->children[0]->children[0];
             element->release(element);
           },
           [&](S& s) { s.children[query]->format = nullptr; },
           [&](S& s) { s.children[query]->children = nullptr; },
           [&](S& s) { s.children[query]->children[0] = nullptr; },
           [&](S& s) { s.children[query]->children[0]->children[0]->format = nullptr; },
           [&](S& s) {
             s.children[query]->metadata = reinterpret_cast<const char*>(negative_length);
           },
           [&](S& s) {
             s.children[query]->metadata = reinterpret_cast<const char*>(negative_count);
           },
       }) {
    ArrowSchema schema = export_schema(fields);
    change(schema);
    bh_binding* none = nullptr;
    bh_error error{};
    EXPECT_EQ(bh_binding_create(layer_.get(), &schema, &none, &error), BH_SCHEMA_MISMATCH);
    EXPECT_EQ(schema.release, nullptr);
    EXPECT_EQ(std::string(error.message).find("column "), 0u) << error.message;
  }
}

TEST_F(Import, RefusesWhatWasReleased) {
  const StepBatch batch = good_batch(config_);
  const Field fields = step_schema(config_, batch);
  const Binding binding = make_binding(layer_.get(), fields);
  ArrowArray array = export_array(step_array(config_, batch));
  array.release(&array);
  StepResult result(config_, batch);
  bh_error error{};
  EXPECT_EQ(bh_step(binding.get(), &array, result.array(), nullptr, &error), BH_INVALID_ARGUMENT);
  EXPECT_STREQ(error.message, "batch was released before");
  EXPECT_EQ(bh_check_rows(binding.get(), &array, 0, &error), BH_INVALID_ARGUMENT);
  const bh_step_part part = {&array, result.array()};
  bh_pending_step* pending = nullptr;
  EXPECT_EQ(bh_step_begin(binding.get(), &part, 1, &pending, &error), BH_INVALID_ARGUMENT);
  ArrowSchema schema = export_schema(fields);
  schema.release(&schema);
  bh_binding* none = nullptr;
  EXPECT_EQ(bh_binding_create(layer_.get(), &schema, &none, &error), BH_INVALID_ARGUMENT);
  EXPECT_STREQ(error.message, "schema was released before");
}

TEST_F(Import, RefusesColumnsOfWhichAnArrayWasReleased) {
  const StepBatch batch = good_batch(config_);
  const Field schema = step_schema(config_, batch);
  const Binding binding = make_binding(layer_.get(), schema);
  const int64_t before = live_c_data();
  for (const Field& column : schema.children) {
    const size_t index = index_of(schema, column.name);
    const bool read =
        std::ranges::any_of(kLists, [&column](const char* name) { return column.name == name; });
    if (!read && column.name != "seq_len") continue;
    for (int level = 0;; ++level) {
      ArrowArray exported = export_array(step_array(config_, batch));
      ArrowArray* array = exported.children[index];
      for (int l = 0; l < level; ++l) array = array->children[0];
      const bool deepest = array->n_children == 0;
      array->release(array);
      StepResult result(config_, batch);
      bh_error error{};
      EXPECT_EQ(bh_step(binding.get(), &exported, result.array(), nullptr, &error),
                BH_INVALID_ARGUMENT);
      EXPECT_EQ(error.message, "column " + column.name + ": an array of it was released before");
      EXPECT_EQ(exported.release, nullptr);
      EXPECT_EQ(live_c_data(), before);
      if (deepest) break;
    }
  }
}

/// Lists of lists, deeper than a stack: no message names them all.
TEST_F(Import, RefusesDeepSchemas) {
  constexpr int kDepth = 1 << 20;
  std::vector<ArrowSchema> lists(kDepth);
  std::vector<ArrowSchema*> children;
  for (ArrowSchema& list : lists) children.push_back(&list);
  for (int i = 0; i < kDepth; ++i) {
    lists[i].format = "+l";
    lists[i].name = "";
    lists[i].n_children = i + 1 < kDepth;
    lists[i].children = children.data() + i + 1;
    lists[i].release = [](ArrowSchema* schema) { schema->release = nullptr; };
  }
  bh_binding* none = nullptr;
  bh_error error{};
  EXPECT_EQ(bh_binding_create(layer_.get(), lists.data(), &none, &error), BH_SCHEMA_MISMATCH);
  EXPECT_STREQ(error.message,
               "column (all): expected a struct of columns, got list<list<list<?>>>");
}

/// Every other row is null, so that the others may overlap: more tokens than a result's offsets can
/// count, in one part or in all of them.
TEST_F(Import, RefusesMoreTokensThanOffsetsCount) {
  constexpr auto kTokens = kInt32Max / 2 + 1;
  config_.rotary_dim = 0;
  layer_ = make_layer(engine_.get(), config_, cache_.get());
  for (const auto& [num_rows, num_parts] : {std::pair{3, 1}, {1, 2}}) {
    StepBatch rows;
    rows.rows.resize(static_cast<size_t>(2 * num_rows));
    const Field schema = step_schema(config_, rows);
    Array array = step_array(config_, rows);
    Array& query = array.children[index_of(schema, "query")];
    for (int64_t row = 0; row < num_rows; ++row) {
      set_offset(query, 2 * row + 1, 0);
      set_offset(query, 2 * row + 2, kTokens);
    }
    query.children[0].offset = 0;
    query.children[0].length = kTokens;
    query.children[0].children[0].length = int64_t{kTokens} * config_.query_width();
    const Binding binding = make_binding(layer_.get(), schema);
    StepResult result(config_, rows);  // says that it holds those of one row
    const int64_t widths[] = {config_.query_width(), config_.num_heads};
    for (int c = 0; c < 2; ++c) {
      ArrowArray* tensors = result.array()->children[c]->children[0];
      tensors->length = kTokens;
      tensors->children[0]->length = kTokens * widths[c];
    }
    std::vector<ArrowArray> exported;
    std::vector<bh_step_part> parts;
    exported.reserve(static_cast<size_t>(num_parts));
    for (int p = 0; p < num_parts; ++p) {
      parts.push_back({&exported.emplace_back(export_array(array)), result.array()});
    }
    bh_error error{};
    EXPECT_EQ(bh_step_parts(binding.get(), parts.data(), num_parts, nullptr, &error),
              BH_INVALID_ARGUMENT);
    const std::string tokens = std::to_string(int64_t{num_rows} * num_parts * kTokens);
    EXPECT_NE(std::string(error.message).find(tokens + " query tokens"), std::string::npos)
        << error.message;
  }
}

/// Tokens times heads of a group are 2^31. The engine is cancelled: the step is planned and touches
/// none of its memory.
TEST_F(Import, PlansMoreQueryRowsThan32BitsCount) {
  constexpr int kTokens = 1 << 17;
  config_.attn_type = BH_ENCODER_ONLY;
  config_.rotary_dim = 0;
  config_.num_heads = 1 << 14;
  config_.num_kv_heads = 1;
  config_.return_lse = false;
  layer_ = make_layer(engine_.get(), config_, nullptr);
  StepBatch batch;
  batch.rows.resize(1);
  const Field schema = step_schema(config_, batch);
  Array array = step_array(config_, batch);
  Array& query = array.children[index_of(schema, "query")];
  set_offset(query, 0, 0);
  set_offset(query, 1, kTokens);
  query.buffers[0].reset();
  query.null_count = 0;
  query.children[0].offset = 0;
  query.children[0].length = kTokens;
  query.children[0].children[0].length = kTokens * config_.query_width();
  const Binding binding = make_binding(layer_.get(), schema);
  StepResult result(config_, batch);
  ArrowArray* output = result.array()->children[0]->children[0];
  output->length = kTokens;
  output->children[0]->length = kTokens * config_.query_width();
  bh_engine_cancel(engine_.get());
  ArrowArray exported = export_array(array);
  bh_error error{};
  EXPECT_EQ(bh_step(binding.get(), &exported, result.array(), nullptr, &error), BH_CANCELLED)
      << error.message;
}

/// Those of encoder layers have their keys in the batch.
TEST_F(Import, RefusesMoreKeysThanPositionsCount) {
  constexpr int kMost = 1 << 30;
  config_.attn_type = BH_ENCODER_ONLY;
  config_.rotary_dim = 0;
  layer_ = make_layer(engine_.get(), config_, nullptr);
  StepBatch batch;
  batch.rows.resize(2);  // the first one's lists are null
  const Field schema = step_schema(config_, batch);
  const Binding binding = make_binding(layer_.get(), schema);
  bh_error error{};
  auto check = [&](int tokens) {
    Array array = step_array(config_, batch);
    for (const char* column : {"key", "value"}) {
      Array& list = array.children[index_of(schema, column)];
      set_offset(list, 1, 0);
      set_offset(list, 2, tokens);
      list.children[0].offset = 0;
      list.children[0].length = tokens;
      list.children[0].children[0].length = tokens * config_.key_width();
    }
    ArrowArray exported = export_array(array);
    return bh_check_rows(binding.get(), &exported, 0, &error);
  };
  EXPECT_EQ(check(kMost), BH_OK) << error.message;
  EXPECT_EQ(check(kMost + 1), BH_INVALID_ROW);
  EXPECT_EQ(error.row, 1);
  EXPECT_STREQ(error.message, "column key: 1073741825 entries, expected at most 1073741824");
}

TEST_F(Import, AcceptsUncountedNullsThatAreNone) {
  const StepBatch batch = good_batch(config_);
  Array array = step_array(config_, batch);
  auto uncount = [](Array& a, bool with_bitmap) {
    a.null_count = -1;
    if (with_bitmap) a.buffers[0] = Bytes(4096, 0xff);
  };
  for (const bool with_bitmap : {false, true}) {
    for (Array& column : array.children) {
      uncount(column, with_bitmap);
      for (Array& child : column.children) {
        uncount(child, with_bitmap);
        for (Array& element : child.children) uncount(element, with_bitmap);
      }
    }
    uncount(array, with_bitmap);
    accept(batch, export_array(array));
  }
}

/// Slices share their children, and what a null row has may be anything.
TEST_F(Import, AcceptsNullsThatNoRowRefersTo) {
  StepBatch batch = good_batch(config_);
  batch.rows.push_back({});  // its lists of tensors are null
  const Field schema = step_schema(config_, batch);
  auto add_null = [](Array& a, int64_t entry) {
    a.null_count = 1;
    a.buffers[0] = Bytes(4096, 0xff);
    (*a.buffers[0])[static_cast<size_t>((a.offset + entry) / 8)] &=
        static_cast<uint8_t>(~(1 << (a.offset + entry) % 8));
  };
  for (const char* column : kLists) {
    SCOPED_TRACE(column);
    Array array = step_array(config_, batch);
    Array& list = array.children[index_of(schema, column)];
    const bool has_null_row = list.null_count > 0;
    if (has_null_row) list.null_count = -1;  // nobody counted
    add_null(list.children[0], has_null_row ? list.children[0].length - 1 : 0);
    accept(batch, export_array(array));
  }
}

/// What Arrow only recommends; processors and compilers take it for granted.
TEST_F(Import, RefusesBuffersThatAreNotAligned) {
  const StepBatch batch = good_batch(config_);
  const Field schema = step_schema(config_, batch);
  const Binding binding = make_binding(layer_.get(), schema);
  auto refuse = [&](const char* column, int level, int width) {
    SCOPED_TRACE(column);
    ArrowArray exported = export_array(step_array(config_, batch));
    ArrowArray* node = exported.children[index_of(schema, column)];
    for (; level > 0; --level) node = node->children[0];
    misalign(node, width / 2);
    bh_error error{};
    EXPECT_EQ(bh_check_rows(binding.get(), &exported, 0, &error), BH_INVALID_ARGUMENT);
    const std::string mention = "multiple of " + std::to_string(width);
    EXPECT_NE(std::string(error.message).find(mention), std::string::npos) << error.message;
  };
  for (const char* column : kTensors) refuse(column, 2, 2);
  for (const char* column : kLists) refuse(column, 0, 4);
  refuse("seq_len", 0, 4);
  refuse("block_table", 1, 4);
  refuse("slot_mapping", 1, 8);
  refuse("position", 1, 4);
}

TEST_F(Import, AcceptsEmptyBuffersAnywhere) {
  const StepBatch batch;
  ArrowArray exported = export_array(step_array(config_, batch));
  exported.offset = 0;
  for (int64_t column = 0; column < exported.n_children; ++column) {
    ArrowArray* node = exported.children[column];
    for (; node; node = node->n_children > 0 ? node->children[0] : nullptr) {
      node->offset = node->length = 0;
      if (node->n_buffers > 1) misalign(node);
    }
  }
  accept(batch, exported);
}

// ---- results ----

TEST_F(Import, RefusesBadResults) {
  const StepBatch batch = good_batch(config_);
  const Binding binding = make_binding(layer_.get(), step_schema(config_, batch));
  auto refuse = [&](const char* name, std::function<void(ArrowArray&)> change,
                    const std::string& mention) {
    SCOPED_TRACE(name);
    StepResult result(config_, batch);
    ArrowArray exported = export_array(step_array(config_, batch));
    change(*result.array());
    bh_error error{};
    EXPECT_EQ(bh_step(binding.get(), &exported, result.array(), nullptr, &error),
              BH_INVALID_ARGUMENT);
    EXPECT_EQ(exported.release, nullptr);
    EXPECT_NE(std::string(error.message).find(mention), std::string::npos) << error.message;
    EXPECT_TRUE(result.untouched());
    const Bytes cached = cache_contents();
    EXPECT_EQ(std::count(cached.begin(), cached.end(), 0), std::ssize(cached));
  };
  using A = ArrowArray;
  // clang-format off
  refuse("no lse", [](A& r) { r.n_children = 1; }, "n_children is 1, expected 2");
  refuse("too few rows", [](A& r) { --r.children[0]->length; }, "output: length is 2, expected at least 3");
  refuse("too few tensors", [](A& r) { --r.children[0]->children[0]->length; }, "number of tensors is 7, expected at least 8");
  refuse("too few elements", [](A& r) { --r.children[0]->children[0]->children[0]->length; }, "number of elements is 1023, expected at least 1024");
  refuse("too few lse elements", [](A& r) { --r.children[1]->children[0]->children[0]->length; }, "number of elements is 31, expected at least 32");
  refuse("a short struct", [](A& r) { --r.length; }, "(result): length is 2, expected at least 3");
  refuse("an offset of the struct", [](A& r) { r.offset = 1; }, "offset");
  refuse("an offset", [](A& r) { r.children[0]->offset = 1; }, "offset");
  refuse("an offset of tensors", [](A& r) { r.children[0]->children[0]->offset = 1; }, "offset");
  refuse("an offset of elements", [](A& r) { r.children[0]->children[0]->children[0]->offset = 1; }, "offset");
  refuse("no values", [](A& r) { r.children[0]->children[0]->children[0]->buffers[1] = nullptr; }, "NULL");
  refuse("no offsets", [](A& r) { r.children[1]->buffers[1] = nullptr; }, "NULL");
  refuse("values at an odd address", [](A& r) { misalign(r.children[0]->children[0]->children[0]); }, "multiple of 2");
  refuse("offsets at an odd address", [](A& r) { misalign(r.children[1]); }, "multiple of 4");
  // clang-format on
}

// ---- schemas ----

struct SchemaCase {
  const char* name;
  std::function<void(Field&)> change;  ///< of the whole schema
  std::vector<std::string> mentions;   ///< empty: accepted
};

void drop(Field& schema, const std::string& column) {
  schema.children.erase(schema.children.begin() +
                        static_cast<std::ptrdiff_t>(index_of(schema, column)));
}

/// The tensor type of a column.
Field& tensor_of(Field& schema, const std::string& column) {
  return schema.child(column).children[0];
}

void set_extension(Field& schema, const std::string& column, const std::string& json) {
  tensor_of(schema, column).metadata[1].second = json;
}

// clang-format off
const std::vector<SchemaCase> kSchemas = {
    {"as it is", [](Field&) {}, {}},
    {"plain fixed-size lists", [](Field& s) { for (auto c : kTensors) tensor_of(s, c).metadata.clear(); }, {}},
    {"identity permutation", [](Field& s) { set_extension(s, "query", R"({"shape":[4,32],"permutation":[0,1]})"); }, {}},
    {"dimension names", [](Field& s) { set_extension(s, "key", R"({ "dim_names" : ["heads", "dims"], "shape" : [2, 32] })"); }, {}},
    {"dimension names that are keys and brackets", [](Field& s) { set_extension(s, "key", R"({"dim_names":["shape","[4]","\"shape\":[["],"shape":[2,32],"permutation":[0,1]})"); }, {}},
    {"int64 positions", [](Field& s) { s.child("position").children[0].format = "l"; }, {}},
    {"other columns", [](Field& s) { s.children.push_back({"end_of_sequence", "b", {}, {}}); }, {}},
    {"no queries", [](Field& s) { drop(s, "query"); }, {}},
    {"no keys and values", [](Field& s) { drop(s, "key"); drop(s, "value"); drop(s, "slot_mapping"); }, {}},
    {"no tensors", [](Field& s) { for (auto c : kTensors) drop(s, c); }, {"column query", "list<tensor[4, 32]>", "no such column"}},
    {"not a struct", [](Field& s) { s.format = "+l"; }, {"struct", "list<"}},
    {"key without value", [](Field& s) { drop(s, "value"); }, {"column value", "no such column"}},
    {"value without key", [](Field& s) { drop(s, "key"); }, {"column key", "no such column"}},
    {"no seq_len", [](Field& s) { drop(s, "seq_len"); }, {"column seq_len", "expected int32", "no such column"}},
    {"no block_table", [](Field& s) { drop(s, "block_table"); }, {"column block_table", "list<int32>", "no such column"}},
    {"no slot_mapping", [](Field& s) { drop(s, "slot_mapping"); }, {"column slot_mapping", "list<int64>", "no such column"}},
    {"no position", [](Field& s) { drop(s, "position"); }, {"column position", "rope", "no such column"}},
    {"a column twice", [](Field& s) { s.children.push_back(s.child("query")); }, {"column query", "twice"}},
    {"a scalar column twice", [](Field& s) { s.children.push_back(s.child("seq_len")); }, {"column seq_len", "twice"}},
    {"large list", [](Field& s) { s.child("query").format = "+L"; }, {"column query", "list<tensor[4, 32]>", "got large_list<fixed_size_list<float16>[128]>"}},
    {"list of float16", [](Field& s) { tensor_of(s, "key").format = "e"; }, {"column key", "list<tensor[2, 32]>", "got list<float16>"}},
    {"wider tensors", [](Field& s) { tensor_of(s, "query").format = "+w:256"; }, {"column query", "tensor[4, 32]", "256"}},
    {"a width with a unit", [](Field& s) { tensor_of(s, "query").format = "+w:128f"; }, {"column query", "tensor[4, 32]", "128f"}},
    {"a width of two numbers", [](Field& s) { tensor_of(s, "query").format = "+w: 128"; }, {"column query", "tensor[4, 32]", " 128"}},
    {"shape of the other heads", [](Field& s) { set_extension(s, "query", R"({"shape":[32,4]})"); }, {"column query", "tensor[4, 32]", "[32,4]"}},
    {"a shape behind a name with a quote", [](Field& s) { set_extension(s, "key", R"({"dim_names":["\"","d"],"shape":[32,2]})"); }, {"column key", "tensor[2, 32]", "[32,2]"}},
    {"shape of one dimension", [](Field& s) { set_extension(s, "query", R"({"shape":[128]})"); }, {"column query", "[128]"}},
    {"a permutation of other dimensions", [](Field& s) { set_extension(s, "value", R"({"shape":[2,32],"permutation":[0,0]})"); }, {"column value", "permut"}},
    {"another shape after a space", [](Field& s) { set_extension(s, "query", R"({ "shape" : [32, 4] })"); }, {"column query", "tensor[4, 32]"}},
    {"permuted", [](Field& s) { set_extension(s, "value", R"({"shape":[2,32],"permutation":[1,0]})"); }, {"column value", "permut"}},
    {"float32", [](Field& s) { tensor_of(s, "query").children[0].format = "f"; }, {"column query", "float16", "got elements of float32"}},
    {"float64", [](Field& s) { tensor_of(s, "value").children[0].format = "g"; }, {"column value", "float16", "got elements of float64"}},
    {"bfloat16", [](Field& s) { tensor_of(s, "key").children[0].format = "S"; s.child("key").metadata = {{"dtype", "bfloat16"}}; }, {"column key", "float16", "got elements of bfloat16"}},
    {"uint16 without metadata", [](Field& s) { tensor_of(s, "key").children[0].format = "S"; }, {"column key", "float16", "got elements of uint16"}},
    {"uint16 of another dtype", [](Field& s) { tensor_of(s, "key").children[0].format = "S"; s.child("key").metadata = {{"dtype", "float8_e5m2"}}; }, {"column key", "got elements of uint16"}},
    {"float16 called so", [](Field& s) { s.child("key").metadata = {{"dtype", "float16"}}; }, {}},
    {"float16 called bfloat16", [](Field& s) { s.child("value").metadata = {{"dtype", "bfloat16"}}; }, {"column value", "got elements of float16 with metadata dtype=bfloat16"}},
    {"float16 of no dtype", [](Field& s) { tensor_of(s, "key").children[0].metadata = {{"dtype", "int4"}}; }, {"column key", "got elements of float16 with metadata dtype=int4"}},
    {"int64 seq_len", [](Field& s) { s.child("seq_len").format = "l"; }, {"column seq_len", "expected int32", "got int64"}},
    {"list of seq_len", [](Field& s) { s.child("seq_len").format = "+l"; }, {"column seq_len", "got list<"}},
    {"int32 slots", [](Field& s) { s.child("slot_mapping").children[0].format = "i"; }, {"column slot_mapping", "list<int64>", "got list<int32>"}},
    {"int64 blocks", [](Field& s) { s.child("block_table").children[0].format = "l"; }, {"column block_table", "list<int32>", "got list<int64>"}},
    {"plain block_table", [](Field& s) { s.child("block_table").format = "i"; }, {"column block_table", "list<int32>", "got int32"}},
    {"float positions", [](Field& s) { s.child("position").children[0].format = "f"; }, {"column position", "list<int32> or list<int64>", "got list<float32>"}},
    {"positions of both formats", [](Field& s) { s.child("position").children[0].format = "il"; }, {"column position", "list<int32> or list<int64>", "'il'"}},
    {"element without format", [](Field& s) { s.child("position").children[0].format = ""; }, {"column position", "list<int32> or list<int64>"}},
    {"list without child", [](Field& s) { s.child("slot_mapping").children.clear(); }, {"column slot_mapping", "list<int64>"}},
    {"tensor list without child", [](Field& s) { s.child("query").children.clear(); }, {"column query", "list<tensor[4, 32]>"}},
    {"tensor without child", [](Field& s) { tensor_of(s, "query").children.clear(); }, {"column query", "list<tensor[4, 32]>"}},
    {"indices of a dictionary", [](Field& s) { s.child("seq_len").dictionary = true; }, {"column seq_len", "expected plain values", "dictionary"}},
    {"list of indices of a dictionary", [](Field& s) { s.child("block_table").children[0].dictionary = true; }, {"column block_table", "expected plain values", "dictionary"}},
    {"tensors of indices of a dictionary", [](Field& s) { tensor_of(s, "query").children[0].dictionary = true; }, {"column query", "expected plain values", "dictionary"}},
    {"tensors of lists", [](Field& s) { tensor_of(s, "query").children[0].children.push_back({"item", "e", {}, {}}); }, {"column query", "expected tensors or numbers", "lists"}},
    {"another column of indices", [](Field& s) { s.children.push_back({"sequence_id", "i", {}, {}, true}); }, {}},
};
// clang-format on

TEST_F(Import, ChecksSchemas) {
  const StepBatch batch = good_batch(config_);
  for (const SchemaCase& c : kSchemas) {
    SCOPED_TRACE(c.name);
    Field schema = step_schema(config_, batch);
    c.change(schema);
    ArrowSchema exported = export_schema(schema);
    bh_binding* binding = nullptr;
    bh_error error{};
    const int32_t status = bh_binding_create(layer_.get(), &exported, &binding, &error);
    const Binding owner(binding);
    EXPECT_EQ(exported.release, nullptr);
    EXPECT_EQ(status, c.mentions.empty() ? BH_OK : BH_SCHEMA_MISMATCH) << error.message;
    for (const std::string& text : c.mentions) {
      EXPECT_NE(std::string(error.message).find(text), std::string::npos)
          << "expected '" << text << "' in: " << error.message;
    }
    if (!c.mentions.empty()) {
      EXPECT_EQ(std::string(error.message).find("column "), 0u) << error.message;
      EXPECT_EQ(error.row, -1);
    }
  }
}

TEST_F(Import, LayersThatWriteNothingNeedNoSlots) {
  config_.read_only_cache = true;
  layer_ = make_layer(engine_.get(), config_, cache_.get());
  Field schema = step_schema(config_, good_batch(config_));
  drop(schema, "slot_mapping");
  make_binding(layer_.get(), schema);
}

/// They have no cache that a batch without queries could update.
TEST_F(Import, EncoderLayersNeedAllTensors) {
  config_.attn_type = BH_ENCODER;
  config_.rotary_dim = 0;
  layer_ = make_layer(engine_.get(), config_, nullptr);
  for (const char* column : kTensors) {
    Field schema = step_schema(config_, good_batch(config_));
    drop(schema, column);
    ArrowSchema exported = export_schema(schema);
    bh_binding* none = nullptr;
    bh_error error{};
    EXPECT_EQ(bh_binding_create(layer_.get(), &exported, &none, &error), BH_SCHEMA_MISMATCH);
    const std::string message = error.message;
    EXPECT_EQ(message.find("column " + std::string(column) + ": expected list<tensor["), 0u)
        << message;
    EXPECT_NE(message.find("got no such column"), std::string::npos) << message;
  }
}

TEST_F(Import, AcceptsBFloat16MetadataOnAnyLevel) {
  config_.dtype = BH_BFLOAT16;
  layer_ = make_layer(engine_.get(), config_, cache_.get());
  const StepBatch batch = good_batch(config_);
  const Field good = step_schema(config_, batch);
  for (const int level : {0, 1, 2}) {
    Field schema = good;
    for (const char* column : kTensors) {
      Field& field = schema.child(column);
      field.metadata.clear();
      Field& at = level == 0   ? field
                  : level == 1 ? field.children[0]
                               : field.children[0].children[0];
      at.metadata.push_back({"dtype", "bfloat16"});
    }
    make_binding(layer_.get(), schema);
  }
}

TEST_F(Import, EncodersNeedKeys) {
  config_.attn_type = BH_ENCODER_ONLY;
  layer_ = make_layer(engine_.get(), config_, nullptr);
  const StepBatch batch = good_batch(config_);
  Field schema = step_schema(config_, batch);
  make_binding(layer_.get(), schema);
  drop(schema, "key");
  drop(schema, "value");
  ArrowSchema exported = export_schema(schema);
  bh_binding* binding = nullptr;
  bh_error error{};
  EXPECT_EQ(bh_binding_create(layer_.get(), &exported, &binding, &error), BH_SCHEMA_MISMATCH);
  EXPECT_NE(std::string(error.message).find("column key"), std::string::npos) << error.message;
}

}  // namespace
}  // namespace broadhead::test
