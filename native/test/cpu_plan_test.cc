// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include "cpu/plan.h"

namespace broadhead::cpu {
namespace {

/// Tokens times heads of a group are 2^31: no item takes them all.
TEST(CpuPlan, CountsQueryRowsIn64Bits) {
  LayerSpec spec{};
  spec.num_heads = 1 << 14;
  spec.num_kv_heads = 1;
  spec.head_size = 32;
  spec.attn_type = BH_ENCODER_ONLY;
  StepRow row{};
  row.num_queries = 1 << 17;
  Step step{};
  step.rows = &row;
  step.num_rows = 1;
  Plan plan;
  plan.plan_attention(spec, step, 0, 1);
  ASSERT_EQ(std::ssize(plan.items()), row.num_queries);
  for (const AttendItem& item : plan.items()) ASSERT_EQ(item.num_tokens, 1);
}

}  // namespace
}  // namespace broadhead::cpu
