// SPDX-License-Identifier: Apache-2.0
// broadhead_gpu_bench BACKEND [FILTER]: times the kernels of a GPU backend on data in device memory
// and prints a table of comma-separated values.
//
// Paged block tables are shuffled, data is N(0,1), a time is the median of device events around the
// launches of a step. Before each run the second-level cache is filled with other data: `us` after
// 256 MiB were overwritten, which the run then has to write back besides its own work, and
// `us_clean` after they were read. `limit` is the
// bandwidth of a copy within the device, bytes read and written, measured in the same run. Steps
// are timed from outside, on tensors in host memory.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "core/dtype.h"
#include "core/failure.h"
#include "core/layer_spec.h"
#include "gpu/gpu_cache.h"
#include "gpu/gpu_layer.h"

namespace broadhead::gpu {
namespace {

struct Workload {
  const char* kind;
  int batch;
  int queries;
  int context;  ///< tokens in the cache after the step
  int heads;
  int kv_heads;
  int head_size;
  int dtype = BH_FLOAT16;
  int cache_dtype = 0;  ///< 0: the same
  int block_size = 16;
  int window = 0;      ///< 0: none
  float soft_cap = 0;  ///< 0: none
  bool alibi = false;
};

const std::vector<Workload>& workloads() {
  static const std::vector<Workload> all = {
      {"decode", 1, 1, 4096, 32, 8, 128},
      {"decode", 1, 1, 32768, 32, 8, 128},
      {"decode", 8, 1, 4096, 32, 8, 128},
      {"decode", 64, 1, 1024, 32, 8, 128},
      {"decode", 64, 1, 4096, 32, 8, 128},
      {"decode", 64, 1, 4096, 32, 8, 128, BH_BFLOAT16},
      {"decode", 256, 1, 2048, 32, 8, 128},
      {"decode", 256, 1, 2048, 32, 8, 128, BH_BFLOAT16},
      {"decode", 64, 1, 4096, 32, 32, 128},
      {"decode", 64, 1, 4096, 16, 8, 64},
      {"decode", 64, 1, 4096, 8, 4, 256},
      {"decode", 64, 1, 4096, 32, 8, 128, BH_FLOAT16, BH_FLOAT8_E4M3FN},
      {"decode", 64, 1, 4096, 32, 8, 128, BH_BFLOAT16, BH_FLOAT8_E4M3FN},
      {"decode", 64, 1, 4096, 32, 8, 128, BH_FLOAT16, 0, 32},
      {"decode", 64, 1, 4352, 32, 8, 128, BH_FLOAT16, 0, 16},
      {"decode", 64, 1, 4352, 32, 8, 128, BH_FLOAT16, 0, 544},
      {"decode", 64, 1, 4096, 64, 4, 128},
      {"decode", 64, 1, 4096, 28, 4, 128},
      {"decode", 64, 1, 4096, 32, 32, 96},
      {"decode", 64, 1, 4096, 32, 8, 128, BH_FLOAT32},
      {"prefill", 1, 2048, 2048, 32, 8, 128},
      {"prefill", 4, 4096, 4096, 32, 8, 128},
      {"prefill", 4, 4096, 4096, 32, 8, 128, BH_BFLOAT16},
      {"prefill", 8, 512, 4096 + 512, 32, 8, 128},
      {"prefill", 4, 4096, 4096, 32, 8, 64},
      {"prefill", 4, 4096, 4096, 16, 4, 256},
      {"prefill", 4, 4096, 4096, 32, 32, 80},
      {"prefill", 4, 4096, 4096, 32, 32, 96},
      {"prefill", 4, 4096, 4096, 20, 4, 160},
      {"prefill", 4, 4096, 4096, 32, 8, 64, BH_FLOAT16, BH_FLOAT8_E4M3FN},
      {"prefill", 4, 4096, 4096, 32, 8, 128, BH_FLOAT16, BH_FLOAT8_E4M3FN},
      {"prefill", 4, 4096, 4096, 32, 8, 128, BH_BFLOAT16, BH_FLOAT8_E4M3FN},
      {"prefill", 4, 4096, 4096, 16, 4, 256, BH_FLOAT16, BH_FLOAT8_E4M3FN},
      {"prefill", 1, 2048, 2048, 32, 8, 128, BH_FLOAT32},
      {"prefill", 64, 128, 128, 32, 8, 128},
      {"prefill", 64, 512, 512, 32, 8, 128},
      {"prefill", 1, 128, 8192, 32, 8, 128},
      {"prefill", 1, 256, 8192, 32, 8, 128},
      {"prefill window 64", 4, 4096, 4096, 32, 8, 128, BH_FLOAT16, 0, 16, 64},
      {"prefill window 512", 4, 4096, 4096, 32, 8, 128, BH_FLOAT16, 0, 16, 512},
      {"prefill soft cap", 4, 4096, 4096, 32, 8, 128, BH_FLOAT16, 0, 16, 0, 30},
      {"prefill soft cap", 4, 4096, 4096, 32, 8, 64, BH_FLOAT16, 0, 16, 0, 30},
      {"prefill ALiBi", 4, 4096, 4096, 32, 8, 128, BH_FLOAT16, 0, 16, 0, 0, true},
      {"prefill ALiBi", 4, 4096, 4096, 32, 8, 64, BH_FLOAT16, 0, 16, 0, 0, true},
      {"update", 1, 8192, 8192, 32, 8, 128},
      {"update", 1, 8192, 8192, 32, 32, 128},
      {"update", 8, 1024, 8192, 32, 8, 128, BH_FLOAT16, BH_FLOAT8_E4M3FN},
      {"update", 64, 1, 4096, 32, 8, 128},
      {"update rotated", 1, 8192, 8192, 32, 8, 128},
      {"update rotated", 1, 8192, 8192, 32, 8, 128, BH_FLOAT16, BH_FLOAT32},
      {"update rotated", 8, 1024, 8192, 32, 8, 128, BH_FLOAT16, BH_FLOAT8_E4M3FN},
  };
  return all;
}

class DeviceMemory {
 public:
  DeviceMemory(const DeviceApi& api, int64_t bytes) : buffer_(api, Buffer::kOnDevice, "data") {
    buffer_.reserve(bytes);
  }
  char* data() const { return buffer_.data(); }

