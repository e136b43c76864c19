// SPDX-License-Identifier: Apache-2.0
// Steps and schemas drawn at random, right ones and ones that were changed at random. What a change
// can say wrongly without a reader noticing is left out: C Data has no sizes of buffers, of arrays
// of pointers and of metadata.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <deque>
#include <functional>
#include <limits>

#include "cases.h"
#include "harness.h"
#include "number_format.h"
#include "random.h"
#include "summary.h"

namespace broadhead::test {
namespace {

constexpr int kBlocks = 12;
constexpr int kMaxPosition = 100;

template <class T>
T any_of(Random& random, const std::vector<T>& values) {
  return values[static_cast<size_t>(random.below(std::ssize(values)))];
}

bool one_in(Random& random, int64_t count) { return random.below(count) == 0; }

/// A layer, and the pool that it uses if any.
struct Setting {
  LayerConfig layer;
  bh_cache_options pool{};

  int64_t num_slots() const { return pool.num_blocks * pool.block_size; }
};

LayerConfig random_layer(Random& random) {
  LayerConfig layer;
  layer.attn_type = any_of<int>(random, {BH_DECODER, BH_DECODER, BH_ENCODER, BH_ENCODER_DECODER});
  layer.dtype = any_of<int>(random, {BH_FLOAT32, BH_FLOAT16, BH_BFLOAT16});
  layer.num_kv_heads = any_of<int>(random, {1, 2});
  layer.num_heads = layer.num_kv_heads * any_of<int>(random, {1, 4, 7});
  layer.head_size = any_of<int>(random, {32, 80, 96, 256});
  layer.scale = any_of<float>(random, {0.125f, 0.0625f, 0, -0.1f});
  layer.sliding_window = any_of<int64_t>(random, {0, 0, 1, 20, 150, int64_t{1} << 40});
  layer.logits_soft_cap = any_of<float>(random, {0, 0, 1, 30});
  layer.output_scale = any_of<float>(random, {0, 0, 0.02f, 1});
  layer.return_lse = one_in(random, 2);
  auto of_heads = [&](std::vector<float>& numbers, const std::vector<float>& values) {
    if (!one_in(random, 3)) return;
    for (int h = 0; h < layer.num_heads; ++h) numbers.push_back(any_of(random, values));
  };
  // Steep slopes over hundreds of keys would take more accuracy than scores of float32 have.
  of_heads(layer.alibi_slopes, {0, 0.02f, -0.001f});
  of_heads(layer.sinks, {0.5f, -3, -HUGE_VALF});
  if (one_in(random, 3)) {
    const auto rotary = 2 + 2 * random.below(layer.head_size / 2);
    layer.set_rope(static_cast<int>(rotary), one_in(random, 2), kMaxPosition);
  }
  return layer;
}

Setting random_setting(Random& random) {
  Setting setting{random_layer(random)};
  LayerConfig& layer = setting.layer;
  if (!layer.uses_cache()) return setting;
  bh_cache_options& pool = setting.pool;
  pool.num_blocks = kBlocks;
  pool.block_size = any_of<int>(random, {16, 16, 48});
  pool.dtype = any_of(random, kEveryCache);
  if (pool.dtype == kAuto) pool.dtype = layer.dtype;
  if (element_bytes(pool.dtype) == 1) {
    layer.k_scale = any_of<float>(random, {1, 0.3f, 0.0171f});
    layer.v_scale = any_of<float>(random, {1, 0.7f, 1.9f});
  }
  layer.read_only_cache = one_in(random, 8);
  return setting;
}

/// A batch without rows.
StepBatch random_columns(Random& random, const LayerConfig& layer) {
  StepBatch batch;
  batch.has_query = !layer.uses_cache() || !one_in(random, 8);
  batch.has_key = !layer.uses_cache() || !batch.has_query || !one_in(random, 8);
  batch.wide_positions = one_in(random, 2);
  return batch;
}

/// Adds rows as a scheduler would never make them: of any lengths, with blocks and slots that
/// repeat. The tables of some begin alike.
void add_rows(Random& random, const Setting& setting, StepBatch& batch) {
  const LayerConfig& layer = setting.layer;
  const int block_size = setting.pool.block_size;
  const int64_t num_rows = random.below(5);
  for (int64_t r = 0; r < num_rows; ++r) {
    StepRow row;
    const int64_t queries = batch.has_query ? any_of<int64_t>(random, {0, 1, 1, 3, 20}) : 0;
    int64_t keys = batch.has_key ? any_of<int64_t>(random, {0, 1, 7, 17}) : 0;
    if (layer.rotary_dim > 0 && queries > 0 && keys > 0) keys = queries;
    if (layer.rotary_dim > 0) {
      for (int64_t i = 0; i < (queries > 0 ? queries : keys); ++i) {
        row.positions.push_back(random.below(kMaxPosition));
      }
    }
    if (layer.uses_cache()) {
      row.seq_len = static_cast<int32_t>(random.below(setting.num_slots()));
      if (layer.attn_type == BH_DECODER && row.seq_len < queries) row.seq_len = 0;
      const int64_t alike = random.below(kBlocks);
      for (int b = 0; b < (row.seq_len + block_size - 1) / block_size; ++b) {
        row.blocks.push_back(b < alike ? b : static_cast<int32_t>(random.below(kBlocks)));
      }
      for (int64_t i = 0; i < keys; ++i) {
        row.slots.push_back(random.below(setting.num_slots() + 8) - 8);  // some are padding
      }
    }
    auto tensors = [&](int64_t count, int heads, int cache_dtype) {
      return layer.rotary_dim > 0 && count > 0
                 ? random_rotary_tensors(random, layer, row.positions, heads, cache_dtype)
                 : random_tensors(random, layer, count, heads);
    };
    row.query = tensors(queries, layer.num_heads, 0);
    row.key = tensors(keys, layer.num_kv_heads, setting.pool.dtype);
    row.value = random_tensors(random, layer, keys, layer.num_kv_heads);
    batch.rows.push_back(std::move(row));
  }
}

StepBatch random_batch(Random& random, const Setting& setting) {
  StepBatch batch = random_columns(random, setting.layer);
  add_rows(random, setting, batch);
  return batch;
}

std::vector<StepBatch> random_parts(Random& random, const Setting& setting) {
  std::vector<StepBatch> parts(static_cast<size_t>(1 + random.below(3)),
                               random_columns(random, setting.layer));
  for (StepBatch& part : parts) add_rows(random, setting, part);
  return parts;
}

/// Writes a number that means something somewhere over one of the data's.
void change_value(Random& random, Bytes& data) {
  static const std::vector<int64_t> kNumbers = {0,
                                                1,
                                                -1,
                                                kBlocks,
                                                kBlocks * 16,
                                                kMaxPosition,
                                                std::numeric_limits<int32_t>::max(),
                                                std::numeric_limits<int32_t>::min(),
                                                std::numeric_limits<int64_t>::max(),
                                                std::numeric_limits<int64_t>::min()};
  const size_t width = any_of<size_t>(random, {4, 8});
  if (data.size() < width) return;
  const auto at = static_cast<size_t>(random.below(std::ssize(data) / int64_t(width))) * width;
  const int64_t number = any_of(random, kNumbers);
  std::memcpy(data.data() + at, &number, width);
}

constexpr auto kMin = std::numeric_limits<int64_t>::min();
constexpr auto kMax = std::numeric_limits<int64_t>::max();

void change_validity(Random& random, Array& node) {
  Bytes validity(2048);
  for (uint8_t& byte : validity) byte = static_cast<uint8_t>(random.next() | random.next());
  if (!node.buffers.empty()) node.buffers[0] = std::move(validity);
  node.null_count = any_of<int64_t>(random, {-1, 1});
}

/// Ways to change a node of a batch so that a reader that trusts it reads or writes where it must
/// not. Lengths and offsets never become what is too much for the buffers alone.
const std::vector<std::function<void(Random&, Array&)>> kChanges = {
    [](Random& r, Array& a) {
      a.length = any_of<int64_t>(r, {kMin, -1, 0, a.length / 2});
    },
    [](Random& r, Array& a) {
      a.offset = any_of<int64_t>(r, {kMin, -1, 0, kMax});
    },
    [](Random& r, Array& a) {
      a.null_count = any_of<int64_t>(r, {kMin, -1, 1, kMax});
    },
    change_validity,
    [](Random&, Array& a) { a.buffers.resize(a.buffers.size() / 2); },
    [](Random&, Array& a) { a.buffers.resize(a.buffers.size() + 1); },
    [](Random&, Array& a) {
      if (!a.buffers.empty()) a.buffers.back().reset();
    },
    [](Random&, Array& a) { a.children.resize(a.children.size() / 2); },
    [](Random&, Array& a) { a.children.resize(a.children.size() + 1); },
};

void change(Random& random, Array& node) {
  if (node.buffers.size() > 1 && node.buffers[1] && one_in(random, 2)) {
    change_value(random, *node.buffers[1]);
  } else {
    any_of(random, kChanges)(random, node);
  }
}

void collect(Array& node, std::vector<Array*>& all) {
  all.push_back(&node);
  for (Array& child : node.children) collect(child, all);
}

/// The same for exported structures.
template <class Node>
void collect(Node& node, std::vector<Node*>& all) {
  all.push_back(&node);
  for (int64_t i = 0; i < node.n_children; ++i) collect(*node.children[i], all);
}

template <class Node>
Node& any_node(Random& random, Node& root) {
  std::vector<Node*> nodes;
  collect(root, nodes);
  return *any_of(random, nodes);
}

Array changed(Random& random, Array batch) {
  if (one_in(random, 8)) ++batch.length;  // more rows than its columns have
  for (int64_t left = 1 + random.below(3); left > 0; --left) {
    change(random, any_node(random, batch));
  }
  return batch;
}

// ---- structures that say what no export would ----

template <class Node>
void drop_child(Random& random, Node& node) {
  if (node.n_children > 0) node.children[random.below(node.n_children)] = nullptr;
}

template <class Node>
void drop_children(Random& random, Node& node) {
  node.children = nullptr;
  if (one_in(random, 2)) node.n_children = kMax;
}

template <class Node>
void lie_about_children(Random& random, Node& node) {
  node.n_children = any_of<int64_t>(random, {kMin, -1, 0, node.n_children / 2});
}

const std::vector<std::function<void(Random&, ArrowArray&)>> kArrayDistortions = {
    drop_child<ArrowArray>,
    drop_children<ArrowArray>,
    lie_about_children<ArrowArray>,
    [](Random& r, ArrowArray& a) {
      a.n_buffers = any_of<int64_t>(r, {kMin, -1, 0, kMax});
    },
    [](Random&, ArrowArray& a) { a.buffers = nullptr; },
    [](Random& r, ArrowArray& a) {
      if (a.n_buffers > 0) a.buffers[r.below(a.n_buffers)] = nullptr;
    },
    [](Random&, ArrowArray& a) {
      a.length = 0;
      a.offset = kMax / 8;
    },
    [](Random&, ArrowArray& a) { a.dictionary = &a; },
};

void distort(Random random, ArrowArray& array) {
  any_of(random, kArrayDistortions)(random, any_node(random, array));
}

/// What changed schemas point to, each text in memory of just its size.
class Texts {
 public:
  const char* add(std::string_view text) {
    return texts_.emplace_back(text.begin(), text.end()).data();
  }
  const char* add_terminated(std::string text) { return add({text.c_str(), text.size() + 1}); }

