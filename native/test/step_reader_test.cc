// SPDX-License-Identifier: Apache-2.0
#include "core/step_reader.h"

#include <gtest/gtest.h>

#include <vector>

#include "step_batch.h"

namespace broadhead::test {
namespace {

/// A cache that has slots alone.
class Slots : public broadhead::Cache {
 public:
  using Cache::Cache;
  int64_t bytes() const override { return 0; }
  void read_block(int64_t, void*, void*) const override {}
  void write_block(int64_t, const void*, const void*) override {}
  void copy_block(int64_t, int64_t) override {}
};

/// Where slots repeat, writes keep their order, which costs time.
TEST(StepReader, KnowsSlotsThatRepeat) {
  LayerConfig config;
  bh_cache_options pool{};
  pool.num_blocks = 9;
  pool.block_size = 16;
  const Slots cache(pool);
  StepBatch batch;
  bh_rope rope;
  const LayerSpec spec = check_layer(config.options(rope));
  ArrowSchema schema = export_schema(step_schema(config, batch));
  StepReader reader(spec, &cache, find_columns(spec, schema));
  schema.release(&schema);
  auto repeat = [&](const std::vector<std::vector<int64_t>>& parts) {
    reader.begin_step();
    std::vector<ArrowArray> arrays;
    for (const std::vector<int64_t>& slots : parts) {
      StepRow row;
      row.query.resize(static_cast<size_t>(config.query_width()));
      row.slots = slots;
      row.key.resize(slots.size() * static_cast<size_t>(config.key_width()));
      row.value = row.key;
      batch.rows = {row};
      StepResult result(config, batch);
      arrays.push_back(export_array(step_array(config, batch)));
      reader.add_part(arrays.back(), *result.array());
    }
    const Step step = reader.step();
    EXPECT_EQ(step.num_rows, std::ssize(parts)) << "of this step alone";
    EXPECT_EQ(step.num_queries, std::ssize(parts));
    for (ArrowArray& array : arrays) array.release(&array);
    return step.slots_repeat;
  };
  EXPECT_FALSE(repeat({{0, 1, 32, 63, 64, 96, 128, 143}}));
  EXPECT_FALSE(repeat({{143, 0}})) << "of this step, not of the one before";
  EXPECT_FALSE(repeat({{-1, 5, -1}})) << "those that are not written do not count";
  EXPECT_TRUE(repeat({{0, 7, 0}}));
  EXPECT_TRUE(repeat({{143}, {1, 143}}));
  EXPECT_FALSE(repeat({{143}, {1, 142}}));
}

}  // namespace
}  // namespace broadhead::test