 private:
  Buffer buffer_;
};

class HostMemory {
 public:
  HostMemory(const DeviceApi& api, int64_t bytes, bool pinned) : api_(api), pinned_(pinned) {
    if (pinned) {
      check(api_, api_.allocate_host(bytes, &data_), "data");
    } else {
      data_ = std::aligned_alloc(64, static_cast<size_t>((bytes + 63) / 64 * 64));
    }
  }
  ~HostMemory() { pinned_ ? api_.release_host(data_) : std::free(data_); }
  HostMemory(const HostMemory&) = delete;
  HostMemory& operator=(const HostMemory&) = delete;
  char* data() const { return static_cast<char*>(data_); }

 private:
  const DeviceApi& api_;
  bool pinned_;
  void* data_ = nullptr;
};

enum class Flush { kOverwrite, kRead };

class Bench {
 public:
  Bench(const DeviceApi& api, std::shared_ptr<Device> device)
      : api_(api),
        device_(std::move(device)),
        work_(*device_),
        stream_(work_->stream),
        flush_(api, kFlush),
        flush_ids_(api, 4096) {
    std::vector<int32_t> ids(1024);
    std::iota(ids.begin(), ids.end(), 0);
    check(api_, api_.copy(stream_, flush_ids_.data(), ids.data(), 4096), "flush");
    check(api_, api_.synchronize(stream_), "flush");
    noise_[0] = make_noise(2);
    noise_[1] = make_noise(1);
    limit_ = copy_bandwidth();
  }

