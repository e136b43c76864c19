// SPDX-License-Identifier: Apache-2.0
// What must hold between runs: results do not depend on chunking, threads or repetition, stored
// values are correctly rounded, NaN stays where it belongs.
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <thread>

#include "cases.h"
#include "harness.h"
#include "number_format.h"
#include "random.h"
#include "summary.h"

namespace broadhead::test {
namespace {

bh_cache_options pool_of(int64_t num_blocks, int block_size, int dtype) {
  bh_cache_options pool{};
  pool.num_blocks = num_blocks;
  pool.block_size = block_size;
  pool.dtype = dtype;
  return pool;
}

/// A prompt of one sequence, and steps over parts of it.
class Prompt {
 public:
  Prompt(const LayerConfig& layer, int length, int block_size, int cache_dtype)
      : layer_(layer), block_size_(block_size) {
    Random random("prompt");
    const int blocks = (length + block_size - 1) / block_size;
    for (const int64_t block : random.sample(blocks, blocks + 1)) {
      blocks_.push_back(static_cast<int32_t>(block));
    }
    if (layer.rotary_dim > 0) {
      for (int p = 0; p < length; ++p) positions_.push_back(p);
      query_ = random_rotary_tensors(random, layer, positions_, layer.num_heads, 0);
      key_ = random_rotary_tensors(random, layer, positions_, layer.num_kv_heads, cache_dtype);
    } else {
      query_ = random_tensors(random, layer, length, layer.num_heads);
      key_ = random_tensors(random, layer, length, layer.num_kv_heads);
    }
    value_ = random_tensors(random, layer, length, layer.num_kv_heads);
  }

  int64_t num_blocks() const { return static_cast<int64_t>(blocks_.size()) + 1; }
  std::vector<float>& query() { return query_; }
  std::vector<float>& key() { return key_; }
  std::vector<float>& value() { return value_; }

  /// Tokens first .. end - 1 as one row.
  StepRow row(int first, int end) const {
    StepRow row;
    auto part = [&](const std::vector<float>& all, int64_t width) {
      return std::vector<float>(all.begin() + first * width, all.begin() + end * width);
    };
    row.query = part(query_, layer_.query_width());
    row.key = part(key_, layer_.key_width());
    row.value = part(value_, layer_.key_width());
    row.seq_len = end;
    row.blocks = blocks_;
    for (int token = first; token < end; ++token) {
      row.slots.push_back(int64_t{blocks_[static_cast<size_t>(token / block_size_)]} * block_size_ +
                          token % block_size_);
      if (layer_.rotary_dim > 0) row.positions.push_back(token);
    }
    return row;
  }

 private:
  LayerConfig layer_;
  int block_size_;
  std::vector<int32_t> blocks_;
  std::vector<int64_t> positions_;
  std::vector<float> query_, key_, value_;
};

/// Elements of a result as the layer's dtype holds them.
std::vector<double> outputs(const LayerConfig& layer, const StepResult& result, int64_t tokens) {
  std::vector<double> all;
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t i = 0; i < layer.query_width(); ++i) all.push_back(result.output(t, i));
  }
  return all;
}

/// Elements and what their weights' rounding may have changed in them.
struct Elements {
  std::vector<double> values;
  std::vector<double> weight_errors;

  void append(const std::vector<double>& more, const std::vector<double>& errors) {
    values.insert(values.end(), more.begin(), more.end());
    weight_errors.insert(weight_errors.end(), errors.begin(), errors.end());
  }
};

/// Largest difference in units of one rounding: a step between neighbours of the dtype, where both
/// results rounded the same sums to different sides, and the arithmetic error of both.
double compare_outputs(const LayerConfig& layer, const Elements& a, const Elements& b) {
  double largest = 1;
  for (const double x : a.values) largest = std::max(largest, std::fabs(x));
  double worst = a.values.size() == b.values.size() ? 0 : HUGE_VAL;
  for (size_t i = 0; i < std::min(a.values.size(), b.values.size()); ++i) {
    const double x = a.values[i], y = b.values[i];
    const double rounding =
        2 * rounding_error(layer.output_dtype(), std::max(std::fabs(x), std::fabs(y)));
    const double arithmetic = 2 * kFloat32Error * largest + a.weight_errors[i] + b.weight_errors[i];
    const double ratio = std::fabs(x - y) / (rounding + arithmetic);
    worst = std::isnan(ratio) ? HUGE_VAL : std::max(worst, ratio);
  }
  return worst;
}

// ---- chunking ----

struct ChunkingCase {
  std::string name;
  int window = 0;
  float soft_cap = 0;
  bool alibi = false;
  bool sinks = false;
  int rotary_dim = 0;
  int length = 100;
};

