// SPDX-License-Identifier: Apache-2.0
// What the suite runs on: a backend, and for the CPU each of its instruction set tiers.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "broadhead/broadhead.h"
#include "step_batch.h"

namespace broadhead::test {

struct Options {
  std::string backend = "cpu";
  int device = 0;   ///< index, of GPU backends
  int every = 1;    ///< run only every n-th case of the conformance table
  int seeds = 100;  ///< of each fuzz test
};

/// Set from the command line before any test is registered.
Options& options();

struct Target {
  std::string backend;
  std::string tier;  ///< empty for backends without tiers
  int device = 0;    ///< as in bh_engine_options

  std::string label() const { return tier.empty() ? backend : tier; }
};

/// The targets of the chosen backend, usable here or not.
std::vector<Target> targets();

template <auto kDestroy>
struct Destroyer {
  template <class Handle>
  void operator()(Handle* handle) const {
    kDestroy(handle);
  }
};
using Engine = std::unique_ptr<bh_engine, Destroyer<bh_engine_destroy>>;
using Cache = std::unique_ptr<bh_cache, Destroyer<bh_cache_destroy>>;
using Layer = std::unique_ptr<bh_layer, Destroyer<bh_layer_destroy>>;
using Binding = std::unique_ptr<bh_binding, Destroyer<bh_binding_destroy>>;

/// Opens an engine on the target, or returns NULL with the reason why it is not usable here.
Engine open_engine(const Target& target, int threads, std::string& reason);

/// What the backend says it cannot do.
class Unsupported : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// These throw the library's message where the library refuses: Unsupported for BH_UNSUPPORTED.
Cache make_cache(bh_engine* engine, const bh_cache_options& options);
Layer make_layer(bh_engine* engine, const LayerConfig& config, bh_cache* cache);
Binding make_binding(bh_layer* layer, const Field& schema);

/// Opens an engine in `engine` or skips the test.
#define BH_OPEN_OR_SKIP(engine, target, threads)                        \
  std::string skip_reason;                                              \
  ::broadhead::test::Engine engine =                                    \
      ::broadhead::test::open_engine((target), (threads), skip_reason); \
  if (!engine) GTEST_SKIP() << (target).label() << " is not usable: " << skip_reason

/// Tests that run on every target.
class TargetTest : public testing::TestWithParam<Target> {};

#define BH_ON_EVERY_TARGET(suite)                                                    \
  INSTANTIATE_TEST_SUITE_P(, suite, testing::ValuesIn(::broadhead::test::targets()), \
                           [](const auto& info) { return info.param.label(); })

}  // namespace broadhead::test
