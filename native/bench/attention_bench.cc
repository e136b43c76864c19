// SPDX-License-Identifier: Apache-2.0
// Attention steps beside what the machine allows, in turns: decode beside a read of the same
// amount of blocks, prefill beside as many multiply-adds, cache update beside a copy.
//
//   broadhead_bench --benchmark_filter=decode/llama-3-8b [--backend=NAME] [--threads=N]
#include <benchmark/benchmark.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <utility>
#include <vector>

#include "flags.h"
#include "number_format.h"
#include "workload.h"

namespace broadhead::bench {
namespace {

constexpr Model kModels[] = {{"llama-3-8b", 32, 8, 128},
                             {"llama-2-7b", 32, 32, 128},
                             {"qwen3-0.6b", 16, 8, 128},
                             {"gpt-2", 12, 12, 64},
                             {"gemma", 8, 4, 256}};

/// A pool larger than this is left out, with the reason.
constexpr double kLargestPool = 9e9;

int threads = 2;

double median(std::vector<double> values) {
  const auto middle = values.begin() + static_cast<int64_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

/// Times steps and, after each, `limit`; `amount` is what a step gets done, in `unit`.
template <class Limit>
void run(benchmark::State& state, Workload& workload, double amount, const char* unit,
         Limit&& limit) {
  std::vector<double> steps;
  std::vector<double> limits;
  std::vector<double> ratios;  // of neighbours: a machine's speed changes while it is measured
  workload.step();
  limit();
  for (auto _ : state) {
    steps.push_back(workload.step());
    limits.push_back(limit());
    ratios.push_back(limits.back() / steps.back());
    state.SetIterationTime(steps.back());
  }
  state.counters[unit] = amount / median(steps) * 1e-9;
  state.counters[std::string("limit ") + unit] = amount / median(limits) * 1e-9;
  state.counters["of limit"] = median(ratios);
  state.SetLabel(workload.tier());
}

void decode(benchmark::State& state, const Shape& shape) {
  Workload workload(shape, threads);
  run(state, workload, workload.bytes(), "GB/s", [&] { return workload.read(); });
}

void prefill(benchmark::State& state, const Shape& shape) {
  Workload workload(shape, threads);
  run(state, workload, workload.flops(), "GFLOP/s", [&] { return workload.compute(); });
}

void update(benchmark::State& state, const Shape& shape) {
  Workload workload(shape, threads);
  run(state, workload, workload.update_bytes(), "GB/s", [&] { return workload.copy(); });
}

std::string name_of(const char* kind, const Shape& shape) {
  std::string dtypes = test::dtype_label(shape.dtype);
  if (shape.cache_dtype != shape.dtype) dtypes += "_on_" + test::dtype_label(shape.cache_dtype);
  std::string name = std::string(kind) + "/" + shape.model.name + "/" + dtypes +
                     "/batch:" + std::to_string(shape.batch) +
                     "/queries:" + std::to_string(shape.queries) +
                     "/context:" + std::to_string(shape.context);
  if (shape.rope) name += "/rope";
  if (shape.block_size != 16) name += "/block:" + std::to_string(shape.block_size);
  if (shape.window > 0) name += "/window:" + std::to_string(shape.window);
  if (shape.soft_cap > 0) name += "/soft_cap";
  if (shape.alibi) name += "/alibi";
  return name;
}

template <class Body>
void add(const char* kind, const Shape& shape, Body&& body) {
  const double pool = 2.0 * shape.batch * shape.context * shape.model.num_kv_heads *
                      shape.model.head_size * test::element_bytes(shape.cache_dtype);
  if (pool > kLargestPool) return;
  benchmark::RegisterBenchmark(name_of(kind, shape).c_str(),
                               [shape, body](benchmark::State& state) { body(state, shape); })
      ->UseManualTime()
      ->Unit(benchmark::kMillisecond);
}

/// What transforms of scores and windows cost, and tokens that are verified together.
void add_features() {
  const Shape decoding{kModels[0], BH_FLOAT16, BH_FLOAT16, 8, 1, 4096};
  const Shape prompt{kModels[0], BH_FLOAT16, BH_FLOAT16, 1, 2048, 2048};
  auto add_changed = [&](auto&& change) {
    Shape shape = decoding;
    change(shape);
    add("decode", shape, decode);
    shape = prompt;
    change(shape);
    add("prefill", shape, prefill);
  };
  add_changed([](Shape& shape) { shape.soft_cap = 30; });
  add_changed([](Shape& shape) { shape.alibi = true; });
  for (const int window : {64, 256, 1024}) {
    Shape shape = prompt;
    shape.window = window;
    add("prefill", shape, prefill);
  }
  for (const int tokens : {2, 4, 8, 16}) {
    add("prefill", {kModels[0], BH_FLOAT16, BH_FLOAT16, 4, tokens, 4096}, prefill);
  }
}

void add_all() {
  for (const Model& model : kModels) {
    for (const auto& [dtype, cache] : {std::pair<int, int>{BH_FLOAT16, BH_FLOAT16},
                                       {BH_BFLOAT16, BH_BFLOAT16},
                                       {BH_FLOAT32, BH_FLOAT32},
                                       {BH_FLOAT16, BH_FLOAT8_E4M3FN},
                                       {BH_BFLOAT16, BH_FLOAT8_E4M3FN}}) {
      for (const int batch : {1, 8, 32}) {
        for (const int context : {512, 4096, 32768}) {
          add("decode", {model, dtype, cache, batch, 1, context}, decode);
        }
      }
      for (const bool rope : {false, true}) {
        add("update", {model, dtype, cache, 16, 512, 512, 16, rope, false}, update);
      }
      add("prefill", {model, dtype, cache, 1, 512, 512}, prefill);
      add("prefill", {model, dtype, cache, 1, 2048, 2048}, prefill);
      add("prefill", {model, dtype, cache, 1, 512, 4096}, prefill);
    }
  }
  add_features();
}

}  // namespace
}  // namespace broadhead::bench

int main(int argc, char** argv) {
  using broadhead::test::take_flag;
  take_flag(argc, argv, "backend", broadhead::test::options().backend);
  if (std::string value; take_flag(argc, argv, "threads", value)) {
    broadhead::bench::threads = std::stoi(value);
  }
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return EXIT_FAILURE;
  broadhead::bench::add_all();
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
}
