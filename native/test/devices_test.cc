// SPDX-License-Identifier: Apache-2.0
// Several GPUs: engines of their own, and the choice among them.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <thread>

#include "harness.h"
#include "random.h"
#include "summary.h"

namespace broadhead::test {
namespace {

constexpr int kBlockSize = 16;
constexpr int kAnyDevice = -1;

class Devices : public TargetTest {
 protected:
  void SetUp() override {
    if (GetParam().backend == "cpu") GTEST_SKIP() << "the CPU is one device";
    std::string reason;
    if (!open_engine(on(1), 1, reason)) GTEST_SKIP() << "there is no second device: " << reason;
  }

  Target on(int device) const {
    Target target = GetParam();
    target.device = device;
    return target;
  }
};

bh_engine_info describe(const Engine& engine) {
  bh_engine_info info{};
  EXPECT_EQ(bh_engine_describe(engine.get(), &info), BH_OK);
  return info;
}

/// A prompt, then single tokens, of two sequences.
StepBatch next_batch(Random& random, const LayerConfig& layer, int step) {
  StepBatch batch;
  for (int s = 0; s < 2; ++s) {
    const int length = step == 0 ? 0 : 20 + step - 1;
    const int tokens = step == 0 ? 20 : 1;
    batch.rows.push_back(
        random_row(random, layer, tokens, length + tokens, {3 - s, s}, kBlockSize));
  }
  return batch;
}

TEST_P(Devices, ComputeSideBySide) {
  constexpr int kSteps = 6;
  LayerConfig config;
  config.dtype = BH_FLOAT16;
  bh_cache_options pool{};
  pool.num_blocks = 4;
  pool.block_size = kBlockSize;
  pool.dtype = BH_FLOAT16;
  Session first(on(0), 1, config, pool), second(on(1), 1, config, pool);
  Random random("devices");
  // In turns from one thread, which changes its device, then from a thread for each.
  for (int step = 0; step < kSteps; ++step) {
    const StepBatch batch = next_batch(random, config, step);
    first.step(batch);
    second.step(batch);
  }
  auto run = [&](Session& session) {
    Random own("threads");
    for (int step = 0; step < kSteps; ++step) session.step(next_batch(own, config, step));
  };
  std::thread beside([&] { run(second); });
  run(first);
  beside.join();
  EXPECT_LE(std::max(first.worst(), second.worst()), 1);
  record("devices", GetParam(), std::max(first.worst(), second.worst()));
}

TEST_P(Devices, TheOneWithTheMostFreeMemoryIsTaken) {
  std::string reason;
  const Engine engines[] = {open_engine(on(0), 1, reason), open_engine(on(1), 1, reason)};
  const int64_t free[] = {describe(engines[0]).free_memory, describe(engines[1]).free_memory};
  const int fuller = free[0] < free[1] ? 0 : 1;
  // Other processes may take some at the same time: the difference is made clear.
  bh_cache_options pool{};
  pool.struct_size = sizeof pool;
  pool.block_size = kBlockSize;
  pool.num_kv_heads = 8;
  pool.head_size = 128;
  pool.dtype = BH_FLOAT16;
  const int64_t block = int64_t{2} * pool.block_size * pool.num_kv_heads * pool.head_size * 2;
  pool.num_blocks = free[fuller] / 8 / block;
  const Cache cache = make_cache(engines[fuller].get(), pool);
  const Engine chosen = open_engine(on(kAnyDevice), 1, reason);
  ASSERT_TRUE(chosen) << reason;
  const std::string why = describe(chosen).reason;
  EXPECT_EQ(why.find("device " + std::to_string(fuller) + " "), std::string::npos) << why;
  EXPECT_NE(why.find("(most free memory)"), std::string::npos) << why;
}

TEST_P(Devices, OnesThatAreNotThereAreRefused) {
  std::string reason;
  EXPECT_EQ(open_engine(on(1000), 1, reason), nullptr);
  const size_t range = reason.find("device must be 0 .. ");
  ASSERT_NE(range, std::string::npos) << reason;
  const int last = std::stoi(reason.substr(range + 20));
  for (const int device : {last + 1, -2}) {
    EXPECT_EQ(open_engine(on(device), 1, reason), nullptr);
    EXPECT_NE(reason.find("got " + std::to_string(device)), std::string::npos) << reason;
  }
}

BH_ON_EVERY_TARGET(Devices);

}  // namespace
}  // namespace broadhead::test
