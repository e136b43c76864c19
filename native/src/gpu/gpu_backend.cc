// SPDX-License-Identifier: Apache-2.0
#include "gpu/gpu_backend.h"

#include <cstdio>
#include <cstring>
#include <string>

#include "core/dtype.h"
#include "core/failure.h"
#include "gpu/gpu_cache.h"
#include "gpu/gpu_layer.h"
#include "gpu/library.h"
#include "gpu/step_memory.h"

namespace broadhead {
namespace {

using gpu::Device;
using gpu::DeviceApi;
using gpu::DeviceInfo;
using gpu::GpuCache;
using gpu::GpuLayer;
using gpu::Lease;

/// bh_engine_options.device: the one with the most free memory.
constexpr int kAnyDevice = -1;

std::string summary(const DeviceInfo& info) {
  char text[128];
  std::snprintf(text, sizeof text, "%s, %d multiprocessors, %.0f GiB, %.0f free", info.architecture,
                info.multiprocessors, double(info.memory) / (1 << 30),
                double(info.free_memory) / (1 << 30));
  return text;
}

class GpuEngine final : public Engine {
 public:
  GpuEngine(const char* name, std::shared_ptr<Device> device, std::string reason)
      : name_(name), device_(std::move(device)), reason_(std::move(reason)) {}

  bh_engine_info info() const override {
    bh_engine_info info{};
    copy_text(info.backend, name_);
    copy_text(info.tier, device_->info().architecture);
    copy_text(info.device, device_->info().name);
    copy_text(info.reason, reason_);
    info.threads = 1;
    info.free_memory = device_->info().free_memory;
    info.overlaps = 1;
    return info;
  }

  std::unique_ptr<Cache> create_cache(const bh_cache_options& options) override {
    return std::make_unique<GpuCache>(options, device_);
  }

  void check_supported(const LayerSpec& spec, int cache_dtype, int block_size) const override {
    device_->use();
    gpu::layer_args(spec, spec.uses_cache() ? cache_dtype : spec.dtype, *device_);
    if (!spec.uses_cache()) return;
    // Kernels count the bytes of a head's keys in 32 bits.
    const int most = INT32_MAX / (spec.head_size * byte_width(cache_dtype));
    if (block_size > most) {
      throw Failure(BH_UNSUPPORTED, kNoRow,
                    "%s: kv_cache.block_size must be at most %d on a GPU, got %d",
                    spec.name.c_str(), most, block_size);
    }
  }

  void merge(std::span<const bh_partial> parts, int dtype, int64_t tokens, int num_heads,
             int head_size, void* output, float* lse) override {
    const DeviceApi& api = device_->api();
    const Lease work(*device_);
    const int64_t states = tokens * num_heads;
    const int64_t output_bytes = states * head_size * byte_width(dtype);
    const int64_t lse_bytes = states * int64_t{sizeof(float)};
    const auto count = static_cast<int64_t>(parts.size());
    // On the device: addresses of outputs, of their lse, then each part, then the result.
    const int64_t part_bytes = (output_bytes + lse_bytes + 255) / 256 * 256;
    const int64_t tables = (2 * count * int64_t{sizeof(void*)} + 255) / 256 * 256;
    work->query.reserve(tables + (count + 1) * part_bytes);
    work->plan_host.reserve(tables);
    char* device = work->query.data();
    auto* addresses = reinterpret_cast<char**>(work->plan_host.data());
    for (int64_t p = 0; p < count; ++p) {
      char* at = device + tables + p * part_bytes;
      addresses[p] = at;
      addresses[count + p] = at + output_bytes;
      const bh_partial& part = parts[static_cast<size_t>(p)];
      gpu::check(api, api.copy(work->stream, at, part.output, output_bytes), "merge");
      gpu::check(api, api.copy(work->stream, at + output_bytes, part.lse, lse_bytes), "merge");
    }
    gpu::check(api, api.copy(work->stream, device, addresses, tables), "merge");
    gpu::MergeArgs args{};
    args.outputs = reinterpret_cast<const void* const*>(device);
    args.lses = reinterpret_cast<const float* const*>(device) + count;
    args.count = static_cast<int32_t>(count);
    args.dtype = dtype;
    args.states = states;
    args.head_size = head_size;
    char* result = device + tables + count * part_bytes;
    args.output = result;
    args.lse = lse ? reinterpret_cast<float*>(result + output_bytes) : nullptr;
    gpu::check(api, api.merge_results(work->stream, &args), "merge");
    gpu::check(api, api.copy(work->stream, output, result, output_bytes), "merge");
    if (lse)
      gpu::check(api, api.copy(work->stream, lse, result + output_bytes, lse_bytes), "merge");
    gpu::check(api, api.synchronize(work->stream), "merge");
  }