  double limit() const { return limit_; }

  /// Kernels alone.
  void run(const Workload& w) {
    const bool update = std::strncmp(w.kind, "update", 6) == 0;
    Scene scene(*this, w, !update, update);
    DeviceMemory query(api_, scene.query_bytes()), output(api_, scene.query_bytes());
    DeviceMemory key(api_, scene.key_bytes()), value(api_, scene.key_bytes());
    const Step step = scene.step({query.data(), key.data(), value.data(), output.data()});
    fill_tensors(scene, w.dtype);
    GpuLayer& layer = scene.layer();
    const std::unique_ptr<GpuStep> flight = sent(layer, step);
    auto time = [&](Flush flush) { return median(21, flush, [&] { launch(layer, *flight); }); };
    const double seconds = time(Flush::kOverwrite);
    const double clean = time(Flush::kRead);
    const double keys = static_cast<double>(flight->stats().keys_seen);
    const int cache_bytes = byte_width(scene.cache_dtype());
    const int seen = w.window ? std::min(w.window, w.context) : w.context;
    const double bytes =
        update ? double(scene.key_bytes()) * 2 * (1 + double(cache_bytes) / byte_width(w.dtype))
               : double(w.batch) * seen * 2 * w.kv_heads * w.head_size * cache_bytes +
                     2 * double(scene.query_bytes());
    const double flops = 4 * keys * w.heads * w.head_size;
    print(w, w.kind, bytes, flops, seconds, clean);
    if (update) {
      run_copy(w, bytes);
      run_in_a_row(w, bytes);
    }
  }

  /// A copy that moves as many bytes: what such short work gets of the bandwidth at best.
  void run_copy(const Workload& w, double bytes) {
    const auto half = static_cast<int64_t>(bytes / 2);
    DeviceMemory from(api_, half), to(api_, half);
    const double seconds = copy_seconds(21, Flush::kOverwrite, to, from, half);
    print(w, "copy", bytes, 0, seconds, copy_seconds(21, Flush::kRead, to, from, half));
  }

  /// Updates as those of a model's layers follow one another, each with tensors and a cache of its
  /// own, and copies that move as many bytes: for one of them.
  void run_in_a_row(const Workload& w, double bytes) {
    constexpr int kLayers = 32;
    const auto half = static_cast<int64_t>(bytes / 2);
    std::deque<Scene> scenes;
    std::deque<DeviceMemory> keys, values, from, to;
    std::vector<std::unique_ptr<GpuStep>> flights;
    for (int i = 0; i < kLayers; ++i) {
      Scene& scene = scenes.emplace_back(*this, w, false, true);
      char* key = keys.emplace_back(api_, scene.key_bytes()).data();
      char* value = values.emplace_back(api_, scene.key_bytes()).data();
      for (char* tensors : {key, value}) fill(tensors, scene.key_bytes(), 2, w.dtype);
      const Step step = scene.step({nullptr, key, value, nullptr});
      flights.push_back(sent(scene.layer(), step));
      from.emplace_back(api_, half);
      to.emplace_back(api_, half);
    }
    auto time_row = [&](const char* kind, auto&& launch) {
      Graph graph = nullptr;
      check(api_, api_.begin_graph(stream_), "graph");
      for (size_t i = 0; i < kLayers; ++i) launch(i);
      check(api_, api_.end_graph(stream_, &graph), "graph");
      auto seconds = [&](Flush flush) {
        return median(11, flush, [&] { check(api_, api_.launch_graph(stream_, graph), "graph"); }) /
               kLayers;
      };
      const double overwritten = seconds(Flush::kOverwrite);
      print(w, kind, bytes, 0, overwritten, seconds(Flush::kRead));
      api_.destroy_graph(graph);
    };
    time_row((std::string(w.kind) + " in a row").c_str(),
             [&](size_t i) { launch(scenes[i].layer(), *flights[i]); });
    time_row("copy in a row", [&](size_t i) {
      check(api_, api_.copy(stream_, to[i].data(), from[i].data(), half), "copy");
    });
  }