const std::vector<ChunkingCase> kChunkingCases = {
    {.name = "plain"},
    {.name = "window", .window = 20},
    {.name = "soft_cap", .soft_cap = 20},
    {.name = "alibi_window", .window = 33, .alibi = true},
    {.name = "sinks", .sinks = true},
    {.name = "rope", .rotary_dim = 64},
    {.name = "partial_rope_window_sinks", .window = 17, .sinks = true, .rotary_dim = 20},
    {.name = "long", .length = 400},
};

const std::vector<std::vector<int>> kChunkings = {
    {7}, {16}, {1, 33, 5, 64}, {64, 1, 1, 1}, {99, 1}};

class Chunking : public TargetTest {};

/// The same prompt in chunks: the sizes are taken in turns until it is done.
Elements run_in_chunks(Session& session, const Prompt& prompt, int length,
                       const std::vector<int>& sizes) {
  const LayerConfig& layer = session.config();
  Elements all;
  size_t turn = 0;
  for (int first = 0; first < length;) {
    const int end = std::min(length, first + sizes[turn++ % sizes.size()]);
    const auto result = session.step({{prompt.row(first, end)}});
    all.append(outputs(layer, *result, end - first), session.weight_errors());
    first = end;
  }
  return all;
}

TEST_P(Chunking, DoesNotChangeResults) {
  for (const ChunkingCase& c : kChunkingCases) {
    for (const int dtype : kTensorDtypes) {
      for (const int cache : kAutoAndFp8) {
        const int cache_dtype = cache == kAuto ? dtype : cache;
        SCOPED_TRACE(c.name + " " + dtype_label(dtype) + " " + dtype_label(cache_dtype));
        LayerConfig layer;
        layer.num_heads = 4;
        layer.dtype = dtype;
        layer.sliding_window = c.window;
        layer.logits_soft_cap = c.soft_cap;
        if (c.alibi) layer.alibi_slopes = {0.5f, -0.25f, 0.125f, 0.01f};
        if (c.sinks) layer.sinks = {1, -2, 0.5f, 3};
        if (c.rotary_dim > 0) layer.set_rope(c.rotary_dim, true, c.length);
        if (element_bytes(cache_dtype) == 1) layer.k_scale = layer.v_scale = 0.731f;
        const Prompt prompt(layer, c.length, 16, cache_dtype);
        const bh_cache_options pool = pool_of(prompt.num_blocks(), 16, cache_dtype);
        auto run = [&](const std::vector<int>& sizes) {
          Session session(GetParam(), 2, layer, pool);
          return session.engine() ? run_in_chunks(session, prompt, c.length, sizes) : Elements();
        };
        const Elements whole = run({c.length});
        if (whole.values.empty()) GTEST_SKIP() << GetParam().label() << " is not usable";
        for (const std::vector<int>& sizes : kChunkings) {
          const double worst = compare_outputs(layer, whole, run(sizes));
          EXPECT_LE(worst, 1) << "chunks of " << testing::PrintToString(sizes);
          record("chunking", GetParam(), worst);
        }
      }
    }
  }
}

BH_ON_EVERY_TARGET(Chunking);

// ---- threads ----

class Threads : public TargetTest {};

/// A batch with a long decode row, a prefill row and a short one.
StepBatch threads_batch(const Prompt& prompt, int length) {
  StepBatch batch;
  batch.rows = {prompt.row(length - 1, length), prompt.row(100, 300), prompt.row(0, 3)};
  return batch;
}

TEST_P(Threads, AgreeAndAreDeterministic) {
  constexpr int kLength = 3000;
  for (const int dtype : kTensorDtypes) {
    LayerConfig layer;
    layer.dtype = dtype;
    layer.head_size = 32;
    layer.sinks.assign(8, 0.5f);
    const Prompt prompt(layer, kLength, 16, dtype);
    Elements with_one;
    for (const int threads : {1, 2, 3, 7, 16}) {
      SCOPED_TRACE(dtype_label(dtype) + ", threads " + std::to_string(threads));
      Session session(GetParam(), threads, layer, pool_of(prompt.num_blocks(), 16, dtype));
      BH_SKIP_IF_UNUSABLE(session, GetParam());
      StepBatch fill;
      fill.rows = {prompt.row(0, kLength)};
      fill.rows[0].query.clear();
      session.step(fill);
      const StepBatch batch = threads_batch(prompt, kLength);
      const auto first = session.step(batch);
      Elements got;
      got.append(outputs(layer, *first, batch.num_queries(layer)), session.weight_errors());
      if (with_one.values.empty()) with_one = got;
      const double worst = compare_outputs(layer, with_one, got);
      EXPECT_LE(worst, 1);
      record("threads", GetParam(), worst);
      for (int again = 0; again < 5; ++again) {
        StepResult result(layer, batch);
        bh_error error{};
        ASSERT_EQ(run_step(session.layer(), layer, batch, result, error), BH_OK) << error.message;
        EXPECT_EQ(result.output_bytes(), first->output_bytes()) << "run " << again;
      }
    }
  }
}

