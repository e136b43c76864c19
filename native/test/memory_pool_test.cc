// SPDX-License-Identifier: Apache-2.0
#include "core/memory_pool.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <cstring>
#include <limits>
#include <optional>

#include "broadhead/broadhead.h"

namespace broadhead {
namespace {

/// Memory of the C library, counted; refuses more than 64 KiB.
struct Counted {
  struct Memory {
    char* host;
  };
  static constexpr int kSmallest = 12;
  static constexpr int64_t kMostKept = 20 << 10;

  int* live;

  std::optional<Memory> allocate(int64_t bytes) {
    if (bytes > 64 << 10) return std::nullopt;
    ++*live;
    return Memory{static_cast<char*>(std::malloc(static_cast<size_t>(bytes)))};
  }
  void release(const Memory& memory) {
    --*live;
    std::free(memory.host);
  }
};

TEST(MemoryPool, KeepsWhatIsFreedUpToItsLimit) {
  int live = 0;
  {
    MemoryPool<Counted> pool(Counted{&live});
    void* large = pool.allocate(9 << 10);
    void* small = pool.allocate(1);
    EXPECT_TRUE(pool.free(large));
    EXPECT_EQ(pool.allocate(16 << 10), large);
    void* other = pool.allocate((8 << 10) + 1);
    EXPECT_NE(other, large);
    EXPECT_EQ(live, 3);

    EXPECT_TRUE(pool.free(large));
    EXPECT_TRUE(pool.free(small));
    EXPECT_EQ(live, 3);
    EXPECT_TRUE(pool.free(other));  // with it 36 KiB would be kept
    EXPECT_EQ(live, 2);
    EXPECT_FALSE(pool.free(small));
    ASSERT_NE(pool.allocate(4 << 10), nullptr);  // and stays in use
  }
  EXPECT_EQ(live, 0);
}

TEST(MemoryPool, AnswersNullWhereItsSourceRefuses) {
  int live = 0;
  MemoryPool<Counted> pool(Counted{&live});
  EXPECT_EQ(pool.allocate((64 << 10) + 1), nullptr);
  EXPECT_EQ(pool.allocate(std::numeric_limits<int64_t>::max()), nullptr);
}

TEST(HostMemory, OfAnEngineIsReusedWhereItIsLarge) {
  bh_engine_options options{};
  options.struct_size = sizeof options;
  options.backend = "cpu";
  options.threads = 1;
  bh_engine* engine = nullptr;
  ASSERT_EQ(bh_engine_create(&options, &engine, nullptr), BH_OK);
  auto written = [engine](int64_t bytes) {
    const int64_t address = bh_engine_alloc(engine, bytes);
    EXPECT_NE(address, 0);
    EXPECT_EQ(address % 64, 0);
    std::memset(reinterpret_cast<void*>(address), 0xff, static_cast<size_t>(bytes));
    bh_engine_free(engine, address);
    return address;
  };
  written(1);
  written(100);
  EXPECT_EQ(written(3 << 20), written(4 << 20));
  bh_engine_destroy(engine);
}

}  // namespace
}  // namespace broadhead