  void print(const Workload& w, const char* kind, double bytes, double flops, double seconds,
             double clean) const {
    const int cache_dtype = w.cache_dtype ? w.cache_dtype : w.dtype;
    std::printf("%s,%d,%d,%d,%d/%d,%d,%s,%s,%d,%.2f,%.1f,%.3f,%.1f,%.2f,%.3f\n", kind, w.batch,
                w.queries, w.context, w.heads, w.kv_heads, w.head_size, dtype_name(w.dtype),
                dtype_name(cache_dtype), w.block_size, seconds * 1e6, bytes / seconds * 1e-9,
                bytes / seconds / limit_, flops / seconds * 1e-12, clean * 1e6,
                bytes / clean / limit_);
    std::fflush(stdout);
  }

  /// Whole steps, update and attention, on tensors in host memory: pinned, then pageable; one after
  /// the other, and two in flight.
  void run_steps(const Workload& w) {
    Scene scene(*this, w, true, true);
    for (const bool pinned : {true, false}) {
      HostMemory query(api_, scene.query_bytes(), pinned),
          output(api_, scene.query_bytes(), pinned);
      HostMemory key(api_, scene.key_bytes(), pinned), value(api_, scene.key_bytes(), pinned);
      const Step step = scene.step({query.data(), key.data(), value.data(), output.data()});
      fill_tensors(scene, w.dtype);
      constexpr int kRuns = 51;
      constexpr int kWarmUp = 8;  // memory of a second step, graphs
      std::vector<double> walls, kernels;
      bh_step_stats stats{};
      for (int i = 0; i < kRuns; ++i) {
        const auto start = std::chrono::steady_clock::now();
        scene.layer().begin(step, stats)->end(stats);
        const std::chrono::duration<double, std::micro> passed =
            std::chrono::steady_clock::now() - start;
        walls.push_back(passed.count());
        kernels.push_back(double(stats.kernel_nanoseconds) * 1e-3);
      }
      for (auto* times : {&walls, &kernels}) {
        std::nth_element(times->begin(), times->begin() + kRuns / 2, times->end());
      }
      std::chrono::steady_clock::time_point start;
      std::unique_ptr<StepInFlight> before;
      for (int i = -kWarmUp; i < kRuns; ++i) {
        if (i == 0) start = std::chrono::steady_clock::now();
        std::unique_ptr<StepInFlight> next = scene.layer().begin(step, stats);
        if (before) before->end(stats);
        before = std::move(next);
      }
      const std::chrono::duration<double, std::micro> overlapped =
          (std::chrono::steady_clock::now() - start) / kRuns;
      before->end(stats);
      std::printf("step,%d,%d,%d,%s,%.1f,%.1f,%.1f,%lld,%lld,%lld\n", w.batch, w.queries, w.context,
                  pinned ? "pinned" : "pageable", walls[kRuns / 2], overlapped.count(),
                  kernels[kRuns / 2], static_cast<long long>(stats.bytes_in_place),
                  static_cast<long long>(stats.bytes_staged),
                  static_cast<long long>(stats.bytes_transferred));
      std::fflush(stdout);
    }
  }

 private:
  struct Tensors {
    char* query;
    char* key;
    char* value;
    char* output;
  };

  /// A layer, its cache full of random numbers, and rows with shuffled blocks.
  class Scene {
   public:
    Scene(Bench& bench, const Workload& w, bool has_query, bool has_key)
        : w_(w),
          has_query_(has_query),
          has_key_(has_key),
          cache_(pool(), bench.device_),
          spec_(make_spec()),
          layer_(spec_, &cache_, bench.device_, cancellation_) {
      if (has_query) {
        bench.fill(cache_.view().memory, cache_.bytes(), byte_width(cache_dtype()), w.dtype);
      }
      blocks_.resize(static_cast<size_t>(cache_.options().num_blocks));
      std::iota(blocks_.begin(), blocks_.end(), 0);
      std::shuffle(blocks_.begin(), blocks_.end(), bench.random_);
      for (int r = 0; r < w.batch; ++r) add_row(r);
    }

