// SPDX-License-Identifier: Apache-2.0
// What a device has given out is given back, also where it refuses the rest.
#include <gtest/gtest.h>

#include <cstdlib>
#include <cstring>

#include "core/failure.h"
#include "gpu/gpu_cache.h"
#include "gpu/step_memory.h"

namespace broadhead::gpu {
namespace {

int64_t given;  // memory, streams and events
int32_t refuse_stream;
int32_t refuse_event;

int32_t give(void** thing) {
  *thing = &given;
  ++given;
  return kOk;
}

void take_back(void*) { --given; }

DeviceApi device_api() {
  DeviceApi api{};
  api.message = [] { return "refused"; };
  api.use = [](int32_t) -> int32_t { return kOk; };
  api.describe = [](int32_t, DeviceInfo* info) -> int32_t {
    *info = {};
    info->memory = info->free_memory = int64_t{1} << 30;
    return kOk;
  };
  api.allocate = [](int64_t, void** memory) { return give(memory); };
  api.release = take_back;
  api.create_stream = [](Stream* stream) { return refuse_stream ? refuse_stream : give(stream); };
  api.destroy_stream = take_back;
  api.create_event = [](Event* event, int32_t) {
    return refuse_event ? refuse_event : give(event);
  };
  api.destroy_event = take_back;
  api.synchronize = [](Stream) -> int32_t { return kOk; };
  api.clear = [](Stream, void*, int64_t) -> int32_t { return kDeviceError; };
  return api;
}

TEST(GpuMemory, IsGivenBackWhereACacheCannotBeMade) {
  bh_cache_options options{};
  options.num_blocks = 4;
  options.block_size = 16;
  options.num_kv_heads = 1;
  options.head_size = 64;
  options.dtype = BH_FLOAT16;
  const DeviceApi api = device_api();
  for (const auto& [stream, event] :
       {std::pair{kOutOfMemory, kOk}, {kOk, kOutOfMemory}, {kOk, kOk}}) {
    refuse_stream = stream;
    refuse_event = event;
    EXPECT_THROW(GpuCache(options, std::make_shared<Device>(api, 0)), Failure);
    EXPECT_EQ(given, 0);
  }
}

TEST(GpuMemory, OfABufferIsAskedForAgainWhereItWasRefused) {
  DeviceApi api = device_api();
  api.allocate = [](int64_t bytes, void** memory) -> int32_t {
    return bytes > 8192 ? kOutOfMemory : give(memory);
  };
  Buffer buffer(api, Buffer::kOnDevice, "test");
  EXPECT_TRUE(buffer.reserve(5000));
  EXPECT_FALSE(buffer.reserve(buffer.capacity()));
  EXPECT_THROW(buffer.reserve(9000), Failure);
  EXPECT_EQ(given, 0) << "what it had is given back first";
  EXPECT_EQ(buffer.capacity(), 0);
  EXPECT_TRUE(buffer.reserve(5000));
  EXPECT_NE(buffer.data(), nullptr);
}

TEST(GpuMemory, IsNotOfADeviceThatCannotBeUsed) {
  DeviceApi api = device_api();
  api.describe = [](int32_t, DeviceInfo* info) -> int32_t {
    *info = {};
    std::strcpy(info->reason, "too old");
    return kOk;
  };
  try {
    Device(api, 3);
    FAIL() << "opened";
  } catch (const Failure& failure) {
    EXPECT_EQ(failure.code(), BH_UNSUPPORTED);
    EXPECT_STREQ(failure.what(), "device 3, : too old");
  }
}

char pinned[3 * 8192];

TEST(GpuMemory, ThatIsPinnedIsKnownWhileItIsGivenOut) {
  DeviceApi api = device_api();
  api.allocate_host = [](int64_t, void** memory) -> int32_t {
    *memory = pinned + 8192;
    return kOk;
  };
  api.release_host = [](void*) {};
  api.locate = [](const void* memory, int32_t* kind, void** device_address) -> int32_t {
    *kind = kPinned;
    *device_address = static_cast<char*>(const_cast<void*>(memory)) + 64;
    return kOk;
  };
  PinnedPool pool(api, 0);
  auto* memory = static_cast<char*>(pool.allocate(5000));
  EXPECT_EQ(pool.device_address(memory), memory + 64);
  EXPECT_EQ(pool.device_address(memory + 8191), memory + 8191 + 64);
  EXPECT_EQ(pool.device_address(memory - 1), nullptr);
  EXPECT_EQ(pool.device_address(memory + 8192), nullptr);
  pool.free(memory);
  EXPECT_EQ(pool.device_address(memory), nullptr);
}

alignas(4096) char tensors[3 * 4096];
int asked;

/// Pages 0 and 1 of `tensors` are pageable, page 2 is pinned.
DeviceApi api_of_tensors() {
  DeviceApi api = device_api();
  api.allocate_host = [](int64_t bytes, void** memory) -> int32_t {
    *memory = std::malloc(static_cast<size_t>(bytes));
    return kOk;
  };
  api.release_host = [](void* memory) { std::free(memory); };
  api.locate = [](const void* memory, int32_t* kind, void** device_address) -> int32_t {
    const auto* address = static_cast<const char*>(memory);
    const bool pageable = address >= tensors && address < tensors + 2 * 4096;
    asked += address >= tensors && address < tensors + sizeof tensors;
    *kind = pageable ? kPageable : kPinned;
    *device_address = pageable ? nullptr : const_cast<void*>(memory);
    return kOk;
  };
  return api;
}

/// A tensor is 128 bytes.
LayerSpec small_layer() {
  LayerSpec spec{};
  spec.num_heads = spec.num_kv_heads = 1;
  spec.head_size = 64;
  spec.dtype = BH_FLOAT16;
  return spec;
}

TEST(GpuMemory, OfStepsIsAskedForOnceAPageWhereItIsPageable) {
  const DeviceApi api = api_of_tensors();
  StepPart parts[2];
  StepRow rows[2]{};
  for (int p = 0; p < 2; ++p) {
    char* page = tensors + p * 4096;
    parts[p].query = page + 256;
    parts[p].key = page + 512;
    parts[p].value = page + 4096 - 256;
    parts[p].output = tensors + 2 * 4096 + p * 256;
    rows[p].part = p;
    rows[p].num_queries = rows[p].num_keys = 1;
  }
  Step step;
  step.rows = rows;
  step.num_rows = 2;
  step.parts = parts;
  step.num_queries = 2;
  Device device(api, 0);
  Workspace work(api);
  bh_step_stats stats{};
  StepMemory memory;
  asked = 0;
  memory.bring(device, small_layer(), step, work, stats);
  EXPECT_EQ(asked, 2 + 2);
  EXPECT_EQ(stats.bytes_staged, 2 * 3 * 128);
  EXPECT_EQ(stats.bytes_in_place, 2 * 128);
  EXPECT_EQ(memory.parts()[1].output, parts[1].output);
  EXPECT_NE(memory.parts()[1].query, parts[1].query);
}

/// Null rows lie between such rows: their offsets may fall. A layer that writes nothing needs no
/// keys.
TEST(GpuMemory, OfStepsHasWhatRowsUseInAnyOrder) {
  const DeviceApi api = api_of_tensors();
  for (int i = 0; i < 8 * 128; ++i) tensors[i] = static_cast<char>(i / 128);
  StepPart part;
  part.query = tensors;
  part.key = part.value = tensors + 4096;
  part.output = tensors + 2 * 4096 + 8;  // not where kernels may store
  StepRow rows[2]{};
  rows[0].query = 6;
  rows[0].num_queries = 2;
  rows[1].query = 1;
  rows[1].output = 2;
  rows[1].num_queries = 3;
  rows[0].num_keys = rows[1].num_keys = 1;
  Step step;
  step.rows = rows;
  step.num_rows = 2;
  step.parts = &part;
  step.num_queries = 5;
  LayerSpec spec = small_layer();
  spec.read_only_cache = true;
  Device device(api, 0);
  Workspace work(api);
  bh_step_stats stats{};
  StepMemory memory;
  memory.bring(device, spec, step, work, stats);
  EXPECT_EQ(stats.bytes_staged, (7 + 5) * 128) << "queries 1 to 7, and all outputs";
  EXPECT_EQ(stats.bytes_in_place, 0);
  for (const int i : {1, 2, 3, 6, 7}) EXPECT_EQ(memory.parts()[0].query[i * 128 + 127], i);
  std::memset(memory.parts()[0].output, 9, 5 * 128);
  memory.deliver();
  EXPECT_EQ(tensors[2 * 4096 + 8], 9);
  EXPECT_EQ(tensors[2 * 4096 + 8 + 5 * 128 - 1], 9);
}

/// Results of 4 MiB are not stored in place, though they could be.
TEST(GpuMemory, OfLargeResultsIsOnTheDevice) {
  constexpr int64_t kBytes = 4 << 20;
  const DeviceApi api = api_of_tensors();
  LayerSpec spec = small_layer();
  spec.num_heads = kBytes / 128;
  StepPart part;
  part.query = part.output = tensors + 2 * 4096;
  StepRow row{};
  row.num_queries = 1;
  Step step;
  step.rows = &row;
  step.num_rows = 1;
  step.parts = &part;
  step.num_queries = 1;
  Device device(api, 0);
  Workspace work(api);
  bh_step_stats stats{};
  StepMemory memory;
  memory.bring(device, spec, step, work, stats);
  EXPECT_EQ(stats.bytes_transferred, kBytes);
  EXPECT_EQ(stats.bytes_in_place, kBytes) << "the query";
  EXPECT_EQ(memory.parts()[0].output, work.results.data());
}

}  // namespace
}  // namespace broadhead::gpu
