// SPDX-License-Identifier: Apache-2.0
#include "gpu/device.h"

#include <string>

#include "core/failure.h"

namespace broadhead::gpu {

void Buffer::release() {
  if (data_) (kind_ == kOnDevice ? api_.release : api_.release_host)(data_);
  data_ = device_address_ = nullptr;
  capacity_ = 0;
}

bool Buffer::reserve(int64_t bytes) {
  if (bytes <= capacity_) return false;
  void* memory = nullptr;
  const int64_t wanted = (bytes + bytes / 4 + 4095) / 4096 * 4096;
  release();
  const std::string what = std::string(name_) + ", " + std::to_string(wanted) + " bytes of " +
                           (kind_ == kOnDevice ? "device" : "pinned host") +
                           " memory beside the KV cache (kv_cache.num_blocks)";
  if (kind_ == kOnDevice) {
    check(api_, api_.allocate(wanted, &memory), what.c_str());
    data_ = device_address_ = static_cast<char*>(memory);
  } else {
    check(api_, api_.allocate_host(wanted, &memory), what.c_str());
    data_ = static_cast<char*>(memory);
    int32_t kind = kPageable;
    void* address = nullptr;
    check(api_, api_.locate(memory, &kind, &address), name_);
    device_address_ = static_cast<char*>(address);
  }
  capacity_ = wanted;
  return true;
}

/// Once it is delegated to, what fails later leaves a whole object to destroy.
Workspace::Workspace(const DeviceApi& device, Empty)
    : api(device),
      plan_host(api, Buffer::kPinned, "plan"),
      plan(api, Buffer::kOnDevice, "plan"),
      query(api, Buffer::kOnDevice, "queries"),
      partial_sums(api, Buffer::kOnDevice, "partial results"),
      partial_state(api, Buffer::kOnDevice, "partial results"),
      counters(api, Buffer::kOnDevice, "counters"),
      temporary_cache(api, Buffer::kOnDevice, "keys and values of an encoder step"),
      results(api, Buffer::kOnDevice, "results"),
      staged_input(api, Buffer::kPinned, "staged input"),
      staged_output(api, Buffer::kPinned, "staged output") {}

Workspace::Workspace(const DeviceApi& device) : Workspace(device, Empty{}) {
  check(api, api.create_stream(&stream), "stream");
  check(api, api.create_event(&started, false), "event");
  check(api, api.create_event(&done, false), "event");
  check(api, api.create_event(&landed, true), "event");
}

Workspace::~Workspace() {
  if (landed) api.destroy_event(landed);
  if (done) api.destroy_event(done);
  if (started) api.destroy_event(started);
  if (stream) api.destroy_stream(stream);
}

int64_t Workspace::nanoseconds() const {
  float milliseconds = 0;
  check(api, api.elapsed(started, done, &milliseconds), "clock");
  return static_cast<int64_t>(double{milliseconds} * 1e6);
}

void Workspace::sleep() const {
  check(api, api.record(landed, stream), "step");
  check(api, api.wait_event(landed), "step");
}

Device::Device(const DeviceApi& api, int index) : api_(api), index_(index), pinned_(api, index) {
  check(api_, api_.describe(index_, &info_), "device");
  if (info_.reason[0]) {
    throw Failure(BH_UNSUPPORTED, kNoRow, "device %d, %s: %s", index_, info_.name, info_.reason);
  }
}

std::unique_ptr<Workspace> Device::take() {
  use();
  {
    const std::lock_guard lock(mutex_);
    if (free_) {
      std::unique_ptr<Workspace> workspace = std::move(free_);
      free_ = std::move(workspace->next);
      return workspace;
    }
  }
  return std::make_unique<Workspace>(api_);
}

void Device::give_back(std::unique_ptr<Workspace> workspace) noexcept {
  const std::lock_guard lock(mutex_);
  workspace->next = std::move(free_);
  free_ = std::move(workspace);
}

}  // namespace broadhead::gpu
