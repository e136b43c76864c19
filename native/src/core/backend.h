// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <span>
#include <string>

#include "broadhead/broadhead.h"
#include "core/failure.h"
#include "core/layer_spec.h"
#include "core/step.h"

namespace broadhead {

/// The pool of blocks of one or more layers, in the backend's own layout.
class Cache {
 public:
  explicit Cache(const bh_cache_options& options) : options_(options) {}
  virtual ~Cache() = default;
  Cache(const Cache&) = delete;
  Cache& operator=(const Cache&) = delete;

  const bh_cache_options& options() const { return options_; }
  int64_t num_slots() const { return options_.num_blocks * options_.block_size; }
  virtual int64_t bytes() const = 0;
  virtual void read_block(int64_t block, void* key, void* value) const = 0;
  virtual void write_block(int64_t block, const void* key, const void* value) = 0;
  virtual void copy_block(int64_t source, int64_t target) = 0;

 private:
  bh_cache_options options_;
};

/// Tells the steps of an engine that nobody wants their results any more.
class Cancellation {
 public:
  void request() { requested_.store(true, std::memory_order_relaxed); }
  bool requested() const { return requested_.load(std::memory_order_relaxed); }

  /// Throws Failure(BH_CANCELLED) if requested: for a step whose pieces may have been skipped.
  void check() const {
    if (requested()) throw Failure(BH_CANCELLED, kNoRow, "the engine was cancelled");
  }

 private:
  std::atomic<bool> requested_{false};
};

/// A step that runs on a device beside the caller. Has all that it needs, so that layer, cache and
/// engine may go before it. Its destructor waits for the device.
class StepInFlight {
 public:
  virtual ~StepInFlight() = default;
  /// Waits until the device is done. Any thread may call it while nobody calls end().
  virtual void wait() = 0;
  /// Waits, then delivers results that the device could not write to where they belong. Called
  /// once.
  virtual void end(bh_step_stats& stats) = 0;
};

/// One layer, ready to run on its backend.
class Layer {
 public:
  virtual ~Layer() = default;
  /// Updates the cache, then attends. Every index in `step` has been checked. Answers NULL if the
  /// step is complete and `stats` are filled; otherwise `step` itself is needed no more, but the
  /// memory that its parts point to is. Steps of one cache take effect in the order of these calls.
  virtual std::unique_ptr<StepInFlight> begin(const Step& step, bh_step_stats& stats) = 0;
};

/// A backend opened on a device with its threads.
class Engine {
 public:
  virtual ~Engine() = default;
  void cancel() { cancellation_->request(); }

  /// Steps look here between pieces of a tenth of a second at most; those in flight outlive the
  /// engine.
  std::shared_ptr<const Cancellation> cancellation() const { return cancellation_; }

  virtual bh_engine_info info() const = 0;
  virtual std::unique_ptr<Cache> create_cache(const bh_cache_options& options) = 0;
  /// Throws Failure(BH_UNSUPPORTED) with the reason where the backend cannot run the layer.
  virtual void check_supported(const LayerSpec& spec, int cache_dtype, int block_size) const = 0;
  /// Joins partial results: see bh_merge. Arguments have been checked.
  virtual void merge(std::span<const bh_partial> parts, int dtype, int64_t tokens, int num_heads,
                     int head_size, void* output, float* lse) = 0;
  /// Nanoseconds that reading the blocks once takes at best.
  virtual int64_t probe_read(const Cache& cache, std::span<const int32_t> blocks) = 0;
  /// Nanoseconds that so many float32 operations on registers take at best.
  virtual int64_t probe_compute(int64_t flops) = 0;
  /// Host memory that steps use in place, or NULL where the system refuses; see bh_engine_alloc.
  virtual void* allocate_host(int64_t bytes) = 0;
  virtual void free_host(void* memory) = 0;
  /// Nanoseconds that copying so many bytes once takes at best.
  virtual int64_t probe_copy(const void* source, void* target, int64_t bytes) = 0;
  /// `spec` and `cache` (NULL for encoder types) outlive the layer.
  virtual std::unique_ptr<Layer> create_layer(const LayerSpec& spec, Cache* cache) = 0;

 private:
  std::shared_ptr<Cancellation> cancellation_ = std::make_shared<Cancellation>();
};

/// Fills a text of a structure of the C ABI.
template <size_t kSize>
void copy_text(char (&to)[kSize], const std::string& text) {
  std::snprintf(to, kSize, "%s", text.c_str());
}

/// One entry of the registry.
class Backend {
 public:
  virtual ~Backend() = default;
  virtual bh_backend_info describe() const = 0;
  virtual std::unique_ptr<Engine> open(const bh_engine_options& options) const = 0;
};

/// Every backend of this library, the preferred one first.
std::span<const Backend* const> backends();

/// Opens the named backend; for "auto" the first one that is usable here.
std::unique_ptr<Engine> open_engine(const bh_engine_options& options);

}  // namespace broadhead
