// SPDX-License-Identifier: Apache-2.0
// What a device has given out is given back, also where it refuses the rest.
#include <gtest/gtest.h>

#include "core/failure.h"
#include "gpu/gpu_cache.h"

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
  PinnedPool pool(api);
  auto* memory = static_cast<char*>(pool.allocate(5000));
  EXPECT_EQ(pool.device_address(memory), memory + 64);
  EXPECT_EQ(pool.device_address(memory + 8191), memory + 8191 + 64);
  EXPECT_EQ(pool.device_address(memory - 1), nullptr);
  EXPECT_EQ(pool.device_address(memory + 8192), nullptr);
  pool.free(memory);
  EXPECT_EQ(pool.device_address(memory), nullptr);
}

}  // namespace
}  // namespace broadhead::gpu
