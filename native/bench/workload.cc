// SPDX-License-Identifier: Apache-2.0
#include "workload.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <thread>

#include "number_format.h"

namespace broadhead::bench {
namespace {

/// Pools are at least so large: several times a last-level cache.
constexpr int64_t kPoolBytes = int64_t{256} << 20;

/// Different steps that take turns, at most; those of prompts are long enough by themselves.
constexpr int64_t kDecodeSteps = 64;
constexpr int64_t kPrefillSteps = 4;

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

void check(int32_t status, const bh_error& error) {
  if (status != BH_OK) throw std::runtime_error(error.message);
}

test::LayerConfig config_of(const Shape& shape) {
  test::LayerConfig config;
  config.num_heads = shape.model.num_heads;
  config.num_kv_heads = shape.model.num_kv_heads;
  config.head_size = shape.model.head_size;
  config.dtype = shape.dtype;
  config.scale = 1 / std::sqrt(static_cast<float>(shape.model.head_size));
  config.return_lse = false;
  config.sliding_window = shape.window;
  config.logits_soft_cap = shape.soft_cap;
  for (int h = 1; shape.alibi && h <= config.num_heads; ++h) {
    config.alibi_slopes.push_back(std::exp2(-8.0f * static_cast<float>(h) / config.num_heads));
  }
  if (shape.rope) config.set_rope(shape.model.head_size, true, shape.context);
  return config;
}

/// What the environment asked for when it was first looked at: opening an engine forgets it.
const std::string& wanted_tier() {
  static const char* const value = std::getenv("BROADHEAD_CPU_TIER");
  static const std::string tier = value ? value : "";
  return tier;
}

}  // namespace

Workload::Workload(const Shape& shape, int threads)
    : shape_(shape), config_(config_of(shape)), threads_(threads) {
  std::string reason;
  engine_ =
      test::open_engine(test::Target{test::options().backend, wanted_tier()}, threads, reason);
  if (!engine_) throw std::runtime_error(reason);
  blocks_per_sequence_ = (shape.context + shape.block_size - 1) / shape.block_size;
  const int64_t blocks_per_step = blocks_per_sequence_ * shape.batch;
  const int64_t block_bytes = int64_t{2} * shape.block_size * shape.model.num_kv_heads *
                              shape.model.head_size * test::element_bytes(shape.cache_dtype);
  const int64_t wanted = kPoolBytes / (blocks_per_step * block_bytes) + 1;
  const int64_t steps =
      std::clamp<int64_t>(wanted, 1, shape.queries > 1 ? kPrefillSteps : kDecodeSteps);
  num_blocks_ = blocks_per_step * steps;
  cache_ = test::make_cache(engine_.get(),
                            {sizeof(bh_cache_options), num_blocks_, shape.block_size,
                             shape.model.num_kv_heads, shape.model.head_size, shape.cache_dtype});
  test::Random random(std::string_view(shape.model.name));
  fill_cache(random);
  layer_ = test::make_layer(engine_.get(), config_, cache_.get());
  const std::vector<int64_t> order = random.sample(num_blocks_, num_blocks_);
  for (int64_t s = 0; s < steps; ++s) {
    const auto begin = order.begin() + s * blocks_per_step;
    const test::StepBatch rows = batch(random, {begin, begin + blocks_per_step});
    if (!binding_) binding_ = test::make_binding(layer_.get(), test::step_schema(config_, rows));
    Step step{test::export_array(test::step_array(config_, rows)), {}, nullptr};
    step.blocks.assign(begin, begin + blocks_per_step);
    step.result = std::make_unique<test::StepResult>(config_, rows);
    steps_.push_back(std::move(step));
  }
}

Workload::~Workload() {
  for (Step& step : steps_) step.array.release(&step.array);
}

void Workload::fill_cache(test::Random& random) {
  const int64_t elements = int64_t{shape_.block_size} * config_.num_kv_heads * config_.head_size;
  // A block is a window of these; every block has another one.
  std::vector<float> values(static_cast<size_t>(elements + num_blocks_ % 4096 + 4096));
  for (float& value : values) value = random.normal();
  const std::vector<uint8_t> bytes = test::encode_all(shape_.cache_dtype, values);
  const int width = test::element_bytes(shape_.cache_dtype);
  bh_error error{};
  for (int64_t block = 0; block < num_blocks_; ++block) {
    const uint8_t* key = bytes.data() + random.below(4096) * width;
    const uint8_t* value = bytes.data() + random.below(4096) * width;
    check(bh_cache_write_block(cache_.get(), block, key, value, &error), error);
  }
}

test::StepBatch Workload::batch(test::Random& random, const std::vector<int64_t>& blocks) {
  test::StepBatch batch;
  batch.has_query = shape_.attends;
  for (int s = 0; s < shape_.batch; ++s) {
    test::StepRow row;
    row.seq_len = shape_.context;
    const auto begin = blocks.begin() + s * blocks_per_sequence_;
    row.blocks.assign(begin, begin + blocks_per_sequence_);
    for (int t = 0; t < shape_.queries; ++t) {
      const int64_t position = shape_.context - shape_.queries + t;
      row.slots.push_back(row.blocks[static_cast<size_t>(position / shape_.block_size)] *
                              int64_t{shape_.block_size} +
                          position % shape_.block_size);
      row.positions.push_back(position);
    }
    row.key = test::random_tensors(random, config_, shape_.queries, config_.num_kv_heads);
    row.value = test::random_tensors(random, config_, shape_.queries, config_.num_kv_heads);
    if (shape_.attends) {
      row.query = test::random_tensors(random, config_, shape_.queries, config_.num_heads);
    }
    batch.rows.push_back(std::move(row));
  }
  return batch;
}

double Workload::step() {
  Step& step = steps_[next_++ % steps_.size()];
  ArrowArray borrowed = step.array;
  borrowed.release = [](ArrowArray* array) { array->release = nullptr; };
  bh_error error{};
  const auto start = std::chrono::steady_clock::now();
  check(bh_step(binding_.get(), &borrowed, step.result->array(), nullptr, &error), error);
  return seconds_since(start);
}

double Workload::read() {
  const Step& step = steps_[next_++ % steps_.size()];
  int64_t nanoseconds = 0;
  bh_error error{};
  check(bh_probe_read(engine_.get(), cache_.get(), step.blocks.data(),
                      static_cast<int64_t>(step.blocks.size()), &nanoseconds, &error),
        error);
  return static_cast<double>(nanoseconds) * 1e-9;
}

double Workload::compute() {
  int64_t nanoseconds = 0;
  bh_error error{};
  check(bh_probe_compute(engine_.get(), static_cast<int64_t>(flops()), &nanoseconds, &error),
        error);
  return static_cast<double>(nanoseconds) * 1e-9;
}

double Workload::copy() {
  const auto bytes = static_cast<size_t>(update_bytes() / 2);
  const size_t copies = static_cast<size_t>(kPoolBytes) / bytes + 1;
  if (copied_.empty()) copied_.assign(2 * copies * bytes, 1);
  const char* from = copied_.data() + next_++ % copies * bytes;
  char* to = copied_.data() + copies * bytes + (from - copied_.data());
  const auto start = std::chrono::steady_clock::now();
  std::vector<std::thread> helpers;
  const size_t share = bytes / static_cast<size_t>(threads_);
  auto run = [&](size_t i) { std::memcpy(to + i * share, from + i * share, share); };
  for (int i = 1; i < threads_; ++i) helpers.emplace_back(run, static_cast<size_t>(i));
  run(0);
  for (std::thread& helper : helpers) helper.join();
  return seconds_since(start);
}

double Workload::update_bytes() const {
  return 2.0 * shape_.batch * shape_.queries * config_.num_kv_heads * config_.head_size *
         (test::element_bytes(shape_.dtype) + test::element_bytes(shape_.cache_dtype));
}

double Workload::bytes() const {
  return 2.0 * shape_.batch * shape_.context * config_.num_kv_heads * config_.head_size *
         test::element_bytes(shape_.cache_dtype);
}

double Workload::flops() const {
  double keys = 0;
  for (int end = shape_.context - shape_.queries + 1; end <= shape_.context; ++end) {
    keys += shape_.window ? std::min(shape_.window, end) : end;
  }
  return 4.0 * shape_.batch * keys * config_.num_heads * config_.head_size;
}

std::string Workload::tier() const {
  bh_engine_info info{};
  bh_engine_describe(engine_.get(), &info);
  return info.tier;
}

}  // namespace broadhead::bench