    int cache_dtype() const { return w_.cache_dtype ? w_.cache_dtype : w_.dtype; }
    int64_t query_bytes() const { return tokens() * TensorBytes(spec_).query; }
    int64_t key_bytes() const { return tokens() * TensorBytes(spec_).key; }
    GpuLayer& layer() { return layer_; }
    const Tensors& tensors() const { return tensors_; }

    /// Stays the scene's.
    Step step(const Tensors& tensors) {
      tensors_ = tensors;
      part_.query = has_query_ ? tensors.query : nullptr;
      part_.output = has_query_ ? tensors.output : nullptr;
      part_.key = has_key_ ? tensors.key : nullptr;
      part_.value = has_key_ ? tensors.value : nullptr;
      part_.slots = slots_.data();
      part_.blocks = blocks_.data();
      part_.positions.narrow = positions_.data();
      Step step{};
      step.rows = rows_.data();
      step.num_rows = w_.batch;
      step.parts = &part_;
      step.num_queries = has_query_ ? tokens() : 0;
      return step;
    }

   private:
    int64_t tokens() const { return int64_t{w_.batch} * w_.queries; }
    int blocks_of_row() const { return (w_.context + w_.block_size - 1) / w_.block_size; }

    bh_cache_options pool() const {
      bh_cache_options pool{};
      pool.struct_size = sizeof pool;
      pool.num_blocks = int64_t{w_.batch} * blocks_of_row() + 7;
      pool.block_size = w_.block_size;
      pool.num_kv_heads = w_.kv_heads;
      pool.head_size = w_.head_size;
      pool.dtype = cache_dtype();
      return pool;
    }

    LayerSpec make_spec() const {
      bh_layer_options options{};
      options.struct_size = sizeof options;
      options.name = "bench";
      options.num_heads = w_.heads;
      options.num_kv_heads = w_.kv_heads;
      options.head_size = w_.head_size;
      options.dtype = w_.dtype;
      options.scale = 1 / std::sqrt(static_cast<float>(w_.head_size));
      options.k_scale = options.v_scale = 1;
      options.sliding_window = w_.window;
      options.logits_soft_cap = w_.soft_cap;
      std::vector<float> slopes;
      for (int h = 1; h <= w_.heads; ++h) slopes.push_back(std::exp2(-8.0f * h / w_.heads));
      if (w_.alibi) options.alibi_slopes = slopes.data();
      if (std::strcmp(w_.kind, "update rotated") != 0) return check_layer(options);
      // What it rotates by does not matter.
      const std::vector<float> cos_sin(static_cast<size_t>(w_.context) * w_.head_size, 0.6f);
      const bh_rope rope{w_.head_size, w_.context, 1, cos_sin.data()};
      options.rope = &rope;
      return check_layer(options);
    }

    void add_row(int r) {
      StepRow row{};
      row.num_queries = has_query_ ? w_.queries : 0;
      row.num_keys = has_key_ ? w_.queries : 0;
      row.query = row.output = row.key = row.value = row.slots = row.positions =
          int64_t{r} * w_.queries;
      row.blocks = int64_t{r} * blocks_of_row();
      row.seq_len = w_.context;
      rows_.push_back(row);
      for (int position = w_.context - w_.queries; position < w_.context; ++position) {
        const int64_t block = blocks_[static_cast<size_t>(row.blocks + position / w_.block_size)];
        slots_.push_back(block * w_.block_size + position % w_.block_size);
        positions_.push_back(position);
      }
    }