BH_ON_EVERY_TARGET(Threads);

/// Layers of one engine and of several engines may be used from different threads at once.
TEST_P(Threads, MayUseDifferentLayersAtOnce) {
  constexpr int kLength = 400;
  LayerConfig layer;
  const Prompt prompt(layer, kLength, 16, BH_FLOAT32);
  std::vector<std::unique_ptr<Session>> sessions;
  for (int i = 0; i < 4; ++i) {
    sessions.push_back(std::make_unique<Session>(GetParam(), 1 + i, layer,
                                                 pool_of(prompt.num_blocks(), 16, BH_FLOAT32)));
    BH_SKIP_IF_UNUSABLE(*sessions.back(), GetParam());
  }
  std::vector<std::thread> threads;
  for (const auto& session : sessions) {
    threads.emplace_back([&session, &prompt] {
      session->step({{prompt.row(0, kLength - 20)}});
      for (int t = kLength - 20; t < kLength; ++t) session->step({{prompt.row(t, t + 1)}});
    });
  }
  for (std::thread& thread : threads) thread.join();
}

// ---- what is read ----

/// The last tokens of the first `length`.
struct Ending {
  int tokens;
  int length;
};

/// Rows of queries whose keys the cache has.
StepBatch queries_of(const Prompt& prompt, const std::vector<Ending>& endings) {
  StepBatch batch;
  batch.has_key = false;
  for (const auto& [tokens, length] : endings) {
    batch.rows.push_back(prompt.row(length - tokens, length));
    batch.rows.back().key.clear();
  }
  return batch;
}

class KeysRead : public TargetTest {};

bh_step_stats stats_of(Session& session, const StepBatch& batch) {
  StepResult result(session.config(), batch);
  bh_step_stats stats{};
  bh_error error{};
  EXPECT_EQ(run_step(session.layer(), session.config(), batch, result, error, &stats), BH_OK)
      << error.message;
  return stats;
}

/// Tiles outside a window are skipped, not masked.
TEST_P(KeysRead, StayInsideTheWindow) {
  LayerConfig layer;
  layer.sliding_window = 40;
  constexpr int kLength = 1000;
  const Prompt prompt(layer, kLength, 16, BH_FLOAT32);
  Session session(GetParam(), 2, layer, pool_of(prompt.num_blocks(), 16, BH_FLOAT32));
  BH_SKIP_IF_UNUSABLE(session, GetParam());
  const bh_step_stats decode = stats_of(session, {{prompt.row(kLength - 1, kLength)}});
  EXPECT_EQ(decode.keys_seen, 40);
  EXPECT_LE(decode.keys_read, 40 + 2 * 15);
  const bh_step_stats prefill = stats_of(session, {{prompt.row(800, kLength)}});
  EXPECT_EQ(prefill.keys_seen, 200 * 40);
  EXPECT_LT(prefill.keys_read, prefill.keys_seen / 2) << "tokens share what they read";
}

/// Rows whose tables begin alike read the common prefix once.
TEST_P(KeysRead, ShareAPrefix) {
  LayerConfig layer;
  constexpr int kLength = 800;
  const Prompt prompt(layer, kLength, 16, BH_FLOAT32);
  Session session(GetParam(), 2, layer, pool_of(prompt.num_blocks(), 16, BH_FLOAT32));
  BH_SKIP_IF_UNUSABLE(session, GetParam());
  std::vector<Ending> endings;
  for (int i = 0; i < 8; ++i) endings.push_back({1, kLength - i});
  const bh_step_stats stats = stats_of(session, queries_of(prompt, endings));
  EXPECT_EQ(stats.keys_seen, 8 * kLength - 28);
  EXPECT_LT(stats.keys_read, stats.keys_seen / 4);
}

BH_ON_EVERY_TARGET(KeysRead);

// ---- shared prefixes ----

class SharedPrefix : public TargetTest {};

/// Block tables may name more blocks than are used yet, and alike ones.
TEST_P(SharedPrefix, EndsWhereAnyOfItsTokensSeesNoMore) {
  constexpr int kLength = 802;
  for (const int dtype : {BH_FLOAT32, BH_FLOAT16}) {
    LayerConfig layer;
    layer.dtype = dtype;
    const Prompt prompt(layer, kLength, 16, dtype);
    Session session(GetParam(), 2, layer, pool_of(prompt.num_blocks(), 16, dtype));
    BH_SKIP_IF_UNUSABLE(session, GetParam());
    Random random("shared prefix");
    session.fill_cache(random);
    for (const std::vector<Ending>& endings : std::vector<std::vector<Ending>>{
             {{1, 800}, {1, 799}, {1, 793}}, {{1, 799}, {1, 800}}, {{2, 802}, {4, 802}}}) {
      session.step(queries_of(prompt, endings));
    }
    record("shared_prefix", GetParam(), session.worst());
  }
}

