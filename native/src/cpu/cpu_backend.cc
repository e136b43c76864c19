// SPDX-License-Identifier: Apache-2.0
#include "cpu/cpu_backend.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <string>
#include <thread>

#include "core/dtype.h"
#include "core/failure.h"
#include "cpu/block_pool.h"
#include "cpu/host_memory.h"
#include "cpu/plan.h"
#include "cpu/thread_pool.h"
#include "cpu/tier.h"

namespace broadhead {
namespace {

using cpu::AttendContext;
using cpu::AttendItem;
using cpu::BlockPool;
using cpu::CacheView;
using cpu::Kernels;
using cpu::LayerView;
using cpu::Plan;
using cpu::ThreadPool;
using cpu::UpdateItem;

std::string processor_name() {
  std::ifstream info("/proc/cpuinfo");
  for (std::string line; std::getline(info, line);) {
    const size_t colon = line.find(": ");
    if (line.starts_with("model name") && colon != std::string::npos) return line.substr(colon + 2);
  }
  return "unnamed processor";
}

/// Memory that grows to the largest step seen and is kept: aligned, not initialised.
class Floats {
 public:
  ~Floats() { std::free(data_); }
  Floats() = default;
  Floats(const Floats&) = delete;
  Floats& operator=(const Floats&) = delete;

  float* at_least(int64_t count) {
    if (count > capacity_) {
      std::free(data_);
      capacity_ = 0;
      const auto bytes = static_cast<size_t>((count * 4 + 63) / 64 * 64);
      data_ = static_cast<float*>(std::aligned_alloc(64, bytes));
      if (!data_) throw std::bad_alloc();
      capacity_ = count;
    }
    return data_;
  }

 private:
  float* data_ = nullptr;
  int64_t capacity_ = 0;
};

/// Bytes of new keys and values of a step from which on they are written past the caches: a cache
/// would read every line first, and keeps few until they are attended to.
constexpr int64_t kStreamedBytes = int64_t{1} << 20;

class CpuLayer final : public Layer {
 public:
  CpuLayer(const LayerSpec& spec, const BlockPool* pool, const Kernels& kernels, int threads,
           std::shared_ptr<ThreadPool> workers, const Cancellation& cancellation)
      : spec_(spec),
        cache_(pool ? &pool->view() : nullptr),
        kernels_(kernels),
        threads_(threads),
        workers_(std::move(workers)),
        cancellation_(cancellation) {
    view_.num_heads = spec.num_heads;
    view_.num_kv_heads = spec.num_kv_heads;
    view_.group_size = spec.group_size();
    view_.head_size = spec.head_size;
    view_.dtype = spec.dtype;
    view_.output_dtype = spec.output_dtype();
    const float unit = cache_ ? kernels.unit(cache_->dtype) : 1;
    view_.score_scale = spec.scale * spec.k_scale * unit;
    view_.value_scale = spec.v_scale * unit;
    view_.k_scale = spec.k_scale;
    view_.v_scale = spec.v_scale;
    view_.output_scale = spec.output_scale;
    view_.logits_soft_cap = spec.logits_soft_cap;
    view_.alibi_slopes = spec.alibi_slopes.empty() ? nullptr : spec.alibi_slopes.data();
    view_.sinks = spec.sinks.empty() ? nullptr : spec.sinks.data();
    view_.rotary_dim = spec.rotary_dim;
    view_.is_neox = spec.is_neox;
    view_.cos_sin = spec.cos_sin.data();
  }

  std::unique_ptr<StepInFlight> begin(const Step& step, bh_step_stats& stats) override {
    step_ = &step;
    kernel_time_ = {};
    const bool writes = cache_ && !spec_.read_only_cache;
    plan(writes);
    const int64_t written = writes ? update() : 0;
    attend();
    cancellation_.check();
    report(step, written, stats);
    return nullptr;
  }

 private:
  /// Takes all memory that the step needs: where the system refuses it, nothing was written yet.
  void plan(bool writes) {
    int64_t floats = 0;
    if (writes) {
      plan_.plan_update(*step_, threads_);
      floats = cpu::kUpdateScratch;
    }
    plan_.plan_attention(spec_, *step_, cache_ ? cache_->block_size : 0, threads_);
    for (const AttendItem& item : plan_.items()) {
      floats = std::max(floats, kernels_.scratch_floats(view_, cache_, item));
    }
    scratch_stride_ = (floats + 15) / 16 * 16;
    scratch_.at_least(scratch_stride_ * threads_);
    const int64_t partial_heads = plan_.num_partials() * view_.num_heads;
    context_ = {&view_,
                step_,
                cache_,
                plan_.tokens().data(),
                plan_.order().data(),
                partial_sums_.at_least(partial_heads * view_.head_size),
                partial_state_.at_least(partial_heads * 2)};
    const size_t rows = plan_.items_of_row().size();
    if (rows > unmerged_capacity_) {
      unmerged_ = std::make_unique<std::atomic<int32_t>[]>(rows);
      unmerged_capacity_ = rows;
    }
    for (size_t r = 0; r < rows; ++r) {
      unmerged_[r].store(plan_.items_of_row()[r], std::memory_order_relaxed);
    }
  }

