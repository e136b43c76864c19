// SPDX-License-Identifier: Apache-2.0
#include "gpu/gpu_cache.h"

#include <cstring>

#include "core/dtype.h"
#include "core/failure.h"

namespace broadhead::gpu {
namespace {

constexpr double kGiB = 1 << 30;

}  // namespace

CacheView cache_view(int dtype, int block_size, int num_kv_heads, int head_size) {
  CacheView view{};
  view.block_size = block_size;
  view.num_kv_heads = num_kv_heads;
  view.head_size = head_size;
  view.dtype = dtype;
  view.row_bytes = head_size * byte_width(dtype);
  view.half_bytes = int64_t{block_size} * view.row_bytes;
  return view;
}

GpuCache::GpuCache(const bh_cache_options& options, std::shared_ptr<Device> device)
    : Cache(options),
      device_(std::move(device)),
      view_(cache_view(options.dtype, options.block_size, options.num_kv_heads, options.head_size)),
      memory_(nullptr, device_->api().release),
      order_(device_->api()) {
  const DeviceApi& api = device_->api();
  device_->use();
  DeviceInfo now{};
  check(api, api.describe(device_->index(), &now), "device");
  const double wanted = double(options.num_blocks) * double(block_bytes(view_));
  void* memory = nullptr;
  int32_t status = kOutOfMemory;
  if (wanted <= double(now.memory)) {
    bytes_ = options.num_blocks * block_bytes(view_);
    status = api.allocate(bytes_, &memory);
  }
  if (status == kOutOfMemory) {
    throw Failure(BH_OUT_OF_MEMORY, kNoRow,
                  "KV cache: %lld blocks of %lld bytes need %.2f GiB, device %d (%s) has %.2f GiB "
                  "free of %.2f GiB; lower kv_cache.num_blocks",
                  static_cast<long long>(options.num_blocks),
                  static_cast<long long>(block_bytes(view_)), wanted / kGiB, device_->index(),
                  now.name, double(now.free_memory) / kGiB, double(now.memory) / kGiB);
  }
  check(api, status, "KV cache");
  memory_.reset(memory);
  view_.memory = static_cast<char*>(memory);
  const Lease work(*device_);
  check(api, api.clear(work->stream, memory, bytes_), "KV cache");
  check(api, api.synchronize(work->stream), "KV cache");
}

GpuCache::~GpuCache() {
  (void)device_->api().use(device_->index());
  order_.wait();
}

void GpuCache::read_block(int64_t block, void* key, void* value) const {
  const DeviceApi& api = device_->api();
  const Lease work(*device_);
  const int64_t half = block_bytes(view_) / 2;
  work->staged_output.reserve(2 * half);
  char* device = work->staged_output.device_address();
  order_.follow(work->stream);
  check(api, api.read_block(work->stream, &view_, block, device, device + half), "block");
  check(api, api.synchronize(work->stream), "block");
  std::memcpy(key, work->staged_output.data(), static_cast<size_t>(half));
  std::memcpy(value, work->staged_output.data() + half, static_cast<size_t>(half));
}

void GpuCache::write_block(int64_t block, const void* key, const void* value) {
  const DeviceApi& api = device_->api();
  const Lease work(*device_);
  const int64_t half = block_bytes(view_) / 2;
  work->staged_input.reserve(2 * half);
  std::memcpy(work->staged_input.data(), key, static_cast<size_t>(half));
  std::memcpy(work->staged_input.data() + half, value, static_cast<size_t>(half));
  const char* device = work->staged_input.device_address();
  order_.follow(work->stream);
  check(api, api.write_block(work->stream, &view_, block, device, device + half), "block");
  check(api, api.synchronize(work->stream), "block");
}

void GpuCache::copy_block(int64_t source, int64_t target) {
  if (source == target) return;
  const DeviceApi& api = device_->api();
  const Lease work(*device_);
  const int64_t bytes = block_bytes(view_);
  order_.follow(work->stream);
  check(api,
        api.copy(work->stream, view_.memory + target * bytes, view_.memory + source * bytes, bytes),
        "block");
  check(api, api.synchronize(work->stream), "block");
}

}  // namespace broadhead::gpu