BH_ON_EVERY_TARGET(SharedPrefix);

// ---- steps that come again ----

class Replayed : public TargetTest {};

/// GPUs record a decode step whose shape comes again, and replay it. Of these the numbers of tokens
/// are the same, but not those of rows, or of pieces.
TEST_P(Replayed, StepsAreOfTheirShape) {
  LayerConfig layer;
  layer.dtype = BH_FLOAT16;
  const Prompt prompt(layer, 800, 16, BH_FLOAT16);
  Session session(GetParam(), 2, layer, pool_of(prompt.num_blocks(), 16, BH_FLOAT16));
  BH_SKIP_IF_UNUSABLE(session, GetParam());
  Random random("replayed");
  session.fill_cache(random);
  for (const std::vector<Ending>& endings :
       std::vector<std::vector<Ending>>{{{2, 240}, {2, 240}},
                                        {{1, 240}, {3, 240}},
                                        {{1, 20}, {1, 20}, {1, 20}, {1, 20}},
                                        {{1, 20}, {1, 20}, {1, 20}, {1, 300}},
                                        {{1, 20}, {1, 20}, {1, 20}, {1, 640}},
                                        {{1, 20}, {1, 20}, {1, 20}, {1, 800}},
                                        {{4, 800}}}) {
    StepBatch batch = queries_of(prompt, endings);
    for (size_t r = 0; r < batch.rows.size(); ++r) {
      std::vector<int32_t>& blocks = batch.rows[r].blocks;
      std::rotate(blocks.begin(), blocks.begin() + static_cast<std::ptrdiff_t>(r) + 1,
                  blocks.end());
    }
    for (int again = 0; again < 3; ++again) session.step(batch);
  }
  record("replayed", GetParam(), session.worst());
}

BH_ON_EVERY_TARGET(Replayed);

// ---- rounding of stored values ----

class StoredValues : public TargetTest {};

/// Each number of the cache's dtype, the points half way to the next one, and their neighbours,
/// multiplied by `scale`: where rounding is hardest.
std::vector<float> hard_values(int dtype, float scale) {
  std::vector<float> values = {
      0.0f, -0.0f, 65504, 65519, 65520, 65536, 448, 449, 464, 465, 480, 57344, 61439, 61440, 65535,
      1e30f, 3.3e38f, 1e-40f, 1e-45f,
      // fp8 of this by 0.08965013 differs if it is rounded to float16 first
      -1.2099609375f, HUGE_VALF, -HUGE_VALF, NAN};
  const uint32_t codes = 1u << (8 * element_bytes(dtype) - 1);
  for (uint32_t code = 0; code < codes; ++code) {
    const double at = decode(dtype, code);
    const double next = decode(dtype, code + 1);
    if (!std::isfinite(at)) break;
    const double middle = std::isfinite(next) ? (at + next) / 2 : at * 1.01;
    for (const double x : {at, middle}) {
      const float value = static_cast<float>(x * double{scale});
      for (const float v : {value, std::nextafter(value, 0.0f), std::nextafter(value, HUGE_VALF)}) {
        values.push_back(code % 2 ? -v : v);
      }
    }
  }
  return values;
}

TEST_P(StoredValues, AreRoundedOnce) {
  constexpr int kBlockSize = 64;
  for (const int dtype : kTensorDtypes) {
    for (const int cache_dtype : kEveryCache) {
      for (const float scale : {1.0f, 0.08965013f, 3.3f}) {
        const bool fp8 = cache_dtype != kAuto && element_bytes(cache_dtype) == 1;
        if (cache_dtype == BH_FLOAT32 || cache_dtype == dtype || (scale != 1 && !fp8)) continue;
        const int stored = cache_dtype == kAuto ? dtype : cache_dtype;
        SCOPED_TRACE(dtype_label(dtype) + " to " + dtype_label(stored) + ", scale " +
                     std::to_string(scale));
        LayerConfig layer;
        layer.dtype = dtype;
        layer.num_heads = layer.num_kv_heads = 4;
        layer.head_size = 256;
        layer.k_scale = layer.v_scale = scale;
        StepBatch batch;
        batch.has_query = false;
        StepRow row;
        for (const float value : hard_values(stored == BH_FLOAT32 ? BH_FLOAT16 : stored, scale)) {
          row.key.push_back(static_cast<float>(rounded(dtype, double{value})));
        }
        const int64_t width = layer.key_width();
        const int64_t tokens = (static_cast<int64_t>(row.key.size()) + width - 1) / width;
        row.key.resize(static_cast<size_t>(tokens * width));
        row.value.assign(row.key.rbegin(), row.key.rend());
        for (int64_t t = 0; t < tokens; ++t) row.slots.push_back(t);
        batch.rows = {row};
        // The session compares every stored bit.
        Session session(GetParam(), 2, layer,
                        pool_of((tokens + kBlockSize - 1) / kBlockSize, kBlockSize, stored));
        BH_SKIP_IF_UNUSABLE(session, GetParam());
        session.step(batch);
        record("stored_values", GetParam(), session.worst());
      }
    }
  }
}

