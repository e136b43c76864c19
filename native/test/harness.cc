// SPDX-License-Identifier: Apache-2.0
#include "harness.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "number_format.h"

namespace broadhead::test {
namespace {

/// Error of a float32 rotation of elements of about N(0, 1), its operands up to 5.
constexpr double kRotationError = 16 * 0x1p-24;

bool same_element(int dtype, uint32_t a, uint32_t b) {
  return a == b || (std::isnan(decode(dtype, a)) && std::isnan(decode(dtype, b)));
}

/// Compares the written slots of one half of a block, and takes over what is stored.
void compare_elements(const char* what, LogicalCache& mirror, int64_t block, const Bytes& stored,
                      uint8_t* expected, double tolerance) {
  const bh_cache_options& pool = mirror.options();
  const int64_t width = int64_t{pool.num_kv_heads} * pool.head_size;
  for (int64_t i = 0; i < pool.block_size * width; ++i) {
    const uint32_t got = load_bits(pool.dtype, stored.data(), i);
    const uint32_t wanted = load_bits(pool.dtype, expected, i);
    const int64_t slot = block * pool.block_size + i / width;
    const bool written = mirror.written()[static_cast<size_t>(slot)];
    const double error = std::fabs(decode(pool.dtype, got) - decode(pool.dtype, wanted));
    if (written ? same_element(pool.dtype, got, wanted) || error <= tolerance : got == wanted) {
      continue;
    }
    ADD_FAILURE() << what << " in slot " << slot << (written ? "" : " (not to be written)")
                  << ", element " << i % width << ": bits " << got << ", expected " << wanted;
    return;
  }
  std::memcpy(expected, stored.data(), stored.size());
}

}  // namespace

double compare_result(const LayerConfig& layer, const StepResult& result,
                      const Expected& expected) {
  const int dtype = layer.output_dtype();
  const double unit = layer.output_scale > 0 ? double{layer.output_scale} : 1;
  const double limit = decode(dtype, encode(dtype, 1e300)) * unit;
  double largest = 1;
  for (const double e : expected.output) largest = std::max(largest, std::fabs(e));
  double worst = 0;
  auto compare = [&worst](const char* what, size_t i, double got, double wanted, double rounding,
                          double arithmetic) {
    if (got == wanted) return;
    const double ratio = (std::fabs(got - wanted) - rounding) / arithmetic;
    if (!(ratio <= 1) && worst <= 1) {
      ADD_FAILURE() << what << " element " << i << ": " << got << ", expected " << wanted << " +- "
                    << rounding + arithmetic;
    }
    worst = std::isnan(ratio) ? HUGE_VAL : std::max(worst, ratio);
  };
  const auto width = static_cast<size_t>(layer.query_width());
  for (size_t i = 0; i < expected.output.size(); ++i) {
    const double wanted = std::clamp(expected.output[i], -limit, limit);
    compare("output", i,
            result.output(static_cast<int64_t>(i / width), static_cast<int64_t>(i % width)), wanted,
            rounding_error(dtype, wanted / unit) * unit,
            kFloat32Error * largest + expected.weight_error[i]);
  }
  const auto heads = static_cast<size_t>(layer.num_heads);
  for (size_t i = 0; layer.return_lse && i < expected.lse.size(); ++i) {
    const double wanted = expected.lse[i];
    compare("lse", i,
            double{result.lse(static_cast<int64_t>(i / heads), static_cast<int>(i % heads))},
            wanted, 0, kFloat32Error * std::max(1.0, std::fabs(wanted)));
  }
  return worst;
}

bool rounds_weights(const Target& target, const LayerConfig& layer,
                    const std::vector<StepBatch>& parts) {
  if (target.backend == "cpu" || layer.dtype == BH_FLOAT32) return false;
  // Up to so many query rows weights are split into terms that hold all of a float32.
  constexpr int64_t kExactRows = 8;
  std::vector<int32_t> first_blocks;
  for (const StepBatch& part : parts) {
    for (const StepRow& row : part.rows) {
      if (row.num_queries(layer) * layer.group_size() > kExactRows) return true;
      if (layer.uses_cache() && !row.blocks.empty()) first_blocks.push_back(row.blocks[0]);
    }
  }
  // Rows with a common prefix are attended together.
  std::sort(first_blocks.begin(), first_blocks.end());
  return std::adjacent_find(first_blocks.begin(), first_blocks.end()) != first_blocks.end();
}

void compare_cache(const LayerConfig& layer, const bh_cache* cache, LogicalCache& mirror) {
  const bh_cache_options& pool = mirror.options();
  const auto bytes = static_cast<size_t>(mirror.block_bytes());
  ASSERT_EQ(bh_cache_block_bytes(cache), mirror.block_bytes());
  const bool inexact =
      layer.rotary_dim > 0 && layer.dtype == BH_FLOAT32 && pool.dtype == BH_FLOAT32;
  Bytes keys(bytes), values(bytes);
  for (int64_t block = 0; block < pool.num_blocks; ++block) {
    bh_error error{};
    ASSERT_EQ(bh_cache_read_block(cache, block, keys.data(), values.data(), &error), BH_OK)
        << error.message;
    if (std::memcmp(keys.data(), mirror.keys(block), bytes) != 0) {
      compare_elements("key", mirror, block, keys, mirror.keys(block),
                       inexact ? kRotationError : 0);
    }
    if (std::memcmp(values.data(), mirror.values(block), bytes) != 0) {
      compare_elements("value", mirror, block, values, mirror.values(block), 0);
    }
  }
}

void write_cache(bh_cache* cache, const LogicalCache& mirror) {
  for (int64_t block = 0; block < mirror.options().num_blocks; ++block) {
    bh_error error{};
    ASSERT_EQ(bh_cache_write_block(cache, block, mirror.keys(block), mirror.values(block), &error),
              BH_OK)
        << error.message;
  }
}

int32_t run_step(bh_layer* layer, const LayerConfig& config, const StepBatch& batch,
                 StepResult& result, bh_error& error, bh_step_stats* stats) {
  const Binding binding = make_binding(layer, step_schema(config, batch));
  ArrowArray array = export_array(step_array(config, batch));
  const int32_t status = bh_step(binding.get(), &array, result.array(), stats, &error);
  EXPECT_EQ(array.release, nullptr) << "the batch is taken by move";
  return status;
}

Outcome run_parts(bh_layer* layer, const LayerConfig& config, const std::vector<StepBatch>& parts) {
  const Binding binding = make_binding(layer, step_schema(config, parts.front()));
  Outcome outcome{};
  std::vector<ArrowArray> arrays;
  for (const StepBatch& part : parts) {
    arrays.push_back(export_array(step_array(config, part)));
    outcome.results.push_back(std::make_unique<StepResult>(config, part));
  }
  std::vector<bh_step_part> given;
  for (size_t i = 0; i < parts.size(); ++i) {
    given.push_back({&arrays[i], outcome.results[i]->array()});
  }
  outcome.status = bh_step_parts(binding.get(), given.data(), static_cast<int64_t>(given.size()),
                                 &outcome.stats, &outcome.error);
  for (const ArrowArray& array : arrays) {
    EXPECT_EQ(array.release, nullptr) << "batches are taken by move";
  }
  return outcome;
}

Session::Session(const Target& target, int threads, const LayerConfig& config,
                 bh_cache_options pool)
    : config_(config), engine_(open_engine(target, threads, reason_)), target_(target) {
  if (!engine_) return;
  if (pool.num_blocks > 0) {
    pool.struct_size = sizeof pool;
    pool.num_kv_heads = config.num_kv_heads;
    pool.head_size = config.head_size;
    mirror_ = std::make_unique<LogicalCache>(pool);
    cache_ = make_cache(engine_.get(), pool);
    write_cache(cache_.get(), *mirror_);
  }
  layer_ = make_layer(engine_.get(), config_, cache_.get());
}

void Session::fill_cache(Random& random) {
  if (!mirror_) return;
  for (int64_t block = 0; block < mirror_->options().num_blocks; ++block) {
    for (uint8_t* half : {mirror_->keys(block), mirror_->values(block)}) {
      // Of 16 and 32 bits these are between 1e-9 and 2.
      std::generate_n(half, mirror_->block_bytes(),
                      [&] { return static_cast<uint8_t>(0x30 + random.below(0x10)); });
    }
  }
  write_cache(cache_.get(), *mirror_);
}

void Session::share_cache() {
  config_.read_only_cache = true;
  sharing_layer_ = make_layer(engine_.get(), config_, cache_.get());
}

std::unique_ptr<StepResult> Session::step(const StepBatch& batch) {
  return std::move(step_parts({batch}).front());
}

std::vector<std::unique_ptr<StepResult>> Session::step_parts(const std::vector<StepBatch>& parts) {
  bh_layer* layer = sharing_layer_ ? sharing_layer_.get() : layer_.get();
  Outcome outcome = run_parts(layer, config_, parts);
  EXPECT_EQ(outcome.status, BH_OK) << "row " << outcome.error.row << ": " << outcome.error.message;
  if (outcome.status != BH_OK) {
    worst_ = HUGE_VAL;
    return std::move(outcome.results);
  }
  if (mirror_) {
    for (const StepBatch& part : parts) update_reference(config_, part, *mirror_);
    compare_cache(config_, cache_.get(), *mirror_);
  }
  weight_errors_.clear();
  bh_step_stats wanted{};
  for (size_t i = 0; i < parts.size(); ++i) {
    const StepResult& result = *outcome.results[i];
    Expected expected = attend_reference(config_, parts[i], mirror_.get());
    if (!rounds_weights(target_, config_, parts)) {
      std::fill(expected.weight_error.begin(), expected.weight_error.end(), 0.0);
    }
    weight_errors_.insert(weight_errors_.end(), expected.weight_error.begin(),
                          expected.weight_error.end());
    worst_ = std::max(worst_, compare_result(config_, result, expected));
    EXPECT_TRUE(result.guards_intact()) << "the step wrote past the end of its result";
    EXPECT_TRUE(result.has_offsets_of(parts[i]));

    wanted.query_tokens += parts[i].num_queries(config_);
    wanted.keys_seen += expected.keys_seen;
    for (const StepRow& row : parts[i].rows) {
      if (wanted.output_address == 0) {
        wanted.output_address = reinterpret_cast<int64_t>(result.output_address());
      }
      if (!mirror_ || config_.read_only_cache || !parts[i].has_key) continue;
      wanted.written_tokens +=
          std::count_if(row.slots.begin(), row.slots.end(), [](int64_t s) { return s >= 0; });
    }
  }
  const bh_step_stats& stats = outcome.stats;
  EXPECT_EQ(stats.query_tokens, wanted.query_tokens);
  EXPECT_EQ(stats.written_tokens, wanted.written_tokens);
  EXPECT_EQ(stats.keys_seen, wanted.keys_seen);
  if (stats.query_tokens > 0 && stats.bytes_staged == 0) {
    EXPECT_EQ(stats.output_address, wanted.output_address);
  }
  return std::move(outcome.results);
}

}  // namespace broadhead::test