    Workload w_;
    bool has_query_;
    bool has_key_;
    GpuCache cache_;
    LayerSpec spec_;
    std::shared_ptr<const Cancellation> cancellation_ = std::make_shared<Cancellation>();
    GpuLayer layer_;
    std::vector<int32_t> blocks_;
    std::vector<StepRow> rows_;
    std::vector<int64_t> slots_;
    std::vector<int32_t> positions_;
    StepPart part_{};
    Tensors tensors_{};
  };

  void fill_tensors(const Scene& scene, int dtype) {
    fill(scene.tensors().query, scene.query_bytes(), 2, dtype);
    fill(scene.tensors().key, scene.key_bytes(), 2, dtype);
    fill(scene.tensors().value, scene.key_bytes(), 2, dtype);
  }

  static constexpr int64_t kFlush = int64_t{256} << 20;
  static constexpr int64_t kNoise = int64_t{64} << 20;

  std::vector<uint16_t> make_noise(int width) {
    // Numbers of both 16-bit types, in turns of a megabyte each; or e4m3 codes in pairs.
    std::vector<uint16_t> noise(static_cast<size_t>(kNoise / 2));
    std::normal_distribution<float> normal;
    std::vector<float> table(1 << 16);
    for (float& x : table) x = normal(random_);
    for (size_t i = 0; i < noise.size(); ++i) {
      auto draw = [&] { return table[random_() & 0xffff]; };
      noise[i] = width == 2 ? half_of(draw())
                            : static_cast<uint16_t>(e4m3_of(draw()) | e4m3_of(draw()) << 8);
    }
    return noise;
  }

  static uint16_t half_of(float x) {
    const auto half = static_cast<_Float16>(x);
    uint16_t bits;
    std::memcpy(&bits, &half, 2);
    return bits;
  }
  static int e4m3_of(float x) {
    const float m = std::fabs(x);
    if (m < 0.0156f) return (x < 0 ? 0x80 : 0) | static_cast<int>(m * 512);
    int exponent;
    const float fraction = std::frexp(m, &exponent);
    return (x < 0 ? 0x80 : 0) | (exponent + 6) << 3 | static_cast<int>((fraction * 2 - 1) * 8);
  }

  void fill(char* memory, int64_t bytes, int width, int dtype) {
    std::vector<uint16_t> noise = noise_[width == 1];
    if (width == 2 && dtype == BH_BFLOAT16) {
      for (uint16_t& bits : noise) {
        _Float16 half;
        std::memcpy(&half, &bits, 2);
        const auto wide = static_cast<float>(half);
        uint32_t word;
        std::memcpy(&word, &wide, 4);
        bits = static_cast<uint16_t>(word >> 16);
      }
    }
    for (int64_t at = 0; at < bytes; at += kNoise) {
      check(api_, api_.copy(stream_, memory + at, noise.data(), std::min(kNoise, bytes - at)),
            "fill");
    }
    check(api_, api_.synchronize(stream_), "fill");
  }

  /// Median of the events' differences.
  template <class Launch>
  double median(int runs, Flush flush, Launch&& launch) {
    std::vector<Event> events(static_cast<size_t>(2 * runs));
    for (Event& event : events) check(api_, api_.create_event(&event, false), "event");
    for (int i = 0; i < 3; ++i) launch();
    for (int i = 0; i < runs; ++i) {
      if (flush == Flush::kOverwrite) {
        check(api_, api_.clear(stream_, flush_.data(), kFlush), "flush");
      } else {
        CacheView other = cache_view(BH_FLOAT16, 1024, 1, 128);
        other.memory = flush_.data();
        check(api_,
              api_.read_blocks(stream_, &other, reinterpret_cast<const int32_t*>(flush_ids_.data()),
                               kFlush / block_bytes(other), flush_ids_.data()),
              "flush");
      }
      check(api_, api_.record(events[static_cast<size_t>(2 * i)], stream_), "event");
      launch();
      check(api_, api_.record(events[static_cast<size_t>(2 * i + 1)], stream_), "event");
    }
    check(api_, api_.synchronize(stream_), "run");
    std::vector<float> times(static_cast<size_t>(runs));
    for (int i = 0; i < runs; ++i) {
      check(api_,
            api_.elapsed(events[static_cast<size_t>(2 * i)], events[static_cast<size_t>(2 * i + 1)],
                         &times[static_cast<size_t>(i)]),
            "event");
    }
    for (Event event : events) api_.destroy_event(event);
    std::nth_element(times.begin(), times.begin() + runs / 2, times.end());
    return times[static_cast<size_t>(runs / 2)] * 1e-3;
  }

