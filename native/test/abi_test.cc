// SPDX-License-Identifier: Apache-2.0
// The C ABI besides the step itself: versions, handles, options, block contents, merges.
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <thread>

#include "harness.h"
#include "number_format.h"
#include "random.h"
#include "summary.h"

namespace broadhead::test {
namespace {

TEST(Version, IsTheHeaders) { EXPECT_EQ(bh_abi_version(), BH_ABI_VERSION); }

TEST(Backends, AreDescribed) {
  ASSERT_GE(bh_backend_count(), 1);
  for (int32_t i = 0; i < bh_backend_count(); ++i) {
    bh_backend_info info{};
    ASSERT_EQ(bh_backend_describe(i, &info), BH_OK);
    EXPECT_STRNE(info.name, "");
    EXPECT_STRNE(info.reason, "") << info.name;
  }
  bh_backend_info info{};
  EXPECT_EQ(bh_backend_describe(-1, &info), BH_INVALID_ARGUMENT);
  EXPECT_EQ(bh_backend_describe(bh_backend_count(), &info), BH_INVALID_ARGUMENT);
  EXPECT_EQ(bh_backend_describe(0, nullptr), BH_INVALID_ARGUMENT);
}

TEST(Memory, IsAlignedAndFreed) {
  for (const int64_t alignment : {int64_t{8}, int64_t{64}, int64_t{4096}}) {
    const int64_t address = bh_alloc(1000, alignment);
    ASSERT_NE(address, 0);
    EXPECT_EQ(address % alignment, 0);
    std::memset(reinterpret_cast<void*>(address), 1, 1000);
    bh_free(address);
  }
  const int64_t empty = bh_alloc(0, 64);
  EXPECT_NE(empty, 0);
  bh_free(empty);
  bh_free(0);
  EXPECT_EQ(bh_alloc(16, 48), 0);
  EXPECT_EQ(bh_alloc(16, 0), 0);
  EXPECT_EQ(bh_alloc(-1, 64), 0);
}

TEST(Handles, AcceptNull) {
  bh_engine_destroy(nullptr);
  bh_cache_destroy(nullptr);
  bh_layer_destroy(nullptr);
  bh_binding_destroy(nullptr);
  EXPECT_EQ(bh_cache_bytes(nullptr), 0);
  EXPECT_EQ(bh_cache_block_bytes(nullptr), 0);
}

/// What a refused call must say.
void expect_refused(int32_t status, const bh_error& error, int32_t expected,
                    const std::vector<std::string>& mentions) {
  EXPECT_EQ(status, expected) << error.message;
  EXPECT_EQ(error.code, expected);
  EXPECT_EQ(error.row, -1);
  for (const std::string& text : mentions) {
    EXPECT_NE(std::string(error.message).find(text), std::string::npos)
        << "expected '" << text << "' in: " << error.message;
  }
}

TEST(Engine, RefusesBadOptions) {
  auto refuse = [](const char* name, std::function<void(bh_engine_options&)> change,
                   std::vector<std::string> mentions) {
    SCOPED_TRACE(name);
    bh_engine_options options{};
    options.struct_size = sizeof options;
    options.backend = "cpu";
    change(options);
    bh_engine* engine = nullptr;
    bh_error error{};
    const int32_t status = bh_engine_create(&options, &engine, &error);
    expect_refused(status, error, BH_INVALID_ARGUMENT, mentions);
    EXPECT_EQ(engine, nullptr);
    EXPECT_EQ(bh_engine_create(&options, &engine, nullptr), BH_INVALID_ARGUMENT) << "no error";
  };
  using O = bh_engine_options;
  refuse("size", [](O& o) { o.struct_size = 4; }, {"struct_size", "got 4"});
  refuse("backend", [](O& o) { o.backend = "quantum"; }, {"backend", "cpu", "quantum"});
  refuse("threads", [](O& o) { o.threads = -1; }, {"threads", "-1"});
  refuse("more threads", [](O& o) { o.threads = (1 << 15) + 1; },
         {"threads", "at most 32768", "got 32769"});
  bh_error error{};
  bh_engine* engine = nullptr;
  expect_refused(bh_engine_create(nullptr, &engine, &error), error, BH_INVALID_ARGUMENT,
                 {"options"});
}

TEST(Engine, HasDefaults) {
  bh_engine_options options{};
  options.struct_size = sizeof options;
  options.device = -1;
  bh_engine* engine = nullptr;
  bh_error error{};
  ASSERT_EQ(bh_engine_create(&options, &engine, &error), BH_OK) << error.message;
  const Engine owner(engine);
  bh_engine_info info{};
  ASSERT_EQ(bh_engine_describe(engine, &info), BH_OK);
  const auto cores = static_cast<int>(std::thread::hardware_concurrency());
  EXPECT_EQ(info.threads, std::string(info.backend) == "cpu" ? std::max(1, cores) : 1);
}

TEST(Engine, RefusesUnknownTier) {
  if (options().backend != "cpu") GTEST_SKIP() << "tiers are the CPU's";
  std::string reason;
  EXPECT_EQ(open_engine({"cpu", "avx1024"}, 1, reason), nullptr);
  EXPECT_NE(reason.find("BROADHEAD_CPU_TIER"), std::string::npos) << reason;
  EXPECT_NE(reason.find(targets().back().tier), std::string::npos) << reason;
  EXPECT_NE(reason.find("avx1024"), std::string::npos) << reason;
}

/// Threads do not come along with a fork: those that an engine waits for are not there.
TEST(Engine, MayBeUsedAndDestroyedInAForkedChild) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "a fork may leave the sanitizer's own locks locked";
#endif
  auto run_and_destroy = [](bh_engine* engine) {
    std::vector<char> source(1 << 16, 1), target(1 << 16);
    int64_t nanoseconds = 0;
    const int32_t status =
        bh_probe_copy(engine, source.data(), target.data(), 1 << 16, &nanoseconds, nullptr);
    bh_engine_destroy(engine);
    return status == BH_OK && source == target;
  };
  bh_engine_options options{};
  options.struct_size = sizeof options;
  options.backend = "cpu";
  options.threads = 3;
  auto create = [&options] {
    bh_engine* engine = nullptr;
    bh_engine_create(&options, &engine, nullptr);
    return engine;
  };
  bh_engine* engine = create();
  const pid_t child = fork();
  if (child == 0) {
    alarm(60);
#if defined(__aarch64__)
    options.threads = 1;  // QEMU, which may be what runs this, starts no threads in a child
#endif
    _exit(run_and_destroy(engine) && run_and_destroy(create()) ? 0 : 1);
  }
  int status = -1;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
  EXPECT_TRUE(run_and_destroy(engine));
}

TEST(Engine, TellsWhyNoBackendIsUsable) {
  std::string reason;
  if (open_engine({"auto", "avx1024"}, 1, reason)) GTEST_SKIP() << "there is a GPU";
  EXPECT_EQ(reason.find("no backend is usable here; cuda: "), 0u) << reason;
  EXPECT_NE(reason.find("; hip: "), std::string::npos) << reason;
  EXPECT_NE(reason.find("; cpu: BROADHEAD_CPU_TIER"), std::string::npos) << reason;
}

class Abi : public TargetTest {};

TEST_P(Abi, DescribesItsEngine) {
  BH_OPEN_OR_SKIP(engine, GetParam(), 3);
  bh_engine_info info{};
  ASSERT_EQ(bh_engine_describe(engine.get(), &info), BH_OK);
  EXPECT_EQ(info.backend, GetParam().backend);
  EXPECT_TRUE(GetParam().tier.empty() || info.tier == GetParam().tier) << info.tier;
  EXPECT_EQ(info.threads, GetParam().backend == "cpu" ? 3 : 1);
  EXPECT_STRNE(info.reason, "");
  EXPECT_EQ(bh_engine_describe(engine.get(), nullptr), BH_INVALID_ARGUMENT);
  EXPECT_EQ(bh_engine_describe(nullptr, &info), BH_INVALID_ARGUMENT);
}

bh_cache_options small_pool() {
  bh_cache_options pool{};
  pool.struct_size = sizeof pool;
  pool.num_blocks = 5;
  pool.block_size = 48;
  pool.num_kv_heads = 3;
  pool.head_size = 80;
  pool.dtype = BH_FLOAT16;
  return pool;
}

TEST_P(Abi, CountsLiveHandles) {
  BH_OPEN_OR_SKIP(engine, GetParam(), 1);
  EXPECT_EQ(bh_live_handles(), 1);
  LayerConfig config;
  config.num_heads = config.num_kv_heads = 3;
  config.head_size = 80;
  Cache cache = make_cache(engine.get(), small_pool());
  EXPECT_EQ(bh_live_handles(), 2);
  Layer layer = make_layer(engine.get(), config, cache.get());
  EXPECT_EQ(bh_live_handles(), 3);
  Binding binding = make_binding(layer.get(), step_schema(config, {}));
  EXPECT_EQ(bh_live_handles(), 4);
  binding.reset();
  layer.reset();
  cache.reset();
  EXPECT_EQ(bh_live_handles(), 1);
}

TEST_P(Abi, RefusesBadCacheOptions) {
  BH_OPEN_OR_SKIP(engine, GetParam(), 1);
  auto refuse = [&](const char* name, std::function<void(bh_cache_options&)> change, int32_t status,
                    std::vector<std::string> mentions) {
    SCOPED_TRACE(name);
    bh_cache_options pool = small_pool();
    change(pool);
    bh_cache* cache = nullptr;
    bh_error error{};
    expect_refused(bh_cache_create(engine.get(), &pool, &cache, &error), error, status, mentions);
    EXPECT_EQ(cache, nullptr);
  };
  using O = bh_cache_options;
  // clang-format off
  refuse("size", [](O& o) { o.struct_size = 0; }, BH_INVALID_ARGUMENT, {"struct_size", "got 0"});
  refuse("no blocks", [](O& o) { o.num_blocks = 0; }, BH_INVALID_ARGUMENT, {"num_blocks", "got 0"});
  refuse("negative blocks", [](O& o) { o.num_blocks = -4; }, BH_INVALID_ARGUMENT, {"num_blocks", "-4"});
  refuse("more blocks than ids", [](O& o) { o.num_blocks = int64_t{1} << 31; }, BH_INVALID_ARGUMENT, {"num_blocks", "2147483648"});
  refuse("block size 0", [](O& o) { o.block_size = 0; }, BH_INVALID_ARGUMENT, {"block_size", "multiple of 16", "got 0"});
  refuse("block size 24", [](O& o) { o.block_size = 24; }, BH_INVALID_ARGUMENT, {"block_size", "multiple of 16", "got 24"});
  refuse("block size -16", [](O& o) { o.block_size = -16; }, BH_INVALID_ARGUMENT, {"block_size", "got -16"});
  refuse("no heads", [](O& o) { o.num_kv_heads = 0; }, BH_INVALID_ARGUMENT, {"num_kv_heads", "got 0"});
  refuse("head size", [](O& o) { o.head_size = 72; }, BH_INVALID_ARGUMENT, {"head_size", "32 64 80", "got 72"});
  refuse("dtype", [](O& o) { o.dtype = 9; }, BH_INVALID_ARGUMENT, {"dtype", "got 9"});
  refuse("as many blocks as ids", [](O& o) { o.num_blocks = INT32_MAX; }, BH_OUT_OF_MEMORY, {"num_blocks", "2147483647 blocks"});
  refuse("bytes beyond 64 bits", [](O& o) { o.block_size = o.num_kv_heads = 1 << 30; o.head_size = 64; }, BH_INVALID_ARGUMENT, {"kv_cache: 5 blocks of 1073741824 tokens", "bytes"});
  if (GetParam().backend == "cpu") {  // a system may promise more than it has
    const int64_t memory = int64_t{sysconf(_SC_PHYS_PAGES)} * sysconf(_SC_PAGE_SIZE);
    refuse("a block more than the machine has", [&](O& o) { o.num_blocks = memory / (2 * 48 * 3 * 80 * 2) + 1; }, BH_OUT_OF_MEMORY, {"num_blocks", "this machine has"});
  }
  refuse("more than the machine has", [](O& o) { o.num_blocks = 2000000000; o.block_size = 1600; }, BH_OUT_OF_MEMORY, {"num_blocks", "GiB"});
  // clang-format on
}

TEST_P(Abi, RefusesBadLayerOptions) {
  BH_OPEN_OR_SKIP(engine, GetParam(), 1);
  const std::vector<float> numbers(8, NAN);
  const std::vector<float> infinite(8, HUGE_VALF);
  LayerConfig config;
  config.set_rope(64, true, 10);
  bh_cache_options pool = small_pool();
  pool.num_kv_heads = config.num_kv_heads;
  pool.head_size = config.head_size;
  const Cache cache = make_cache(engine.get(), pool);
  bh_rope rope;
  auto refuse = [&](const char* name, std::function<void(bh_layer_options&)> change,
                    std::vector<std::string> mentions) {
    SCOPED_TRACE(name);
    bh_layer_options options = config.options(rope);
    change(options);
    if (options.name && options.struct_size == sizeof options) mentions.push_back("layer");
    bh_layer* layer = nullptr;
    bh_error error{};
    const int32_t status = bh_layer_create(engine.get(), &options, cache.get(), &layer, &error);
    expect_refused(status, error, BH_INVALID_ARGUMENT, mentions);
    EXPECT_EQ(layer, nullptr);
    const int32_t supported =
        bh_layer_supported(engine.get(), &options, BH_FLOAT16, pool.block_size, &error);
    EXPECT_EQ(supported, BH_INVALID_ARGUMENT);
  };
  using O = bh_layer_options;
  // clang-format off
  refuse("size", [](O& o) { o.struct_size = 8; }, {"struct_size", "got 8"});
  refuse("name", [](O& o) { o.name = nullptr; }, {"name"});
  refuse("no heads", [](O& o) { o.num_heads = 0; }, {"num_heads", "got 0"});
  refuse("heads of no group", [](O& o) { o.num_heads = 7; }, {"num_heads", "multiple of num_kv_heads 2", "got 7"});
  refuse("more heads than a tensor holds", [](O& o) { o.num_heads = 1 << 26; }, {"num_heads", "at most 33554431", "got 67108864"});
  refuse("no KV heads", [](O& o) { o.num_kv_heads = 0; }, {"num_kv_heads", "got 0"});
  refuse("head size", [](O& o) { o.head_size = 48; }, {"head_size", "32 64 80 96 128 160 192 224 256", "got 48"});
  refuse("negative attn_type", [](O& o) { o.attn_type = -1; }, {"attn_type", "got -1"});
  refuse("attn_type", [](O& o) { o.attn_type = 4; }, {"attn_type", "got 4"});
  refuse("dtype", [](O& o) { o.dtype = BH_FLOAT8_E4M3FN; }, {"dtype", "float32, float16 or bfloat16", "fp8_e4m3"});
  refuse("unknown dtype", [](O& o) { o.dtype = 17; }, {"dtype"});
  refuse("scale NaN", [](O& o) { o.scale = NAN; }, {"scale", "nan"});
  refuse("scale infinite", [](O& o) { o.scale = HUGE_VALF; }, {"scale", "inf"});
  refuse("window", [](O& o) { o.sliding_window = -1; }, {"sliding_window", "got -1"});
  refuse("soft cap", [](O& o) { o.logits_soft_cap = -3; }, {"logits_soft_cap", "-3"});
  refuse("infinite soft cap", [](O& o) { o.logits_soft_cap = HUGE_VALF; }, {"logits_soft_cap", "inf"});
  refuse("soft cap NaN", [](O& o) { o.logits_soft_cap = NAN; }, {"logits_soft_cap", "nan"});
  refuse("k_scale", [](O& o) { o.k_scale = 0; }, {"k_scale", "got 0"});
  refuse("infinite k_scale", [](O& o) { o.k_scale = HUGE_VALF; }, {"k_scale must be positive", "inf"});
  refuse("infinite v_scale", [](O& o) { o.v_scale = HUGE_VALF; }, {"v_scale must be positive", "inf"});
  refuse("v_scale", [](O& o) { o.v_scale = -1; }, {"v_scale", "-1"});
  refuse("v_scale NaN", [](O& o) { o.v_scale = NAN; }, {"v_scale", "nan"});
  refuse("output_scale", [](O& o) { o.output_scale = -0.5f; }, {"output_scale", "-0.5"});
  refuse("infinite output_scale", [](O& o) { o.output_scale = HUGE_VALF; }, {"output_scale", "inf"});
  refuse("slopes", [&](O& o) { o.alibi_slopes = numbers.data(); }, {"alibi_slopes", "nan"});
  refuse("infinite slopes", [&](O& o) { o.alibi_slopes = infinite.data(); }, {"alibi_slopes", "inf"});
  refuse("sinks", [&](O& o) { o.sinks = numbers.data(); }, {"sinks", "nan"});
  refuse("infinite sinks", [&](O& o) { o.sinks = infinite.data(); }, {"sinks", "inf"});
  refuse("odd rotary_dim", [&](O&) { rope.rotary_dim = 7; }, {"rotary_dim", "got 7"});
  refuse("no rotary_dim", [&](O&) { rope.rotary_dim = 0; }, {"rotary_dim", "got 0"});
  refuse("large rotary_dim", [&](O&) { rope.rotary_dim = 66; }, {"rotary_dim", "head_size 64", "got 66"});
  refuse("max_position", [&](O&) { rope.max_position = 0; }, {"max_position", "got 0"});
  refuse("positions beyond memory", [&](O&) { rope.max_position = INT64_MAX; }, {"max_position must be 1 .. ", "got 9223372036854775807"});
  refuse("cos_sin", [&](O&) { rope.cos_sin = nullptr; }, {"cos_sin"});
  refuse("v_scale without fp8", [](O& o) { o.v_scale = 2; }, {"v_scale", "fp8", "float16"});
  refuse("scales without fp8", [](O& o) { o.k_scale = 2; }, {"k_scale", "fp8", "float16"});
  refuse("encoder with a cache", [](O& o) { o.attn_type = BH_ENCODER; }, {"cache"});
  // clang-format on

  bh_layer_options options = config.options(rope);
  bh_layer* layer = nullptr;
  bh_error error{};
  expect_refused(bh_layer_create(engine.get(), &options, nullptr, &layer, &error), error,
                 BH_INVALID_ARGUMENT, {"layer", "cache"});
  options.attn_type = BH_ENCODER;
  options.read_only_cache = 1;
  expect_refused(bh_layer_create(engine.get(), &options, nullptr, &layer, &error), error,
                 BH_INVALID_ARGUMENT, {"layer", "no KV cache", "read_only_cache"});
  options.read_only_cache = 0;
  options.v_scale = 2;
  expect_refused(bh_layer_create(engine.get(), &options, nullptr, &layer, &error), error,
                 BH_INVALID_ARGUMENT, {"layer", "v_scale", "fp8", "1 and 2 with no cache"});
  options = config.options(rope);
  options.num_kv_heads = 4;
  expect_refused(bh_layer_create(engine.get(), &options, cache.get(), &layer, &error), error,
                 BH_INVALID_ARGUMENT, {"2 KV heads of 64", "4 of 64"});
  config.head_size = 128;
  options = config.options(rope);
  expect_refused(bh_layer_create(engine.get(), &options, cache.get(), &layer, &error), error,
                 BH_INVALID_ARGUMENT, {"2 KV heads of 64", "2 of 128"});
  EXPECT_EQ(bh_layer_supported(engine.get(), &options, BH_FLOAT8_E5M2, 544, &error), BH_OK);
  for (const int block_size : {17, 0, -16}) {
    expect_refused(bh_layer_supported(engine.get(), &options, BH_FLOAT16, block_size, &error),
                   error, BH_INVALID_ARGUMENT, {"block_size", std::to_string(block_size)});
  }
  expect_refused(bh_layer_supported(engine.get(), &options, 0, 0, &error), error,
                 BH_INVALID_ARGUMENT, {"layer: the layer needs a KV cache, got none"});
  for (const int dtype : {-1, 9}) {
    expect_refused(bh_layer_supported(engine.get(), &options, dtype, 16, &error), error,
                   BH_INVALID_ARGUMENT, {"dtype", "1 .. 5", "got " + std::to_string(dtype)});
  }
}

/// However long a name is, the message ends, and not within a character.
TEST_P(Abi, CutsLongMessages) {
  BH_OPEN_OR_SKIP(engine, GetParam(), 1);
  bh_rope rope;
  bh_layer_options options = LayerConfig{}.options(rope);
  options.num_heads = 7;
  for (const std::string character : {"n", "\u00f6", "\u5c42", "\U0001f9e9"}) {
    std::string name;
    while (name.size() < 5000) name += character;
    options.name = name.c_str();
    bh_error error;
    std::memset(&error, 'x', sizeof error);
    EXPECT_EQ(bh_layer_supported(engine.get(), &options, BH_FLOAT32, 16, &error),
              BH_INVALID_ARGUMENT);
    const std::string message = error.message;
    EXPECT_EQ(message, name.substr(0, message.size()));
    EXPECT_EQ(message.size() % character.size(), 0u);
    EXPECT_GT(message.size(), sizeof error.message - 1 - 2 * character.size());
  }
}

/// What grids and 32-bit offsets of a GPU do not hold is refused before there is a step.
TEST_P(Abi, LayersFitTheirBackend) {
  BH_OPEN_OR_SKIP(engine, GetParam(), 1);
  auto check = [&](int num_heads, int num_kv_heads, int head_size, int dtype,
                   const std::string& refused) {
    SCOPED_TRACE(num_heads);
    LayerConfig config;
    config.attn_type = BH_ENCODER;
    config.num_heads = num_heads;
    config.num_kv_heads = num_kv_heads;
    config.head_size = head_size;
    config.dtype = dtype;
    bh_rope rope;
    const bh_layer_options options = config.options(rope);
    bh_layer* layer = nullptr;
    bh_error error{};
    const int32_t status = bh_layer_create(engine.get(), &options, nullptr, &layer, &error);
    const Layer owner(layer);
    if (GetParam().backend == "cpu" || refused.empty()) {
      EXPECT_EQ(status, BH_OK) << error.message;
    } else {
      expect_refused(status, error, BH_UNSUPPORTED, {"layer", refused});
    }
    EXPECT_EQ(bh_layer_supported(engine.get(), &options, 0, 0, &error), status);
  };
  check(65535, 65535, 32, BH_FLOAT16, "");
  check(65536, 65536, 32, BH_FLOAT16, "num_kv_heads must be at most 65535");
  check(65536, 65536, 32, BH_FLOAT32, "num_kv_heads must be at most 65535");
  check(65537, 1, 32, BH_FLOAT16, "65537 groups");  // a prime number
  check(33554431, 1, 64, BH_FLOAT16, "groups");
  check(1 << 22, 1 << 15, 256, BH_FLOAT16, "num_heads");

  bh_rope rope;
  const bh_layer_options options = LayerConfig{}.options(rope);
  bh_error error{};
  auto supported = [&](int block_size) {
    return bh_layer_supported(engine.get(), &options, BH_FLOAT32, block_size, &error);
  };
  EXPECT_EQ(supported((1 << 23) - 16), BH_OK) << error.message;
  if (GetParam().backend == "cpu") {
    EXPECT_EQ(supported(1 << 23), BH_OK) << error.message;
  } else {
    expect_refused(supported(1 << 23), error, BH_UNSUPPORTED,
                   {"layer", "kv_cache.block_size must be at most 8388607", "got 8388608"});
  }
}

TEST_P(Abi, CachesBelongToTheirEngine) {
  BH_OPEN_OR_SKIP(engine, GetParam(), 1);
  const Engine other = open_engine(GetParam(), 1, skip_reason);
  LayerConfig config;
  bh_cache_options pool = small_pool();
  pool.num_kv_heads = config.num_kv_heads;
  pool.head_size = config.head_size;
  const Cache cache = make_cache(engine.get(), pool);
  bh_rope rope;
  const bh_layer_options options = config.options(rope);
  bh_layer* layer = nullptr;
  bh_error error{};
  expect_refused(bh_layer_create(other.get(), &options, cache.get(), &layer, &error), error,
                 BH_INVALID_ARGUMENT, {"cache belongs to another engine"});
  const int32_t block = 0;
  int64_t nanoseconds = 0;
  expect_refused(bh_probe_read(other.get(), cache.get(), &block, 1, &nanoseconds, &error), error,
                 BH_INVALID_ARGUMENT, {"cache belongs to another engine"});
}

// ---- block contents ----

Bytes random_bytes(Random& random, int64_t count) {
  Bytes bytes(static_cast<size_t>(count));
  for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(random.next());
  return bytes;
}

/// Blocks leave one cache and enter another one, as in a swap to the host and back.
TEST_P(Abi, BlocksRoundTrip) {
  BH_OPEN_OR_SKIP(engine, GetParam(), 1);
  Random random("blocks");
  for (int dtype = BH_FLOAT32; dtype <= BH_FLOAT8_E5M2; ++dtype) {
    for (const int block_size : {16, 48, 544}) {
      SCOPED_TRACE(dtype_label(dtype) + " " + std::to_string(block_size));
      bh_cache_options pool = small_pool();
      pool.dtype = dtype;
      pool.block_size = block_size;
      const Cache cache = make_cache(engine.get(), pool);
      const Cache other = make_cache(engine.get(), pool);
      const int64_t bytes = bh_cache_block_bytes(cache.get());
      EXPECT_EQ(bytes, int64_t{block_size} * 3 * 80 * element_bytes(dtype));
      EXPECT_GE(bh_cache_bytes(cache.get()), 2 * bytes * pool.num_blocks);
      Bytes keys(static_cast<size_t>(bytes), 0xff), values(keys);
      bh_error error{};
      auto read = [&](const Cache& from, int64_t block) {
        ASSERT_EQ(bh_cache_read_block(from.get(), block, keys.data(), values.data(), &error), BH_OK)
            << error.message;
      };
      const Bytes zeros(keys.size(), 0);
      read(cache, 3);
      EXPECT_EQ(keys, zeros) << "slots are zero until they are written";
      EXPECT_EQ(values, zeros);

      std::vector<std::pair<Bytes, Bytes>> blocks;
      for (int64_t b = 0; b < pool.num_blocks; ++b) {
        blocks.emplace_back(random_bytes(random, bytes), random_bytes(random, bytes));
        ASSERT_EQ(bh_cache_write_block(cache.get(), b, blocks.back().first.data(),
                                       blocks.back().second.data(), &error),
                  BH_OK);
      }
      for (int64_t b = 0; b < pool.num_blocks; ++b) {
        read(cache, b);
        EXPECT_EQ(keys, blocks[static_cast<size_t>(b)].first);
        EXPECT_EQ(values, blocks[static_cast<size_t>(b)].second);
        ASSERT_EQ(bh_cache_write_block(other.get(), 4 - b, keys.data(), values.data(), &error),
                  BH_OK);
      }
      read(other, 0);
      EXPECT_EQ(keys, blocks[4].first);
      // Copies happen in order: block 1 is a copy of 4 when it is copied on.
      const std::vector<int64_t> source = {4, 1, 2}, target = {1, 0, 2};
      ASSERT_EQ(bh_cache_copy_blocks(cache.get(), source.data(), target.data(), 3, &error), BH_OK);
      for (const auto& [block, same_as] : {std::pair{0, 4}, {1, 4}, {2, 2}, {3, 3}, {4, 4}}) {
        read(cache, block);
        EXPECT_EQ(keys, blocks[static_cast<size_t>(same_as)].first) << block;
        EXPECT_EQ(values, blocks[static_cast<size_t>(same_as)].second) << block;
      }
    }
  }
}

TEST_P(Abi, RefusesBadBlocks) {
  BH_OPEN_OR_SKIP(engine, GetParam(), 1);
  const Cache cache = make_cache(engine.get(), small_pool());
  const auto bytes = static_cast<size_t>(bh_cache_block_bytes(cache.get()));
  Bytes keys(bytes, 1), values(bytes, 1);
  const Bytes ones = keys;
  bh_error error{};
  for (const int64_t block : {int64_t{-1}, int64_t{5}, INT64_MAX, INT64_MIN}) {
    expect_refused(bh_cache_read_block(cache.get(), block, keys.data(), values.data(), &error),
                   error, BH_INVALID_ARGUMENT, {"block", std::to_string(block), "0 .. 4"});
    expect_refused(bh_cache_write_block(cache.get(), block, keys.data(), values.data(), &error),
                   error, BH_INVALID_ARGUMENT, {"block", std::to_string(block), "0 .. 4"});
    EXPECT_EQ(keys, ones);
    // The good pair before the bad one is not copied either.
    ASSERT_EQ(bh_cache_write_block(cache.get(), 0, keys.data(), values.data(), &error), BH_OK);
    for (const bool as_source : {true, false}) {
      const int64_t source[] = {0, as_source ? block : 2};
      const int64_t target[] = {1, as_source ? 2 : block};
      expect_refused(bh_cache_copy_blocks(cache.get(), source, target, 2, &error), error,
                     BH_INVALID_ARGUMENT, {"block", std::to_string(block), "0 .. 4"});
    }
    Bytes key(bytes), value(bytes);
    ASSERT_EQ(bh_cache_read_block(cache.get(), 1, key.data(), value.data(), &error), BH_OK);
    EXPECT_EQ(key, Bytes(bytes, 0));
  }
  expect_refused(bh_cache_read_block(cache.get(), 0, nullptr, values.data(), &error), error,
                 BH_INVALID_ARGUMENT, {"key"});
  expect_refused(bh_cache_write_block(cache.get(), 0, keys.data(), nullptr, &error), error,
                 BH_INVALID_ARGUMENT, {"value"});
  const int64_t id = 0;
  expect_refused(bh_cache_copy_blocks(cache.get(), &id, &id, -1, &error), error,
                 BH_INVALID_ARGUMENT, {"count", "-1"});
  EXPECT_EQ(bh_cache_copy_blocks(cache.get(), nullptr, nullptr, 0, &error), BH_OK);
}

// ---- the addresses that kernels see ----

TEST_P(Abi, UsesTheCallersBuffers) {
  if (GetParam().backend != "cpu") GTEST_SKIP() << "device backends may stage";
  LayerConfig layer;
  layer.output_scale = 0.5f;  // an output of bytes
  bh_cache_options pool = small_pool();
  Session session(GetParam(), 1, layer, pool);
  BH_SKIP_IF_UNUSABLE(session, GetParam());
  Random random("addresses");
  StepBatch batch;
  for (int32_t r = 0; r < 2; ++r) {
    batch.rows.push_back(random_row(random, layer, 1, 1, {r}, pool.block_size));
  }
  const Binding binding = make_binding(session.layer(), step_schema(layer, batch));
  ArrowArray array = export_array(step_array(layer, batch));
  auto first_tensor = [&array](int column, int64_t width) {
    const ArrowArray& tensors = *array.children[column]->children[0];
    const ArrowArray& elements = *tensors.children[0];
    return reinterpret_cast<int64_t>(elements.buffers[1]) +
           4 * (elements.offset + (tensors.offset + kFirstListOffset) * width);
  };
  const int64_t value = first_tensor(1, layer.key_width());
  const int64_t key = first_tensor(2, layer.key_width());
  const int64_t query = first_tensor(3, layer.query_width());
  StepResult result(layer, batch);
  bh_step_stats stats{};
  bh_error error{};
  ASSERT_EQ(bh_step(binding.get(), &array, result.array(), &stats, &error), BH_OK);
  EXPECT_EQ(stats.query_address, query);
  EXPECT_EQ(stats.key_address, key);
  EXPECT_EQ(stats.value_address, value);
  EXPECT_EQ(stats.output_address, reinterpret_cast<int64_t>(result.output_address()));
  EXPECT_EQ(stats.bytes_staged, 0);
  EXPECT_EQ(stats.bytes_in_place, 2 * ((4 + 1) * layer.query_width() + 4 * 2 * layer.key_width()));
}

/// Memory of bh_engine_alloc is used in place by every backend, and is reused.
TEST_P(Abi, UsesEngineMemoryInPlace) {
  BH_OPEN_OR_SKIP(engine, GetParam(), 1);
  const int64_t first = bh_engine_alloc(engine.get(), 100000);
  ASSERT_NE(first, 0);
  EXPECT_EQ(first % 64, 0);
  std::memset(reinterpret_cast<void*>(first), 1, 100000);
  bh_engine_free(engine.get(), first);
  bh_engine_free(engine.get(), 0);
  const int64_t nothing = bh_engine_alloc(engine.get(), 0);
  EXPECT_NE(nothing, 0);
  bh_engine_free(engine.get(), nothing);
  EXPECT_EQ(bh_engine_alloc(engine.get(), -1), 0);
  EXPECT_EQ(bh_engine_alloc(nullptr, 64), 0);

  LayerConfig layer;
  bh_cache_options pool = small_pool();
  pool.num_kv_heads = layer.num_kv_heads;
  pool.head_size = layer.head_size;
  pool.dtype = layer.dtype;
  const Cache cache = make_cache(engine.get(), pool);
  const Layer made = make_layer(engine.get(), layer, cache.get());
  Random random("engine memory");
  const StepBatch batch = {{random_row(random, layer, 1, 1, {0}, pool.block_size)}};
  const Binding binding = make_binding(made.get(), step_schema(layer, batch));
  ArrowArray array = export_array(step_array(layer, batch));
  StepResult result(layer, batch);
  std::vector<int64_t> taken;
  auto move = [&](ArrowArray* tensors, int64_t elements) {
    ArrowArray* leaf = tensors->children[0]->children[0];
    const int64_t bytes = (leaf->offset + elements) * int64_t{sizeof(float)};
    taken.push_back(bh_engine_alloc(engine.get(), bytes));
    auto* to = reinterpret_cast<void*>(taken.back());
    std::memcpy(to, leaf->buffers[1], static_cast<size_t>(bytes));
    leaf->buffers[1] = to;
  };
  for (const int column : {1, 2, 3}) {
    ArrowArray* tensors = array.children[column];
    move(tensors, tensors->children[0]->children[0]->length);
  }
  move(result.array()->children[0], layer.query_width());
  bh_step_stats stats{};
  bh_error error{};
  ASSERT_EQ(bh_step(binding.get(), &array, result.array(), &stats, &error), BH_OK) << error.message;
  const int64_t moved = 4 * (2 * layer.query_width() + 2 * layer.key_width());
  EXPECT_GE(stats.bytes_in_place, moved);
  EXPECT_LE(stats.bytes_staged, 4 * layer.num_heads) << "the log-sum-exps alone";
  EXPECT_EQ(stats.output_address, taken.back());
  for (const int64_t address : taken) bh_engine_free(engine.get(), address);
}

TEST_P(Abi, StepRefusesNull) {
  LayerConfig layer;
  Session session(GetParam(), 1, layer, small_pool());
  BH_SKIP_IF_UNUSABLE(session, GetParam());
  const StepBatch batch;
  const Binding binding = make_binding(session.layer(), step_schema(layer, batch));
  StepResult result(layer, batch);
  bh_error error{};
  expect_refused(bh_step(binding.get(), nullptr, result.array(), nullptr, &error), error,
                 BH_INVALID_ARGUMENT, {"batch"});
  ArrowArray array = export_array(step_array(layer, batch));
  expect_refused(bh_step(nullptr, &array, result.array(), nullptr, &error), error,
                 BH_INVALID_ARGUMENT, {"binding"});
  EXPECT_EQ(array.release, nullptr);
  array = export_array(step_array(layer, batch));
  expect_refused(bh_step(binding.get(), &array, nullptr, nullptr, &error), error,
                 BH_INVALID_ARGUMENT, {"result"});
  EXPECT_EQ(array.release, nullptr);
  bh_binding* none = nullptr;
  ArrowSchema schema = export_schema(step_schema(layer, batch));
  expect_refused(bh_binding_create(nullptr, &schema, &none, &error), error, BH_INVALID_ARGUMENT,
                 {"layer"});
  EXPECT_EQ(schema.release, nullptr);
}

/// An array that the caller keeps: its release only marks it, and the children that are there.
TEST(Borrowed, ReleaseMarksTheTree) {
  auto release = reinterpret_cast<void (*)(ArrowArray*)>(bh_borrowed_release());
  ArrowArray child{};
  ArrowArray* children[] = {nullptr, &child};
  ArrowArray parent{};
  parent.n_children = 2;
  for (ArrowArray** of_parent : {children, static_cast<ArrowArray**>(nullptr)}) {
    child.release = parent.release = release;
    parent.children = of_parent;
    parent.release(&parent);
    EXPECT_EQ(parent.release, nullptr);
    EXPECT_EQ(child.release == nullptr, of_parent != nullptr);
  }
}

// ---- what a machine can do at best ----

TEST_P(Abi, ProbesMeasureOrSayWhyNot) {
  BH_OPEN_OR_SKIP(engine, GetParam(), 2);
  const Cache cache = make_cache(engine.get(), small_pool());
  const bool is_cpu = GetParam().backend == "cpu";
  bh_error error{};
  int64_t nanoseconds = -1;
  auto expect_measured = [&](int32_t status) {
    EXPECT_EQ(status, BH_OK) << error.message;
    EXPECT_GE(std::exchange(nanoseconds, -1), 0);
  };
  auto expect_of_cpus = [&](int32_t status) {
    if (is_cpu) {
      expect_measured(status);
    } else {
      expect_refused(status, error, BH_UNSUPPORTED, {"GPU"});
    }
  };
  auto read = [&](const std::vector<int32_t>& blocks) {
    return bh_probe_read(engine.get(), cache.get(), blocks.data(), std::ssize(blocks), &nanoseconds,
                         &error);
  };
  expect_measured(read({4}));
  expect_measured(read({0, 3, 1, 4, 2}));
  expect_measured(read(std::vector<int32_t>(100, 4)));
  const int32_t block = 0;
  expect_refused(bh_probe_read(engine.get(), cache.get(), &block, 0, &nanoseconds, &error), error,
                 BH_INVALID_ARGUMENT, {"count", "got 0"});
  for (const int32_t bad : {-1, 5}) {
    expect_refused(read({0, bad}), error, BH_INVALID_ARGUMENT,
                   {"block", std::to_string(bad), "0 .. 4"});
  }

  expect_of_cpus(bh_probe_compute(engine.get(), 100000, &nanoseconds, &error));
  expect_refused(bh_probe_compute(engine.get(), 0, &nanoseconds, &error), error,
                 BH_INVALID_ARGUMENT, {"flops", "got 0"});

  const Bytes source(1001, 7);
  Bytes target(source.size(), 0);
  auto copy = [&](int64_t bytes) {
    return bh_probe_copy(engine.get(), source.data(), target.data(), bytes, &nanoseconds, &error);
  };
  expect_of_cpus(copy(1000));
  EXPECT_EQ(std::count(target.begin(), target.end(), 7), is_cpu ? 1000 : 0);
  EXPECT_EQ(target.back(), 0);
  expect_refused(copy(0), error, BH_INVALID_ARGUMENT, {"bytes", "got 0"});
}

// ---- merge of partial results ----

struct MergeCase {
  const char* name;
  int parts;
  int tokens;
  int heads;
  int head_size;
  float lse_spread;  ///< standard deviation of the parts' log-sum-exps
};

// clang-format off
const MergeCase kMergeCases[] = {
    {"one part", 1, 5, 4, 64, 1},
    {"two parts", 2, 256, 4, 32, 1},
    {"three parts", 3, 61, 8, 80, 3},
    {"many parts", 17, 33, 16, 128, 5},
    {"wide heads", 2, 9, 64, 256, 1},
    {"far apart", 2, 64, 4, 96, 200},
    {"no tokens", 2, 0, 4, 64, 1},
};
// clang-format on

TEST_P(Abi, MergeMatchesReference) {
  BH_OPEN_OR_SKIP(engine, GetParam(), 2);
  for (const MergeCase& c : kMergeCases) {
    for (int dtype = BH_FLOAT32; dtype <= BH_BFLOAT16; ++dtype) {
      SCOPED_TRACE(std::string(c.name) + " " + dtype_label(dtype));
      Random random(c.name);
      LayerConfig layer;
      layer.num_heads = layer.num_kv_heads = c.heads;
      layer.head_size = c.head_size;
      layer.dtype = dtype;
      const auto states = static_cast<size_t>(c.tokens * c.heads);
      const auto size = static_cast<size_t>(c.head_size);
      std::vector<std::vector<float>> outputs, lses;
      std::vector<Bytes> encoded;
      for (int p = 0; p < c.parts; ++p) {
        outputs.push_back(random_tensors(random, layer, c.tokens, c.heads));
        std::vector<float> lse;
        for (size_t s = 0; s < states; ++s) {
          // Some parts see nothing, some tokens see nothing in any part.
          const bool empty = s % 7 == 0 || random.below(5) == 0;
          lse.push_back(empty ? (p % 2 ? HUGE_VALF : -HUGE_VALF) : c.lse_spread * random.normal());
          if (!empty) continue;
          std::fill_n(outputs.back().begin() + static_cast<std::ptrdiff_t>(s * size), size, NAN);
        }
        lses.push_back(lse);
        encoded.push_back(encode_all(dtype, outputs.back()));
      }
      std::vector<bh_partial> parts;
      for (size_t p = 0; p < lses.size(); ++p) parts.push_back({encoded[p].data(), lses[p].data()});
      Expected expected;
      for (size_t s = 0; s < states; ++s) {
        double maximum = -HUGE_VAL;
        auto weight = [&](size_t p) {
          return std::isinf(lses[p][s]) ? 0 : std::exp(double{lses[p][s]} - maximum);
        };
        for (const auto& lse : lses) {
          if (!std::isinf(lse[s])) maximum = std::max(maximum, double{lse[s]});
        }
        double total = 0;
        for (size_t p = 0; p < lses.size(); ++p) total += weight(p);
        expected.weight_error.resize(expected.weight_error.size() + size);
        for (size_t d = 0; d < size; ++d) {
          double sum = 0;
          for (size_t p = 0; p < lses.size(); ++p) {
            if (weight(p) > 0) sum += weight(p) * double{outputs[p][s * size + d]};
          }
          expected.output.push_back(total > 0 ? sum / total : 0);
        }
        expected.lse.push_back(total > 0 ? maximum + std::log(total) : -HUGE_VAL);
      }
      StepBatch tokens;
      tokens.rows.resize(1);
      tokens.rows[0].query.resize(states * size);
      StepResult result(layer, tokens);
      ArrowArray** columns = result.array()->children;
      auto values = [&](int column) {
        return const_cast<void*>(columns[column]->children[0]->children[0]->buffers[1]);
      };
      bh_error error{};
      ASSERT_EQ(bh_merge(engine.get(), parts.data(), c.parts, dtype, c.tokens, c.heads, c.head_size,
                         values(0), static_cast<float*>(values(1)), &error),
                BH_OK)
          << error.message;
      const double worst = compare_result(layer, result, expected);
      EXPECT_TRUE(result.guards_intact());
      record("merge", GetParam(), worst);

      StepResult without_lse(layer, tokens);
      void* output =
          const_cast<void*>(without_lse.array()->children[0]->children[0]->children[0]->buffers[1]);
      ASSERT_EQ(bh_merge(engine.get(), parts.data(), c.parts, dtype, c.tokens, c.heads, c.head_size,
                         output, nullptr, &error),
                BH_OK)
          << error.message;
      EXPECT_EQ(without_lse.output_bytes(), result.output_bytes());
    }
  }
}

TEST_P(Abi, MergeRefusesBadArguments) {
  BH_OPEN_OR_SKIP(engine, GetParam(), 1);
  std::vector<float> output(64), lse(1);
  const bh_partial part = {output.data(), lse.data()};
  const bh_partial no_output = {nullptr, lse.data()};
  const bh_partial no_lse = {output.data(), nullptr};
  auto refuse = [&](const bh_partial* parts, int32_t count, int32_t dtype, int64_t tokens,
                    int32_t heads, int32_t head_size, void* to, std::vector<std::string> mentions) {
    bh_error error{};
    const int32_t status =
        bh_merge(engine.get(), parts, count, dtype, tokens, heads, head_size, to, nullptr, &error);
    expect_refused(status, error, BH_INVALID_ARGUMENT, mentions);
  };
  refuse(nullptr, 1, BH_FLOAT32, 1, 1, 64, output.data(), {"parts"});
  refuse(&part, 0, BH_FLOAT32, 1, 1, 64, output.data(), {"count", "got 0"});
  refuse(&part, 1, BH_FLOAT8_E4M3FN, 1, 1, 64, output.data(), {"dtype", "fp8_e4m3"});
  refuse(&part, 1, BH_FLOAT32, -1, 1, 64, output.data(), {"tokens", "-1"});
  for (const int64_t tokens : {INT64_MAX / 64, INT64_MAX / 64 / 4 / 2}) {
    refuse(&part, 1, BH_FLOAT32, tokens, 1, 64, output.data(), {"tokens must be 0 .. "});
  }
  refuse(&part, 1, BH_FLOAT32, 1, 0, 64, output.data(), {"merge: num_heads", "got 0"});
  refuse(&part, 1, BH_FLOAT32, 1, 1, 63, output.data(), {"head_size", "got 63"});
  refuse(&part, 1, BH_FLOAT32, 1, 1, 64, nullptr, {"output"});
  refuse(&no_output, 1, BH_FLOAT32, 1, 1, 64, output.data(), {"output"});
  refuse(&no_lse, 1, BH_FLOAT32, 1, 1, 64, output.data(), {"lse"});
}

BH_ON_EVERY_TARGET(Abi);

}  // namespace
}  // namespace broadhead::test
