// SPDX-License-Identifier: Apache-2.0
// Memory that the system refuses, at each allocation in turn: the call says so and leaves nothing
// behind, and what was there before goes on as if it had not been made.
#include <gtest/gtest.h>
#include <sys/mman.h>

#include <cerrno>
#include <cstdlib>
#include <new>

#include "harness.h"
#include "random.h"

namespace {

constexpr int64_t kUnlimited = -1;

/// Allocations that the calling thread is still granted.
thread_local int64_t granted = kUnlimited;

bool is_refused() {
  if (granted == kUnlimited) return false;
  if (granted == 0) return true;
  --granted;
  return false;
}

}  // namespace

// The linker binds this program's calls of NAME to __wrap_NAME. _Znwm is operator new(size_t).
extern "C" {
void* __real__Znwm(size_t size);
void* __wrap__Znwm(size_t size) {
  if (is_refused()) throw std::bad_alloc();
  return __real__Znwm(size);
}

void* __real_aligned_alloc(size_t alignment, size_t size);
void* __wrap_aligned_alloc(size_t alignment, size_t size) {
  return is_refused() ? nullptr : __real_aligned_alloc(alignment, size);
}

void* __real_mmap(void* at, size_t size, int access, int flags, int file, off_t offset);
void* __wrap_mmap(void* at, size_t size, int access, int flags, int file, off_t offset) {
  if (!is_refused()) return __real_mmap(at, size, access, flags, file, offset);
  errno = ENOMEM;
  return MAP_FAILED;
}
}

namespace broadhead::test {
namespace {

/// What call() returns where only `allocations` are granted to it.
template <class Call>
auto grant(int64_t allocations, Call&& call) {
  granted = allocations;
  auto result = call();
  granted = kUnlimited;
  return result;
}

/// Grants call() 0, 1, 2, ... allocations until it succeeds; the others must be refused.
template <class Call>
void refuse_each(Call&& call) {
  int32_t status = BH_OUT_OF_MEMORY;
  int64_t allocations = 0;
  for (; status != BH_OK; ++allocations) {
    status = grant(allocations, call);
    if (status != BH_OK) {
      ASSERT_EQ(status, BH_OUT_OF_MEMORY) << "after " << allocations << " allocations";
    }
  }
  EXPECT_GT(allocations, 1) << "it allocates something";
}

constexpr int kBlocks = 24;
constexpr int kBlockSize = 16;

bh_cache_options pool_of(const LayerConfig& layer) {
  bh_cache_options pool{};
  pool.struct_size = sizeof pool;
  pool.num_blocks = layer.uses_cache() ? kBlocks : 0;
  pool.block_size = kBlockSize;
  pool.num_kv_heads = layer.num_kv_heads;
  pool.head_size = layer.head_size;
  pool.dtype = layer.dtype;
  return pool;
}

/// Two rows that share a prefix, and a prompt: every kind of work of a step.
StepBatch batch_of(const LayerConfig& layer) {
  Random random("allocation");
  auto row = [&](int32_t tokens, int32_t seq_len, std::vector<int32_t> blocks) {
    return random_row(random, layer, tokens, seq_len, std::move(blocks), kBlockSize);
  };
  return {{row(1, 160, {0, 1, 2, 3, 4, 5, 6, 7, 8, 10}),
           row(1, 160, {0, 1, 2, 3, 4, 5, 6, 7, 8, 11}), row(40, 40, {20, 21, 22})}};
}

/// What allocates is the same in every tier.
class Allocation : public testing::Test {
 protected:
  void SetUp() override {
    std::string reason;
    if (!open_engine(target_, 1, reason)) GTEST_SKIP() << reason;
  }

  static LayerConfig config() {
    LayerConfig config;
    config.num_heads = 2;
    config.num_kv_heads = 1;
    config.head_size = 32;
    config.alibi_slopes = {0.5f, 0.25f};
    config.set_rope(32, true, 200);
    return config;
  }