  int64_t update() {
    streams_ = plan_.new_tokens() * cache_->token_bytes() >= kStreamedBytes;
    const int threads = step_->slots_repeat ? 1 : threads_;
    run_kernel(threads, plan_.updates().size(), [](void* self, int64_t i, int thread) {
      static_cast<CpuLayer*>(self)->update_item(static_cast<size_t>(i), thread);
    });
    int64_t written = 0;
    for (int64_t r = 0; r < step_->num_rows; ++r) {
      const StepRow& row = step_->rows[r];
      const int64_t* slots = step_->slots(row);
      written += std::count_if(slots, slots + row.num_keys, [](int64_t slot) { return slot >= 0; });
    }
    return written;
  }

  void update_item(size_t i, int thread) {
    if (cancellation_.requested()) return;
    const UpdateItem& item = plan_.updates()[i];
    kernels_.update(view_, *step_, *cache_, item.row, item.first, item.end, streams_,
                    scratch(thread));
  }

  void attend() {
    run_kernel(threads_, plan_.items().size(), [](void* self, int64_t i, int thread) {
      static_cast<CpuLayer*>(self)->attend_item(static_cast<size_t>(i), thread);
    });
  }

  void attend_item(size_t i, int thread) {
    if (cancellation_.requested()) return;
    const AttendItem& item = plan_.items()[i];
    float* floats = scratch(thread);
    kernels_.attend(context_, item, floats);
    int32_t last_row = -1;
    for (int t = 0; t < item.num_tokens; ++t) {
      const int32_t row = context_.token(item, t).row;
      if (row != last_row) finish_item_of(static_cast<size_t>(row), floats);
      last_row = row;
    }
  }

  /// Whoever ends the last item of a row joins its partial results, while they are in the cache.
  void finish_item_of(size_t row, float* floats) {
    if (unmerged_[row].fetch_sub(1, std::memory_order_acq_rel) != 1) return;
    const int64_t end = plan_.first_token_of_row()[row + 1];
    for (int64_t token = plan_.first_token_of_row()[row]; token < end; ++token) {
      if (plan_.tokens()[static_cast<size_t>(token)].num_partials > 1) {
        kernels_.merge(context_, token, floats);
      }
    }
  }

  void run_kernel(int threads, size_t items, ThreadPool::Task task) {
    const auto start = std::chrono::steady_clock::now();
    workers_->run(threads, static_cast<int64_t>(items), task, this);
    kernel_time_ += std::chrono::steady_clock::now() - start;
  }

  float* scratch(int thread) { return scratch_.at_least(0) + thread * scratch_stride_; }

  void report(const Step& step, int64_t written, bh_step_stats& stats) const {
    const int64_t head_bytes = int64_t{view_.head_size} * byte_width(view_.dtype);
    const int64_t query_bytes = view_.num_heads * head_bytes;
    const int64_t key_bytes = view_.num_kv_heads * head_bytes;
    const int64_t output_bytes =
        int64_t{view_.num_heads} * view_.head_size * byte_width(view_.output_dtype);
    int64_t keys = 0;
    for (int64_t r = 0; r < step.num_rows; ++r) keys += step.rows[r].num_keys;
    stats.query_tokens = step.num_queries;
    stats.written_tokens = written;
    stats.bytes_in_place = step.num_queries * (query_bytes + output_bytes) + 2 * keys * key_bytes;
    stats.keys_seen = plan_.keys_seen();
    stats.keys_read = plan_.keys_read();
    stats.kernel_nanoseconds = kernel_time_.count();
    if (step.num_rows == 0) return;
    const StepRow& row = step.rows[0];  // its indices are 0 where it has no column
    const StepPart& part = step.parts[row.part];
    stats.query_address = reinterpret_cast<int64_t>(part.query) + row.query * query_bytes;
    stats.key_address = reinterpret_cast<int64_t>(part.key) + row.key * key_bytes;
    stats.value_address = reinterpret_cast<int64_t>(part.value) + row.value * key_bytes;
    stats.output_address = reinterpret_cast<int64_t>(part.output);
  }

  const LayerSpec& spec_;
  const CacheView* cache_;
  const Kernels& kernels_;
  const int threads_;
  std::shared_ptr<ThreadPool> workers_;
  const Cancellation& cancellation_;
  LayerView view_{};
  Plan plan_;
  bool streams_ = false;  ///< new keys and values
  Floats scratch_;
  int64_t scratch_stride_ = 0;
  Floats partial_sums_;
  Floats partial_state_;
  std::unique_ptr<std::atomic<int32_t>[]> unmerged_;  ///< items of each row still to do
  size_t unmerged_capacity_ = 0;
  const Step* step_ = nullptr;
  AttendContext context_{};
  std::chrono::nanoseconds kernel_time_{};
};

class CpuEngine final : public Engine {
 public:
  explicit CpuEngine(int threads)
      : choice_(cpu::choose_tier()), threads_(threads), workers_(ThreadPool::shared(threads)) {}