TEST_P(StoredValues, Fp8DoesNotRoundTwice) {
  LayerConfig layer;
  layer.dtype = BH_FLOAT16;
  layer.num_heads = layer.num_kv_heads = 1;
  layer.head_size = 32;
  layer.k_scale = layer.v_scale = 0.08965013f;
  StepBatch batch;
  batch.has_query = false;
  StepRow row;
  row.key.assign(32, -1.2099609375f);
  row.value = row.key;
  row.slots = {0};
  batch.rows = {row};
  Session session(GetParam(), 1, layer, pool_of(1, 16, BH_FLOAT8_E4M3FN));
  BH_SKIP_IF_UNUSABLE(session, GetParam());
  session.step(batch);
  Bytes keys(16 * 32), values(16 * 32);
  bh_error error{};
  ASSERT_EQ(bh_cache_read_block(session.cache(), 0, keys.data(), values.data(), &error), BH_OK);
  EXPECT_EQ(keys[0], 0xd5);
  EXPECT_EQ(values[31], 0xd5);
}

/// Also one that is infinite where its upper bits alone are kept.
TEST_P(StoredValues, StayNaNWhateverItsPayload) {
  constexpr int kTokens = 3;
  for (const int dtype : kTensorDtypes) {
    for (const int cache_dtype : kEveryCache) {
      if (cache_dtype == kAuto || element_bytes(cache_dtype) > element_bytes(dtype)) continue;
      SCOPED_TRACE(dtype_label(dtype) + " to " + dtype_label(cache_dtype));
      LayerConfig layer;
      layer.dtype = dtype;
      Session session(GetParam(), 2, layer, pool_of(1, 16, cache_dtype));
      BH_SKIP_IF_UNUSABLE(session, GetParam());
      StepRow row;
      row.key.assign(static_cast<size_t>(kTokens * layer.key_width()), 1);
      row.value = row.key;
      row.slots = {0, 1, 2};
      StepBatch batch = {{row}};
      batch.has_query = false;
      const Binding binding = make_binding(session.layer(), step_schema(layer, batch));
      ArrowArray array = export_array(step_array(layer, batch));
      const int bits = 8 * element_bytes(dtype);
      const uint32_t infinity = encode(dtype, HUGE_VAL);
      const int payload = std::countr_zero(infinity);
      for (const int column : {1, 2}) {
        const ArrowArray* tensors = array.children[column]->children[0];
        const ArrowArray* elements = tensors->children[0];
        const int64_t first =
            elements->offset + (tensors->offset + kFirstListOffset) * layer.key_width();
        auto* to = static_cast<uint8_t*>(const_cast<void*>(elements->buffers[1]));
        for (int64_t i = 0; i < kTokens * layer.key_width(); i += 3) {
          const uint32_t sign = static_cast<uint32_t>(i / 3 % 2) << (bits - 1);
          store_bits(dtype, to, first + i, sign | infinity | 1u << i / 3 % payload);
        }
      }
      StepResult result(layer, batch);
      bh_error error{};
      ASSERT_EQ(bh_step(binding.get(), &array, result.array(), nullptr, &error), BH_OK)
          << error.message;
      Bytes keys(static_cast<size_t>(16 * layer.key_width() * element_bytes(cache_dtype)));
      Bytes values = keys;
      ASSERT_EQ(bh_cache_read_block(session.cache(), 0, keys.data(), values.data(), &error), BH_OK);
      for (const Bytes* stored : {&keys, &values}) {
        for (int64_t i = 0; i < kTokens * layer.key_width(); ++i) {
          const double got = decode(cache_dtype, load_bits(cache_dtype, stored->data(), i));
          ASSERT_TRUE(i % 3 == 0 ? std::isnan(got) : got == 1) << "element " << i << ": " << got;
        }
      }
    }
  }
}