 private:
  std::deque<std::vector<char>> texts_;
};

std::string random_format(Random& random, const std::string& format) {
  static const std::vector<std::string> kFormats = {
      "",     "n",       "b",     "i",    "l",    "e",         "f",     "S",    "g",
      "z",    "U",       "vu",    "+",    "+l",   "+L",        "+vl",   "+s",   "+m",
      "+r",   "+w:",     "+w:-1", "+w:x", "+ud:", "+us:0,1",   "d:",    "d:38", "d:9,2,256",
      "w:16", "tsu:UTC", "tdD",   "tiM",  "\xff", "%s%n%999d", "+w:1e2"};
  switch (random.below(5)) {
    case 0:
      return format.substr(0, static_cast<size_t>(random.below(std::ssize(format) + 1)));
    case 1:
      return format + any_of<std::string>(random, {"l", "0", " ", "99999999999999999999"});
    case 2:
      return any_of(random, kFormats) + std::string(100000, 'w');
    default:
      return any_of(random, kFormats);
  }
}

/// The bytes of metadata. It never measures or counts more than there is: that no reader can tell.
std::string random_metadata(Random& random) {
  // clang-format off
  static const std::vector<std::string> kPieces = {
      "{", "}", "[", "]", "[[", "\"", "\\", ":", ",", " ", "", "\"shape\":", "\"permutation\":", "[2,32]",
      "0", "1", "-1", "32", "1e400", "99999999999999999999", "nul"};
  // clang-format on
  std::string bytes;
  auto add_int = [&](int64_t value) {
    if (one_in(random, 16)) value = any_of<int64_t>(random, {-1, INT32_MIN});
    const auto narrow = static_cast<int32_t>(value);
    bytes.append(reinterpret_cast<const char*>(&narrow), sizeof narrow);
  };
  auto add_text = [&](const std::string& text) {
    add_int(std::ssize(text));
    bytes += text;
  };
  const int64_t count = random.below(4);
  add_int(count - random.below(count + 1) / 2);
  for (int64_t i = 0; i < count; ++i) {
    add_text(any_of<std::string>(random, {"ARROW:extension:metadata", "dtype", "", "other"}));
    std::string value;
    for (int64_t left = random.below(12); left > 0; --left) value += any_of(random, kPieces);
    add_text(one_in(random, 4) ? "bfloat16" : value);
  }
  return bytes;
}

const std::vector<std::function<void(Random&, Texts&, ArrowSchema&)>> kSchemaDistortions = {
    [](Random& r, Texts& t, ArrowSchema& s) {
      s.format = t.add_terminated(random_format(r, s.format));
    },
    [](Random& r, Texts& t, ArrowSchema& s) { s.metadata = t.add(random_metadata(r)); },
    [](Random& r, Texts& t, ArrowSchema& s) {
      s.name = t.add_terminated(any_of<std::string>(
          r, {"query", "value", "seq_len", "position", "", std::string(100000, 'n')}));
    },
    [](Random&, Texts&, ArrowSchema& s) { s.name = nullptr; },
    [](Random&, Texts&, ArrowSchema& s) { s.format = nullptr; },
    [](Random& r, Texts&, ArrowSchema& s) { s.flags = static_cast<int64_t>(r.next()); },
    [](Random&, Texts&, ArrowSchema& s) { s.dictionary = &s; },
    [](Random& r, Texts&, ArrowSchema& s) { drop_child(r, s); },
    [](Random& r, Texts&, ArrowSchema& s) { drop_children(r, s); },
    [](Random& r, Texts&, ArrowSchema& s) {
      if (s.n_children == 0) return;
      ArrowSchema* child = s.children[r.below(s.n_children)];
      child->release(child);
    },
    [](Random& r, Texts&, ArrowSchema& s) { lie_about_children(r, s); },
    [](Random& r, Texts&, ArrowSchema& s) {
      if (s.n_children > 0) s.children[r.below(s.n_children)] = s.children[0];
    },
};

class Fuzz : public TargetTest {
 protected:
  /// A layer of its own for each seed, until one fails.
  void for_each_seed(const std::function<void(Random&, const Setting&, Session&)>& body) {
    for (int seed = 0; seed < options().seeds; ++seed) {
      SCOPED_TRACE("seed " + std::to_string(seed));
      Random random(static_cast<uint64_t>(seed));
      const Setting setting = random_setting(random);
      Session session(GetParam(), 2, setting.layer, setting.pool);
      BH_SKIP_IF_UNUSABLE(session, GetParam());
      body(random, setting, session);
      if (HasFailure()) return;
    }
  }
};

TEST_P(Fuzz, StepsMatchTheReference) {
  for_each_seed([](Random& random, const Setting& setting, Session& session) {
    session.fill_cache(random);
    for (int step = 0; step < 2; ++step) session.step_parts(random_parts(random, setting));
    record("fuzz", GetParam(), session.worst());
  });
}

TEST_P(Fuzz, ChangedStepsAreRefusedOrDone) {
  int refused = 0;
  for_each_seed([&](Random& random, const Setting& setting, Session& session) {
    const LayerConfig& layer = setting.layer;
    const StepBatch batch = random_batch(random, setting);
    const Binding binding = make_binding(session.layer(), step_schema(layer, batch));
    for (int change = 0; change < 8; ++change) {
      const Array array = changed(random, step_array(layer, batch));
      StepResult result(layer, batch);
      ArrowArray checked = export_array(array), stepped = export_array(array);
      if (one_in(random, 3)) {
        const Random distortion(random.next());
        distort(distortion, checked);
        distort(distortion, stepped);
      }
      if (one_in(random, 8)) distort(Random(random.next()), *result.array());
      bh_error expected{}, error{};
      const int32_t check = bh_check_rows(binding.get(), &checked, 0, &expected);
      // By itself, or after a batch that is right.
      const int64_t rows_before = one_in(random, 2) ? std::ssize(batch.rows) : 0;
      StepResult right_result(layer, batch);
      ArrowArray right = export_array(step_array(layer, batch));
      std::vector<bh_step_part> parts = {{&stepped, result.array()}};
      if (rows_before > 0) parts.insert(parts.begin(), {&right, right_result.array()});
      const int32_t status =
          bh_step_parts(binding.get(), parts.data(), std::ssize(parts), nullptr, &error);
      EXPECT_EQ(right.release == nullptr, rows_before > 0);
      if (right.release) right.release(&right);
      EXPECT_EQ(checked.release, nullptr);
      EXPECT_EQ(stepped.release, nullptr);
      EXPECT_TRUE(result.guards_intact());
      EXPECT_TRUE(right_result.guards_intact());
      if (status == BH_OK) {
        EXPECT_EQ(check, BH_OK) << expected.message;
        if (session.mirror()) write_cache(session.cache(), *session.mirror());
        continue;
      }
      ++refused;
      EXPECT_TRUE(result.untouched());
      EXPECT_TRUE(right_result.untouched());
      if (session.mirror()) compare_cache(layer, session.cache(), *session.mirror());
      EXPECT_TRUE(status == BH_INVALID_ARGUMENT || status == BH_SCHEMA_MISMATCH ||
                  status == BH_INVALID_ROW)
          << status;
      EXPECT_STRNE(error.message, "");
      // Only the step knows how much its result holds.
      if (check != BH_OK) {
        EXPECT_EQ(check, status);
        EXPECT_EQ(expected.row < 0 ? expected.row : rows_before + expected.row, error.row);
        EXPECT_STREQ(expected.message, error.message);
      }
    }
    session.fill_cache(random);
    session.step(batch);  // as well as ever
  });
  if (!IsSkipped()) {
    EXPECT_GT(refused, options().seeds);
  }
}

TEST_P(Fuzz, ChangedSchemasAreRefusedOrBound) {
  int refused = 0;
  for_each_seed([&](Random& random, const Setting& setting, Session& session) {
    const LayerConfig& layer = setting.layer;
    const StepBatch batch = random_batch(random, setting);
    for (int change = 0; change < 16; ++change) {
      Texts texts;
      ArrowSchema schema = export_schema(step_schema(layer, batch));
      any_of(random, kSchemaDistortions)(random, texts, any_node(random, schema));
      bh_binding* binding = nullptr;
      bh_error error{};
      const int32_t status = bh_binding_create(session.layer(), &schema, &binding, &error);
      const Binding owner(binding);
      EXPECT_EQ(schema.release, nullptr);
      EXPECT_EQ(binding != nullptr, status == BH_OK);
      if (status == BH_OK) continue;
      ++refused;
      EXPECT_EQ(status, BH_SCHEMA_MISMATCH);
      EXPECT_EQ(error.row, -1);
      const std::string message = error.message;
      EXPECT_EQ(message.find("column "), 0u) << message;
      EXPECT_LT(message.find("expected "), message.find(", got ")) << message;
      EXPECT_NE(message.find(", got "), std::string::npos) << message;
    }
    session.fill_cache(random);
    session.step(batch);  // as well as ever
  });
  if (!IsSkipped()) {
    EXPECT_GT(refused, options().seeds);
  }
}

BH_ON_EVERY_TARGET(Fuzz);

}  // namespace
}  // namespace broadhead::test
