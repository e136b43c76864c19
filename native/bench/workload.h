// SPDX-License-Identifier: Apache-2.0
// Layers, caches and steps to time: shuffled block tables over a pool of N(0, 1) keys and values
// that no cache holds.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "random.h"
#include "step_batch.h"
#include "target.h"

namespace broadhead::bench {

/// Attention heads of a model.
struct Model {
  const char* name;
  int num_heads;
  int num_kv_heads;
  int head_size;
};

/// The steps of a benchmark: `batch` sequences of `queries` new tokens each, `context` tokens with
/// the new ones.
struct Shape {
  Model model;
  int dtype;
  int cache_dtype;
  int batch;
  int queries;
  int context;
  int block_size = 16;
  bool rope = false;
  bool attends = true;  ///< false: cache update only
  int window = 0;       ///< 0: none
  float soft_cap = 0;   ///< 0: none
  bool alibi = false;
};

/// Steps of one shape over different blocks in turns, so that each finds its keys and values in
/// memory and not in a cache.
class Workload {
 public:
  Workload(const Shape& shape, int threads);
  ~Workload();
  Workload(const Workload&) = delete;
  Workload& operator=(const Workload&) = delete;

  /// Runs the next step; returns seconds.
  double step();
  /// Reads the blocks of the next step once; returns seconds.
  double read();
  /// Does as many floating-point operations as a step; returns seconds.
  double compute();
  /// Copies as many bytes as a step writes to the cache, with as many threads; returns seconds.
  double copy();

  /// Bytes of keys and values that a step attends to.
  double bytes() const;
  /// Bytes of new keys and values, read and written.
  double update_bytes() const;
  /// Operations of a step: two products over the keys that its query tokens see.
  double flops() const;
  /// What the engine chose.
  std::string tier() const;

 private:
  /// A batch that was exported once.
  struct Step {
    ArrowArray array;
    std::vector<int32_t> blocks;
    std::unique_ptr<test::StepResult> result;
  };

  void fill_cache(test::Random& random);
  test::StepBatch batch(test::Random& random, const std::vector<int64_t>& blocks);

  Shape shape_;
  test::LayerConfig config_;
  int64_t blocks_per_sequence_;
  int64_t num_blocks_;
  test::Engine engine_;
  test::Cache cache_;
  test::Layer layer_;
  test::Binding binding_;
  std::vector<Step> steps_;
  size_t next_ = 0;
  int threads_;
  std::vector<char> copied_;  ///< sources, then targets, of several copies
};

}  // namespace broadhead::bench