  const Target target_ = targets().back();
};

TEST_F(Allocation, HandlesAreWholeOrNotThere) {
  bh_error error{};
  bh_engine_options engine_options{};
  engine_options.struct_size = sizeof engine_options;
  engine_options.backend = target_.backend.c_str();
  engine_options.device = target_.device;
  engine_options.threads = 3;
  bh_engine* engine = nullptr;
  refuse_each([&] { return bh_engine_create(&engine_options, &engine, &error); });
  const Engine engine_owner(engine);
  EXPECT_EQ(bh_live_handles(), 1);

  const LayerConfig config = Allocation::config();
  const bh_cache_options pool = pool_of(config);
  bh_cache* cache = nullptr;
  refuse_each([&] { return bh_cache_create(engine, &pool, &cache, &error); });
  const Cache cache_owner(cache);
  EXPECT_EQ(bh_live_handles(), 2);

  bh_rope rope;
  const bh_layer_options layer_options = config.options(rope);
  bh_layer* layer = nullptr;
  refuse_each([&] { return bh_layer_create(engine, &layer_options, cache, &layer, &error); });
  const Layer layer_owner(layer);
  EXPECT_EQ(bh_live_handles(), 3);

  const Field schema = step_schema(config, batch_of(config));
  bh_binding* binding = nullptr;
  ArrowSchema exported{};
  refuse_each([&] {
    const int64_t left = std::exchange(granted, kUnlimited);
    exported = export_schema(schema);
    granted = left;
    return bh_binding_create(layer, &exported, &binding, &error);
  });
  const Binding binding_owner(binding);
  EXPECT_EQ(bh_live_handles(), 4);
}

TEST_F(Allocation, StepsAreDoneOrLeaveNoTrace) {
  for (const int attn_type : {BH_DECODER, BH_ENCODER}) {
    for (const bool begins : {false, true}) {
      LayerConfig config = Allocation::config();
      config.attn_type = attn_type;
      const StepBatch batch = batch_of(config);
      int32_t status = BH_OUT_OF_MEMORY;
      int64_t allocations = 0;
      for (; status != BH_OK; ++allocations) {
        SCOPED_TRACE(allocations);
        Session session(target_, 2, config, pool_of(config));
        Random random("cache");
        session.fill_cache(random);
        const Binding binding = make_binding(session.layer(), step_schema(config, batch));
        StepResult result(config, batch);
        ArrowArray array = export_array(step_array(config, batch));
        const bh_step_part part = {&array, result.array()};
        bh_pending_step* pending = nullptr;
        bh_error error{};
        status = grant(allocations, [&] {
          return begins ? bh_step_begin(binding.get(), &part, 1, &pending, &error)
                        : bh_step_parts(binding.get(), &part, 1, nullptr, &error);
        });
        EXPECT_EQ(array.release, nullptr);
        if (pending) {
          EXPECT_EQ(bh_step_end(pending, nullptr, &error), BH_OK);
        }
        if (status != BH_OK) {
          ASSERT_EQ(status, BH_OUT_OF_MEMORY) << error.message;
          EXPECT_TRUE(result.untouched());
          if (session.mirror()) compare_cache(config, session.cache(), *session.mirror());
        }
        session.step(batch);
        ASSERT_LE(session.worst(), 1);
      }
      EXPECT_GT(allocations, 10);
    }
  }
}

TEST_F(Allocation, HostMemoryIsGivenBack) {
  constexpr int64_t kLarge = int64_t{4} << 20;
  std::string reason;
  const Engine engine = open_engine(target_, 1, reason);
  auto allocate = [&] { return bh_engine_alloc(engine.get(), kLarge); };
  auto free = [&](int64_t address) {
    return grant(0, [&] {
      bh_engine_free(engine.get(), address);
      return 0;
    });
  };
  EXPECT_EQ(grant(0, allocate), 0);
  int64_t address = 0;
  for (int64_t few = 1; !address; ++few) address = grant(few, allocate);
  free(address);
  EXPECT_EQ(grant(0, allocate), address) << "reuse allocates nothing";
}

}  // namespace
}  // namespace broadhead::test