  /// A step whose plan is on the device.
  std::unique_ptr<GpuStep> sent(GpuLayer& layer, const Step& step) {
    std::unique_ptr<GpuStep> flight = layer.prepare(step);
    layer.send(*flight, stream_);
    check(api_, api_.synchronize(stream_), "plan");
    return flight;
  }

  /// Its kernels.
  void launch(GpuLayer& layer, const GpuStep& flight) {
    layer.launch(flight, stream_, layer.update_of(flight.work(), true));
  }

  double copy_bandwidth() {
    constexpr int64_t kBytes = int64_t{2} << 30;
    DeviceMemory from(api_, kBytes), to(api_, kBytes);
    return 2 * double(kBytes) / copy_seconds(10, Flush::kOverwrite, to, from, kBytes);
  }

  double copy_seconds(int runs, Flush flush, const DeviceMemory& to, const DeviceMemory& from,
                      int64_t bytes) {
    return median(runs, flush,
                  [&] { check(api_, api_.copy(stream_, to.data(), from.data(), bytes), "copy"); });
  }

  const DeviceApi& api_;
  std::shared_ptr<Device> device_;
  const Lease work_;
  const Stream stream_;  ///< of all that is timed
  DeviceMemory flush_;
  DeviceMemory flush_ids_;
  std::mt19937 random_{20};
  std::vector<uint16_t> noise_[2];
  double limit_ = 0;
};

int run(const char* backend, const std::string& filter) {
  const Library& opened = library(backend);
  if (!opened.api) {
    std::fprintf(stderr, "%s: %s\n", backend, opened.reason.c_str());
    return 1;
  }
  auto device = std::make_shared<Device>(*opened.api, 0);
  Bench bench(*opened.api, device);
  std::printf("# %s, copy %.0f GB/s\n", device->info().name, bench.limit() * 1e-9);
  std::printf(
      "kind,batch,queries,context,heads,head_size,dtype,cache,block_size,us,GB/s,"
      "of_limit,TFLOP/s,us_clean,of_limit_clean\n");
  for (const Workload& w : workloads()) {
    if (std::string_view(w.kind).starts_with(filter)) bench.run(w);
  }
  if (!filter.empty() && filter != "step") return 0;
  std::printf(
      "kind,batch,queries,context,tensors,us,us_two_in_flight,us_kernels,bytes_in_place,bytes_"
      "staged,"
      "bytes_transferred\n");
  for (const Workload& w :
       {Workload{"step", 8, 1, 4096, 32, 8, 128}, Workload{"step", 64, 1, 4096, 32, 8, 128},
        Workload{"step", 256, 1, 2048, 32, 8, 128}, Workload{"step", 1, 2048, 2048, 32, 8, 128}}) {
    bench.run_steps(w);
  }
  return 0;
}

}  // namespace
}  // namespace broadhead::gpu

int main(int argc, char** argv) {
  if (argc < 2 || std::string(argv[1]) == "--help") {
    std::printf(
        "broadhead_gpu_bench BACKEND [decode | prefill | update | step]\n"
        "  example: broadhead_gpu_bench cuda decode\n");
    return argc < 2;
  }
  try {
    return broadhead::gpu::run(argv[1], argc > 2 ? argv[2] : "");
  } catch (const broadhead::Failure& failure) {
    std::fprintf(stderr, "%s\n", failure.what());
    return 1;
  }
}
