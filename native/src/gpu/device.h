// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>
#include <mutex>
#include <utility>

#include "gpu/library.h"
#include "gpu/pinned_pool.h"

namespace broadhead::gpu {

/// Memory that grows to the largest step seen and is kept; what it held is lost when it grows.
class Buffer {
 public:
  enum Kind { kOnDevice, kPinned };
  Buffer(const DeviceApi& api, Kind kind, const char* name) : api_(api), kind_(kind), name_(name) {}
  ~Buffer() { release(); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  /// Tells whether it grew.
  bool reserve(int64_t bytes);
  char* data() const { return data_; }
  /// Its address for kernels.
  char* device_address() const { return device_address_; }
  int64_t capacity() const { return capacity_; }

 private:
  void release();

  const DeviceApi& api_;
  Kind kind_;
  const char* name_;
  char* data_ = nullptr;
  char* device_address_ = nullptr;
  int64_t capacity_ = 0;
};

/// What one step in flight needs besides its layer and cache.
struct Workspace {
  explicit Workspace(const DeviceApi& api);
  ~Workspace();
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;

  const DeviceApi& api;
  std::unique_ptr<Workspace> next;  ///< of those that are free
  Stream stream = nullptr;
  Event started = nullptr;
  Event done = nullptr;
  Event landed = nullptr;  ///< of those that wait asleep
  Buffer plan_host;
  Buffer plan;
  Buffer query;  ///< prepared
  Buffer partial_sums;
  Buffer partial_state;
  Buffer counters;         ///< zero between steps
  Buffer temporary_cache;  ///< of encoder layers
  Buffer results;          ///< to be transferred
  Buffer staged_input;
  Buffer staged_output;

  /// Around work that is put on the stream.
  void start_clock() const { check(api, api.record(started, stream), "clock"); }
  void stop_clock() const { check(api, api.record(done, stream), "clock"); }
  /// How long that work took; the stream is idle.
  int64_t nanoseconds() const;
  /// Waits for all that is on the stream, asleep: another thread than the one that runs steps.
  void sleep() const;

 private:
  struct Empty {};
  Workspace(const DeviceApi& api, Empty);
};

/// Puts work on different streams in an order: what is done with a cache. Used by one thread at a
/// time.
class StepOrder {
 public:
  explicit StepOrder(const DeviceApi& api) : api_(api) {}
  ~StepOrder() {
    if (last_) api_.destroy_event(last_);
  }
  StepOrder(const StepOrder&) = delete;
  StepOrder& operator=(const StepOrder&) = delete;

  /// Whether what was marked is on another stream, where it may still run.
  bool is_elsewhere(Stream stream) const { return last_ && stream != last_stream_; }
  /// What is put on the stream from now on runs after all that was marked.
  void follow(Stream stream) const {
    if (is_elsewhere(stream)) {
      check(api_, api_.follow_event(stream, last_), "order of steps");
    }
  }
  /// The last work so far is what is on the stream by now.
  void mark(Stream stream) {
    // None that threads sleep at: with each of those the device interrupts a processor, also one
    // that is waiting awake.
    if (!last_) check(api_, api_.create_event(&last_, false), "event");
    check(api_, api_.record(last_, stream), "order of steps");
    last_stream_ = stream;
  }
  /// Waits until all that was marked is done.
  void wait() const {
    if (last_) (void)api_.wait_event(last_);
  }

 private:
  const DeviceApi& api_;
  Event last_ = nullptr;
  Stream last_stream_ = nullptr;  ///< compared only: it may be gone
};

/// A GPU in use. Shared by an engine and what was created from it; any thread may use it.
class Device {
 public:
  Device(const DeviceApi& api, int index);

  const DeviceApi& api() const { return api_; }
  int index() const { return index_; }
  const DeviceInfo& info() const { return info_; }
  /// Host memory for the tensors of steps.
  PinnedPool& pinned() { return pinned_; }

  /// Makes the device current on the calling thread.
  void use() const { check(api_, api_.use(index_), "device"); }

  /// A workspace for one step; give it back when the step is done.
  std::unique_ptr<Workspace> take();
  void give_back(std::unique_ptr<Workspace> workspace) noexcept;

 private:
  const DeviceApi& api_;
  int index_;
  DeviceInfo info_{};
  PinnedPool pinned_;
  std::mutex mutex_;
  std::unique_ptr<Workspace> free_;  ///< and the next ones
};

/// A workspace for the time of a call.
class Lease {
 public:
  explicit Lease(Device& device) : device_(device), workspace_(device.take()) {}
  ~Lease() {
    // Where a call failed, work before it may still use the caller's memory.
    (void)device_.api().synchronize(workspace_->stream);
    device_.give_back(std::move(workspace_));
  }
  Lease(const Lease&) = delete;
  Lease& operator=(const Lease&) = delete;

  Workspace& operator*() const { return *workspace_; }
  Workspace* operator->() const { return workspace_.get(); }

 private:
  Device& device_;
  std::unique_ptr<Workspace> workspace_;
};

}  // namespace broadhead::gpu