  bh_engine_info info() const override {
    bh_engine_info info{};
    copy_text(info.backend, "cpu");
    copy_text(info.tier, choice_.tier->name);
    copy_text(info.device, processor_name());
    copy_text(info.reason, choice_.reason);
    info.threads = threads_;
    return info;
  }

  std::unique_ptr<Cache> create_cache(const bh_cache_options& options) override {
    return std::make_unique<BlockPool>(options);
  }

  void check_supported(const LayerSpec&, int, int) const override {}

  void merge(std::span<const bh_partial> parts, int dtype, int64_t tokens, int num_heads,
             int head_size, void* output, float* lse) override {
    struct Run {
      const Kernels* kernels;
      cpu::MergeContext context;
    } run{choice_.tier->kernels,
          {parts.data(), static_cast<int>(parts.size()), dtype, num_heads, head_size, output, lse}};
    workers_->run(
        threads_, tokens,
        [](void* argument, int64_t token, int) {
          const auto& [kernels, context] = *static_cast<const Run*>(argument);
          kernels->merge_results(context, token);
        },
        &run);
  }

  void* allocate_host(int64_t bytes) override { return memory_.allocate(bytes); }
  void free_host(void* memory) override { memory_.free(memory); }

  int64_t probe_read(const Cache& cache, std::span<const int32_t> blocks) override {
    const CacheView& view = static_cast<const BlockPool&>(cache).view();
    const auto count = static_cast<int64_t>(blocks.size());
    const int64_t shares = std::clamp<int64_t>(count / 16, threads_, 16 * threads_);
    return time_shares(shares, [&](int64_t share) {
      const int64_t first = count * share / shares;
      const int64_t end = count * (share + 1) / shares;
      return choice_.tier->kernels->read_blocks(view, blocks.data() + first, end - first);
    });
  }

  int64_t probe_compute(int64_t flops) override {
    const int64_t shares = 16 * threads_;
    return time_shares(
        shares, [&](int64_t) { return choice_.tier->kernels->multiply_add(flops / shares); });
  }

  int64_t probe_copy(const void* source, void* target, int64_t bytes) override {
    const int64_t shares = 16 * threads_;
    return time_shares(shares, [&](int64_t share) {
      const int64_t first = bytes * share / shares;
      const int64_t end = bytes * (share + 1) / shares;
      std::memcpy(static_cast<char*>(target) + first, static_cast<const char*>(source) + first,
                  static_cast<size_t>(end - first));
      return 0.0f;
    });
  }

  std::unique_ptr<Layer> create_layer(const LayerSpec& spec, Cache* cache) override {
    return std::make_unique<CpuLayer>(spec, static_cast<const BlockPool*>(cache),
                                      *choice_.tier->kernels, threads_, workers_, *cancellation());
  }

 private:
  /// Nanoseconds that work(share) takes for all shares of a probe.
  template <class Work>
  int64_t time_shares(int64_t shares, const Work& work) {
    const auto start = std::chrono::steady_clock::now();
    workers_->run(
        threads_, shares,
        [](void* argument, int64_t share, int) {
          // What was computed must be used for the computation to stay.
          static std::atomic<float> sink;
          sink.store((*static_cast<const Work*>(argument))(share), std::memory_order_relaxed);
        },
        const_cast<Work*>(&work));
    return (std::chrono::steady_clock::now() - start) / std::chrono::nanoseconds(1);
  }

  cpu::TierChoice choice_;
  int threads_;
  std::shared_ptr<ThreadPool> workers_;
  cpu::HostMemory memory_;
};

class CpuBackend final : public Backend {
 public:
  bh_backend_info describe() const override {
    bh_backend_info info{};
    copy_text(info.name, "cpu");
    copy_text(info.device, processor_name());
    try {
      const cpu::TierChoice choice = cpu::choose_tier();
      info.usable = 1;
      copy_text(info.reason, std::string("tier ") + choice.tier->name + ", " + choice.reason);
    } catch (const Failure& failure) {
      copy_text(info.reason, failure.what());
    }
    return info;
  }

  std::unique_ptr<Engine> open(const bh_engine_options& options) const override {
    if (options.threads > ThreadPool::kMostThreads) {
      throw Failure(BH_INVALID_ARGUMENT, kNoRow, "threads must be at most %d, got %d",
                    ThreadPool::kMostThreads, options.threads);
    }
    const int cores = std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
    return std::make_unique<CpuEngine>(options.threads > 0 ? options.threads : cores);
  }
};

}  // namespace

const Backend& cpu_backend() {
  static const CpuBackend backend;
  return backend;
}

}  // namespace broadhead