/// From 1 MiB on, CPUs write whole tiles past their caches.
TEST_P(StoredValues, OfLargePromptsAreComplete) {
  LayerConfig layer;
  layer.dtype = BH_FLOAT16;
  layer.num_heads = layer.num_kv_heads = 8;
  layer.head_size = 128;
  for (const int cache_dtype : kEveryCache) {
    if (cache_dtype == kAuto) continue;
    SCOPED_TRACE(dtype_label(cache_dtype));
    const auto token_bytes = static_cast<int>(2 * layer.key_width() * element_bytes(cache_dtype));
    const int length = (1 << 20) / token_bytes + 30;
    Prompt prompt(layer, length, 16, cache_dtype);
    Session session(GetParam(), 2, layer, pool_of(prompt.num_blocks(), 16, cache_dtype));
    BH_SKIP_IF_UNUSABLE(session, GetParam());
    session.step({{prompt.row(0, 5)}});
    StepBatch most = {{prompt.row(5, length - 1)}};
    most.has_query = false;
    most.rows[0].query.clear();
    session.step(most);
    session.step({{prompt.row(length - 1, length)}});
  }
}

BH_ON_EVERY_TARGET(StoredValues);

// ---- results that fill a bus ----

class LargeResults : public TargetTest {};

/// From 4 MiB on a GPU's kernels write to its own memory first, and a copy engine transfers them.
TEST_P(LargeResults, AreWhole) {
  LayerConfig layer;
  layer.dtype = BH_FLOAT16;
  layer.num_heads = 256;
  layer.num_kv_heads = 32;
  layer.head_size = 256;
  const Prompt prompt(layer, 80, 16, BH_FLOAT16);
  Session session(GetParam(), 2, layer, pool_of(prompt.num_blocks(), 16, BH_FLOAT16));
  BH_SKIP_IF_UNUSABLE(session, GetParam());
  session.step({{prompt.row(0, 40)}});
  session.step({{prompt.row(40, 79)}});
  session.step({{prompt.row(79, 80)}});
  record("large_results", GetParam(), session.worst());

  const bool transfers = GetParam().backend != "cpu";
  EXPECT_EQ(stats_of(session, {{prompt.row(40, 79)}}).bytes_transferred > 0, transfers);
  EXPECT_EQ(stats_of(session, {{prompt.row(79, 80)}}).bytes_transferred, 0);
}

BH_ON_EVERY_TARGET(LargeResults);

// ---- large pools ----

class LargePools : public TargetTest {};

/// Blocks behind the first 4 GiB, whose offsets would be those of the first blocks in 32 bits.
TEST_P(LargePools, AreIndexedBeyond32Bits) {
  constexpr int kLength = 40;
  for (const int dtype : {BH_FLOAT16, BH_FLOAT32}) {
    SCOPED_TRACE(dtype_label(dtype));
    LayerConfig layer;
    layer.dtype = dtype;
    layer.num_kv_heads = 8;
    layer.head_size = 128;
    const Prompt prompt(layer, kLength, 16, dtype);
    bh_cache_options pool = pool_of(prompt.num_blocks(), 16, dtype);
    Session small(GetParam(), 2, layer, pool);
    BH_SKIP_IF_UNUSABLE(small, GetParam());
    const auto bytes = static_cast<size_t>(bh_cache_block_bytes(small.cache()));
    const int64_t first = (int64_t{1} << 32) / static_cast<int64_t>(2 * bytes);
    pool = small.mirror()->options();
    pool.num_blocks += first;
    Cache cache;
    try {
      cache = make_cache(small.engine(), pool);
    } catch (const std::runtime_error& e) {
      GTEST_SKIP() << "too little memory: " << e.what();
    }
    const Layer large = make_layer(small.engine(), layer, cache.get());
    for (const int end : {kLength - 1, kLength}) {
      StepBatch batch = {{prompt.row(end == kLength ? end - 1 : 0, end)}};
      const auto expected = small.step(batch);
      for (int32_t& block : batch.rows[0].blocks) block += static_cast<int32_t>(first);
      for (int64_t& slot : batch.rows[0].slots) slot += first * pool.block_size;
      StepResult result(layer, batch);
      bh_error error{};
      ASSERT_EQ(run_step(large.get(), layer, batch, result, error), BH_OK) << error.message;
      EXPECT_EQ(result.output_bytes(), expected->output_bytes());
    }
    const Bytes zeros(bytes, 0);
    Bytes keys(bytes, 0xff), values(keys);
    for (int64_t block = 0; block < prompt.num_blocks(); ++block) {
      bh_error error{};
      ASSERT_EQ(bh_cache_read_block(cache.get(), block, keys.data(), values.data(), &error), BH_OK)
          << error.message;
      EXPECT_EQ(keys, zeros) << "block " << block;
      EXPECT_EQ(values, zeros) << "block " << block;
    }
  }
}