  void* allocate_host(int64_t bytes) override { return device_->pinned().allocate(bytes); }
  void free_host(void* memory) override { device_->pinned().free(memory); }

  int64_t probe_read(const Cache& cache, std::span<const int32_t> blocks) override {
    const DeviceApi& api = device_->api();
    const Lease work(*device_);
    const auto count = static_cast<int64_t>(blocks.size());
    const auto bytes = static_cast<int64_t>(blocks.size_bytes());
    work->plan.reserve(bytes + 16);
    work->plan_host.reserve(bytes);
    std::memcpy(work->plan_host.data(), blocks.data(), blocks.size_bytes());
    gpu::check(api, api.copy(work->stream, work->plan.data(), work->plan_host.data(), bytes),
               "probe");
    work->start_clock();
    gpu::check(api,
               api.read_blocks(work->stream, &static_cast<const GpuCache&>(cache).view(),
                               reinterpret_cast<const int32_t*>(work->plan.data()), count,
                               work->plan.data() + bytes / 16 * 16),
               "probe");
    work->stop_clock();
    gpu::check(api, api.synchronize(work->stream), "probe");
    return work->nanoseconds();
  }

  int64_t probe_compute(int64_t) override {
    throw Failure(BH_UNSUPPORTED, kNoRow,
                  "the float32 peak is not what limits prefill on the matrix units of a GPU");
  }

  int64_t probe_copy(const void*, void*, int64_t) override {
    throw Failure(BH_UNSUPPORTED, kNoRow,
                  "copies between buffers of the host do not limit a GPU's cache update");
  }

  std::unique_ptr<Layer> create_layer(const LayerSpec& spec, Cache* cache) override {
    return std::make_unique<GpuLayer>(spec, static_cast<GpuCache*>(cache), device_, cancellation());
  }

 private:
  const char* name_;
  std::shared_ptr<Device> device_;
  std::string reason_;
};

class GpuBackend final : public Backend {
 public:
  explicit GpuBackend(const char* name) : name_(name) {}

  bh_backend_info describe() const override {
    bh_backend_info info{};
    copy_text(info.name, name_);
    try {
      const DeviceApi& api = open_library();
      const int device = choose(api, kAnyDevice);
      DeviceInfo chosen{};
      gpu::check(api, api.describe(device, &chosen), "device");
      copy_text(info.device, chosen.name);
      copy_text(info.reason, chosen.reason[0] ? chosen.reason : summary(chosen));
      info.usable = chosen.reason[0] == '\0';
    } catch (const Failure& failure) {
      copy_text(info.reason, failure.what());
    }
    return info;
  }

  std::unique_ptr<Engine> open(const bh_engine_options& options) const override {
    const DeviceApi& api = open_library();
    const int device = choose(api, options.device);
    auto opened = std::make_shared<Device>(api, device);
    const std::string reason = "device " + std::to_string(device) +
                               (options.device == kAnyDevice ? " (most free memory), " : ", ") +
                               summary(opened->info());
    return std::make_unique<GpuEngine>(name_, std::move(opened), reason);
  }

 private:
  const DeviceApi& open_library() const {
    const gpu::Library& library = gpu::library(name_);
    if (!library.api) throw Failure(BH_UNSUPPORTED, kNoRow, "%s", library.reason.c_str());
    return *library.api;
  }

  static int choose(const DeviceApi& api, int wanted) {
    int32_t count = 0;
    if (api.count(&count) != gpu::kOk) throw Failure(BH_UNSUPPORTED, kNoRow, "%s", api.message());
    if (count == 0) throw Failure(BH_UNSUPPORTED, kNoRow, "no device");
    if (wanted >= count || wanted < kAnyDevice) {
      throw Failure(BH_INVALID_ARGUMENT, kNoRow,
                    "device must be 0 .. %d, or -1 for the one with the most free memory, got %d",
                    count - 1, wanted);
    }
    if (wanted != kAnyDevice) return wanted;
    int best = 0;
    int64_t most = -1;
    for (int device = 0; device < count; ++device) {
      DeviceInfo info{};
      gpu::check(api, api.describe(device, &info), "device");
      const int64_t free = info.reason[0] ? 0 : info.free_memory;
      if (free > most) best = device, most = free;
    }
    return best;
  }

  const char* name_;
};

}  // namespace

const Backend& cuda_backend() {
  static const GpuBackend backend("cuda");
  return backend;
}

const Backend& hip_backend() {
  static const GpuBackend backend("hip");
  return backend;
}

}  // namespace broadhead
