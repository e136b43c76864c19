// SPDX-License-Identifier: Apache-2.0
// Runs steps through the C ABI and compares what they did with the reference.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "broadhead/broadhead.h"
#include "random.h"
#include "reference.h"
#include "step_batch.h"
#include "target.h"

namespace broadhead::test {

// ---- tolerance, in one place ----
//
// An element of the result may differ from the float64 reference e by
//
//   rounding_error(dtype, e) + kFloat32Error * max(1, max|expected|)
//
// that is one rounding to the dtype of the output and what float32 arithmetic costs on the way.
// Where a GPU's matrix instructions take the weights of many query rows in the tensors' 16-bit
// type, their one rounding is added, each bounded by half a unit in its last place:
// Expected::weight_error. Nothing is added for fp8 caches or rope: the reference reads the cache's
// own dtype, and rotary test data stays clear of rounding boundaries (random_rotary_tensors).

/// Error of scores, softmax and sums in float32: 48 units of 2^-24.
inline constexpr double kFloat32Error = 48 * 0x1p-24;

/// Largest error beyond the one rounding, in units of the float32 tolerance; the first element
/// above 1 fails the test.
double compare_result(const LayerConfig& layer, const StepResult& result, const Expected& expected);

/// Whether the target rounds the weights of some token of the step.
bool rounds_weights(const Target& target, const LayerConfig& layer,
                    const std::vector<StepBatch>& parts);

/// Fails the test where the cache does not hold the mirror's bits: values rounded once, untouched
/// slots as they were. With float32 rope, keys may differ by float32 rounding; the mirror then
/// takes over what is stored.
void compare_cache(const LayerConfig& layer, const bh_cache* cache, LogicalCache& mirror);

/// Writes all of the mirror to the cache.
void write_cache(bh_cache* cache, const LogicalCache& mirror);

/// One bh_step on a binding of its own. `error` is filled on failure.
int32_t run_step(bh_layer* layer, const LayerConfig& config, const StepBatch& batch,
                 StepResult& result, bh_error& error, bh_step_stats* stats = nullptr);

struct Outcome {
  int32_t status;
  bh_error error;
  bh_step_stats stats;
  std::vector<std::unique_ptr<StepResult>> results;  ///< of each part
};

/// One bh_step_parts on a binding of its own; all parts have the columns of the first one.
Outcome run_parts(bh_layer* layer, const LayerConfig& config, const std::vector<StepBatch>& parts);

/// A layer on a poisoned cache, and what the reference knows of both.
class Session {
 public:
  /// `pool.num_blocks` is 0 for layers without a cache.
  Session(const Target& target, int threads, const LayerConfig& config, bh_cache_options pool);

  /// NULL where the target is not usable here.
  bh_engine* engine() { return engine_.get(); }
  const std::string& reason() const { return reason_; }
  const LayerConfig& config() const { return config_; }
  bh_cache* cache() { return cache_.get(); }
  bh_layer* layer() { return layer_.get(); }
  LogicalCache* mirror() { return mirror_.get(); }

  /// Fills the cache with positive numbers, so that rows may see slots that nobody wrote.
  void fill_cache(Random& random);

  /// Runs the step, compares cache, result, offsets and statistics with the reference, and returns
  /// the result.
  std::unique_ptr<StepResult> step(const StepBatch& batch);
  /// The same for a step of several batches.
  std::vector<std::unique_ptr<StepResult>> step_parts(const std::vector<StepBatch>& parts);

  /// Errors that the weights' rounding may have caused in the last step's result, zero where the
  /// target rounds none.
  const std::vector<double>& weight_errors() const { return weight_errors_; }

  /// Largest error so far in units of its tolerance.
  double worst() const { return worst_; }

  /// From now on steps go through a second layer on the same cache that writes nothing.
  void share_cache();

 private:
  std::string reason_;
  LayerConfig config_;
  Engine engine_;
  Cache cache_;
  Layer layer_;
  Layer sharing_layer_;
  std::unique_ptr<LogicalCache> mirror_;
  Target target_;
  std::vector<double> weight_errors_;
  double worst_ = 0;
};

#define BH_SKIP_IF_UNUSABLE(session, target) \
  if (!(session).engine())                   \
  GTEST_SKIP() << (target).label() << " is not usable: " << (session).reason()

}  // namespace broadhead::test