BH_ON_EVERY_TARGET(LargePools);

// ---- long sequences ----

class LongSequences : public TargetTest {};

/// Positions have 32 bits, also where kernels look a few tiles beyond the last key.
TEST_P(LongSequences, EndWhereTheyCanBeCounted) {
  constexpr int kBlock = 1 << 20;
  LayerConfig layer;
  layer.dtype = BH_FLOAT16;
  layer.num_heads = layer.num_kv_heads = 1;
  layer.head_size = 32;
  layer.sliding_window = 20;
  std::string reason;
  const Engine engine = open_engine(GetParam(), 2, reason);
  if (!engine) GTEST_SKIP() << reason;
  bh_cache_options pool = pool_of(1, kBlock, BH_FLOAT8_E4M3FN);
  pool.struct_size = sizeof pool;
  pool.num_kv_heads = layer.num_kv_heads;
  pool.head_size = layer.head_size;
  const Cache cache = make_cache(engine.get(), pool);
  const Layer made = make_layer(engine.get(), layer, cache.get());
  StepBatch batch;
  batch.has_key = false;
  StepRow row;
  row.query.assign(32, 1);
  row.blocks.assign(2048, 0);
  bh_error error{};
  for (const int32_t length : {1 << 30, (1 << 30) + 1, INT32_MAX}) {
    row.seq_len = length;
    batch.rows = {row};
    StepResult result(layer, batch);
    const int32_t status = run_step(made.get(), layer, batch, result, error);
    if (length == 1 << 30) {
      ASSERT_EQ(status, BH_OK) << error.message;
      EXPECT_EQ(result.output(0, 31), 0);
      EXPECT_NEAR(result.lse(0, 0), std::log(20.0), 1e-6);
    } else {
      EXPECT_EQ(status, BH_INVALID_ROW);
      EXPECT_EQ(error.row, 0);
      EXPECT_NE(std::string(error.message).find("column seq_len: "), std::string::npos)
          << error.message;
    }
  }
}

BH_ON_EVERY_TARGET(LongSequences);

// ---- NaN ----

class NotANumber : public TargetTest {
 protected:
  /// Calls visit(token, element) for the results of a prompt, computed `chunk` tokens at a time.
  template <class Visit>
  void attend_in_chunks(const LayerConfig& layer, const Prompt& prompt, int length, int cache_dtype,
                        int chunk, Visit&& visit) {
    SCOPED_TRACE(dtype_label(layer.dtype) + " " + dtype_label(cache_dtype) + " window " +
                 std::to_string(layer.sliding_window) + " chunks of " + std::to_string(chunk));
    Session session(GetParam(), 2, layer, pool_of(prompt.num_blocks(), 16, cache_dtype));
    BH_SKIP_IF_UNUSABLE(session, GetParam());
    for (int first = 0; first < length; first += chunk) {
      const int end = std::min(first + chunk, length);
      const StepBatch batch = {{prompt.row(first, end)}};
      StepResult result(layer, batch);
      bh_error error{};
      ASSERT_EQ(run_step(session.layer(), layer, batch, result, error), BH_OK) << error.message;
      const std::vector<double> out = outputs(layer, result, end - first);
      for (size_t i = 0; i < out.size(); ++i) {
        visit(first + static_cast<int>(i / static_cast<size_t>(layer.query_width())), out[i]);
      }
    }
  }
};

/// A token whose key or value is NaN or infinite: who sees it gets no number, the others do not
/// notice, also where a step takes both of them together.
TEST_P(NotANumber, ReachesOnlyThoseThatSeeIt) {
  constexpr int kLength = 60;
  constexpr int kPoisoned = 37;
  struct Poison {
    bool in_key;
    float value;
  };
  for (const int dtype : kTensorDtypes) {
    for (const int cache : kAutoAndFp8) {
      for (const Poison poison :
           {Poison{false, NAN}, Poison{true, NAN}, Poison{false, HUGE_VALF}}) {
        const int cache_dtype = cache == kAuto ? dtype : cache;
        if (element_bytes(cache_dtype) == 1 && !std::isnan(poison.value)) continue;  // saturates
        for (const int window : {0, 1, 10}) {
          LayerConfig layer;
          layer.dtype = dtype;
          layer.sliding_window = window;
          Prompt prompt(layer, kLength, 16, cache_dtype);
          std::vector<float>& poisoned = poison.in_key ? prompt.key() : prompt.value();
          for (int64_t d = 0; d < layer.key_width(); ++d) {
            poisoned[static_cast<size_t>(kPoisoned * layer.key_width() + d)] = poison.value;
          }
          for (const int chunk : {1, 2, 7, kLength}) {
            attend_in_chunks(
                layer, prompt, kLength, cache_dtype, chunk, [&](int token, double element) {
                  const bool sees =
                      token >= kPoisoned && (window == 0 || token < kPoisoned + window);
                  ASSERT_EQ(!std::isfinite(element), sees) << token;
                });
            if (IsSkipped() || HasFatalFailure()) return;
          }
          record("nan", GetParam(), 0);
        }
      }
    }
  }
}

/// A key with an infinite element has no weight for queries that are negative there, and makes
/// results of others NaN.
TEST_P(NotANumber, MayHaveNoWeight) {
  constexpr int kLength = 60;
  constexpr int kPoisoned = 37;
  for (const int dtype : kTensorDtypes) {
    LayerConfig layer;
    layer.dtype = dtype;
    Prompt prompt(layer, kLength, 16, dtype);
    for (int64_t i = 0; i < kLength * layer.query_width(); i += layer.head_size) {
      prompt.query()[static_cast<size_t>(i)] = i / layer.query_width() % 2 == 0 ? -1 : 1;
    }
    for (int64_t i = 0; i < layer.key_width(); ++i) {
      const auto at = static_cast<size_t>(kPoisoned * layer.key_width() + i);
      if (i % layer.head_size == 0) prompt.key()[at] = HUGE_VALF;
      prompt.value()[at] = 10000;
    }
    for (const int chunk : {1, 7, kLength}) {
      attend_in_chunks(layer, prompt, kLength, dtype, chunk, [&](int token, double element) {
        const bool is_number = token < kPoisoned || token % 2 == 0;
        ASSERT_EQ(std::fabs(element) < 10, is_number) << token << ": " << element;
      });
      if (IsSkipped() || HasFatalFailure()) return;
    }
    record("nan", GetParam(), 0);
  }
}

/// Each code of fp8 as key and as value, as blocks that are written whole may hold it: with a
/// window of one token that value is the result, and of a key that is NaN the result is NaN.
TEST_P(NotANumber, HasManyCodesInFp8) {
  constexpr int kCodes = 256;
  for (const int dtype : kTensorDtypes) {
    for (const int cache_dtype : {BH_FLOAT8_E4M3FN, BH_FLOAT8_E5M2}) {
      LayerConfig layer;
      layer.dtype = dtype;
      layer.num_kv_heads = 1;
      layer.head_size = kCodes;
      layer.sliding_window = 1;
      Session session(GetParam(), 2, layer, pool_of(kCodes / 16, 16, cache_dtype));
      BH_SKIP_IF_UNUSABLE(session, GetParam());
      LogicalCache& codes = *session.mirror();
      for (int t = 0; t < kCodes; ++t) {
        std::fill_n(codes.keys_of(t), kCodes, uint8_t{0});
        codes.keys_of(t)[t] = static_cast<uint8_t>(t);
        for (int d = 0; d < kCodes; ++d) codes.values_of(t)[d] = static_cast<uint8_t>(d + t);
      }
      write_cache(session.cache(), codes);
      for (const int queries : {1, kCodes}) {
        SCOPED_TRACE(dtype_label(dtype) + " " + dtype_label(cache_dtype) + " queries " +
                     std::to_string(queries));
        StepBatch batch;
        batch.has_key = false;
        for (int end = queries; end <= kCodes; end += queries) {
          StepRow row;
          row.query.assign(static_cast<size_t>(queries * layer.query_width()), 0x1p-14f);
          row.seq_len = end;
          for (int32_t b = 0; b < kCodes / 16; ++b) row.blocks.push_back(b);
          batch.rows.push_back(row);
        }
        StepResult result(layer, batch);
        bh_error error{};
        ASSERT_EQ(run_step(session.layer(), layer, batch, result, error), BH_OK) << error.message;
        const std::vector<double> out = outputs(layer, result, kCodes);
        for (size_t i = 0; i < out.size(); ++i) {
          const auto t = static_cast<uint32_t>(i / static_cast<size_t>(layer.query_width()));
          const double key = decode(cache_dtype, t);
          const double value = decode(cache_dtype, static_cast<uint8_t>(i % kCodes + t));
          if (std::isinf(key)) continue;
          const bool is_right = std::isnan(key) || std::isnan(value)
                                    ? std::isnan(out[i])
                                    : out[i] == value || std::fabs(out[i] - value) <=
                                                             kFloat32Error * std::fabs(value);
          ASSERT_TRUE(is_right) << "key " << t << ", element " << i % kCodes << ": " << out[i];
        }
      }
      record("nan", GetParam(), 0);
    }
  }
}

BH_ON_EVERY_TARGET(NotANumber);

}  // namespace
}  // namespace broadhead::test
