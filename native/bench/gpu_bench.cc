// SPDX-License-Identifier: Apache-2.0
// broadhead_gpu_bench BACKEND [FILTER]: times the kernels of a GPU backend on data in device memory
// and prints a table of comma-separated values.
//
// Paged block tables are shuffled, data is N(0,1), a time is the median of device events around the
// launches of a step. Before each run the second-level cache is filled with other data: `us` after
// 256 MiB were overwritten, which the run then has to write back besides its own work, and
// `us_clean` after they were read. `limit` is the
// bandwidth of a copy within the device, bytes read and written, measured in the same run.
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <memory>
#include <numeric>
#include <random>
#include <string>
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
      {"prefill", 1, 2048, 2048, 32, 8, 128},
      {"prefill", 4, 4096, 4096, 32, 8, 128},
      {"prefill", 4, 4096, 4096, 32, 8, 128, BH_BFLOAT16},
      {"prefill", 8, 512, 4096 + 512, 32, 8, 128},
      {"prefill", 4, 4096, 4096, 32, 8, 64},
      {"prefill", 4, 4096, 4096, 16, 4, 256},
      {"update", 1, 8192, 8192, 32, 8, 128},
      {"update", 8, 1024, 8192, 32, 8, 128, BH_FLOAT16, BH_FLOAT8_E4M3FN},
      {"update", 64, 1, 4096, 32, 8, 128},
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

enum class Flush { kOverwrite, kRead };

class Bench {
 public:
  Bench(const DeviceApi& api, std::shared_ptr<Device> device)
      : api_(api), device_(std::move(device)), flush_(api, kFlush), flush_ids_(api, 4096) {
    device_->use();
    std::vector<int32_t> ids(1024);
    std::iota(ids.begin(), ids.end(), 0);
    const Lease work(*device_);
    check(api_, api_.copy(work->stream, flush_ids_.data(), ids.data(), 4096), "flush");
    check(api_, api_.synchronize(work->stream), "flush");
    noise_[0] = make_noise(2);
    noise_[1] = make_noise(1);
    limit_ = copy_bandwidth();
  }

  double limit() const { return limit_; }

  void run(const Workload& w) {
    const int cache_dtype = w.cache_dtype ? w.cache_dtype : w.dtype;
    const int blocks_of_row = (w.context + w.block_size - 1) / w.block_size;
    const int64_t num_blocks = int64_t{w.batch} * blocks_of_row + 7;
    bh_cache_options pool{};
    pool.struct_size = sizeof pool;
    pool.num_blocks = num_blocks;
    pool.block_size = w.block_size;
    pool.num_kv_heads = w.kv_heads;
    pool.head_size = w.head_size;
    pool.dtype = cache_dtype;
    GpuCache cache(pool, device_);
    fill(cache.view().memory, cache.bytes(), byte_width(cache_dtype), w.dtype);

    bh_layer_options options{};
    options.struct_size = sizeof options;
    options.name = "bench";
    options.num_heads = w.heads;
    options.num_kv_heads = w.kv_heads;
    options.head_size = w.head_size;
    options.dtype = w.dtype;
    options.scale = 1 / std::sqrt(static_cast<float>(w.head_size));
    options.k_scale = options.v_scale = 1;
    const LayerSpec spec = check_layer(options);
    GpuLayer layer(spec, &cache, device_);

    const bool update = std::strcmp(w.kind, "update") == 0;
    const int64_t tokens = int64_t{w.batch} * w.queries;
    const int64_t key_bytes = int64_t{w.kv_heads} * w.head_size * byte_width(w.dtype);
    const int64_t query_bytes = int64_t{w.heads} * w.head_size * byte_width(w.dtype);
    DeviceMemory query(api_, tokens * query_bytes), output(api_, tokens * query_bytes);
    DeviceMemory key(api_, tokens * key_bytes), value(api_, tokens * key_bytes);
    fill(query.data(), tokens * query_bytes, 2, w.dtype);
    fill(key.data(), tokens * key_bytes, 2, w.dtype);
    fill(value.data(), tokens * key_bytes, 2, w.dtype);

    std::vector<int32_t> blocks(static_cast<size_t>(num_blocks));
    std::iota(blocks.begin(), blocks.end(), 0);
    std::shuffle(blocks.begin(), blocks.end(), random_);
    std::vector<StepRow> rows(static_cast<size_t>(w.batch));
    std::vector<int64_t> slots;
    for (int r = 0; r < w.batch; ++r) {
      StepRow& row = rows[static_cast<size_t>(r)];
      row.num_queries = update ? 0 : w.queries;
      row.query = row.output = int64_t{r} * w.queries;
      row.num_keys = update ? w.queries : 0;
      row.key = row.value = row.slots = int64_t{r} * w.queries;
      row.blocks = int64_t{r} * blocks_of_row;
      row.seq_len = w.context;
      for (int i = 0; update && i < w.queries; ++i) {
        const int position = w.context - w.queries + i;
        const int64_t block = blocks[static_cast<size_t>(row.blocks + position / w.block_size)];
        slots.push_back(block * w.block_size + position % w.block_size);
      }
    }
    Step step{};
    step.rows = rows.data();
    step.num_rows = w.batch;
    step.query = update ? nullptr : query.data();
    step.key = update ? key.data() : nullptr;
    step.value = update ? value.data() : nullptr;
    step.slots = slots.data();
    step.blocks = blocks.data();
    step.num_queries = update ? 0 : tokens;
    step.output = update ? nullptr : output.data();

    StepInFlight flight = layer.upload(step);
    const double seconds = time(layer, flight, Flush::kOverwrite);
    const double clean = time(layer, flight, Flush::kRead);
    const double keys = static_cast<double>(flight.stats.keys_seen);
    const double bytes = update ? double(tokens) * double(key_bytes) * 2 *
                                      (1 + double(byte_width(cache_dtype)) / byte_width(w.dtype))
                                : double(w.batch) * w.context * 2 * w.kv_heads * w.head_size *
                                          byte_width(cache_dtype) +
                                      2 * double(tokens) * double(query_bytes);
    const double flops = 4 * keys * w.heads * w.head_size;
    std::printf("%s,%d,%d,%d,%d/%d,%d,%s,%s,%d,%.2f,%.1f,%.3f,%.1f,%.2f,%.3f\n", w.kind, w.batch,
                w.queries, w.context, w.heads, w.kv_heads, w.head_size, dtype_name(w.dtype),
                dtype_name(cache_dtype), w.block_size, seconds * 1e6, bytes / seconds * 1e-9,
                bytes / seconds / limit_, flops / seconds * 1e-12, clean * 1e6,
                bytes / clean / limit_);
    std::fflush(stdout);
    layer.end(flight);
  }

 private:
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
    const Lease work(*device_);
    for (int64_t at = 0; at < bytes; at += kNoise) {
      check(api_, api_.copy(work->stream, memory + at, noise.data(), std::min(kNoise, bytes - at)),
            "fill");
    }
    check(api_, api_.synchronize(work->stream), "fill");
  }

  /// Median of the events' differences.
  template <class Launch>
  double median(Stream stream, int runs, Flush flush, Launch&& launch) {
    std::vector<Event> events(static_cast<size_t>(2 * runs));
    for (Event& event : events) check(api_, api_.create_event(&event), "event");
    for (int i = 0; i < 3; ++i) launch();
    for (int i = 0; i < runs; ++i) {
      if (flush == Flush::kOverwrite) {
        check(api_, api_.clear(stream, flush_.data(), kFlush), "flush");
      } else {
        CacheView other = cache_view(BH_FLOAT16, 1024, 1, 128);
        other.memory = flush_.data();
        check(api_,
              api_.read_blocks(stream, &other, reinterpret_cast<const int32_t*>(flush_ids_.data()),
                               kFlush / block_bytes(other), flush_ids_.data()),
              "flush");
      }
      check(api_, api_.record(events[static_cast<size_t>(2 * i)], stream), "event");
      launch();
      check(api_, api_.record(events[static_cast<size_t>(2 * i + 1)], stream), "event");
    }
    check(api_, api_.synchronize(stream), "run");
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

  double time(GpuLayer& layer, const StepInFlight& flight, Flush flush) {
    return median(flight.work->stream, 21, flush, [&] { layer.launch(flight); });
  }

  double copy_bandwidth() {
    constexpr int64_t kBytes = int64_t{2} << 30;
    DeviceMemory from(api_, kBytes), to(api_, kBytes);
    const Lease work(*device_);
    const double seconds = median(work->stream, 10, Flush::kOverwrite, [&] {
      check(api_, api_.copy(work->stream, to.data(), from.data(), kBytes), "copy");
    });
    return 2 * double(kBytes) / seconds;
  }

  const DeviceApi& api_;
  std::shared_ptr<Device> device_;
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
    if (filter.empty() || std::string(w.kind) == filter) bench.run(w);
  }
  return 0;
}

}  // namespace
}  // namespace broadhead::gpu

int main(int argc, char** argv) {
  if (argc < 2 || std::string(argv[1]) == "--help") {
    std::printf(
        "broadhead_gpu_bench BACKEND [decode | prefill | update]\n"
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
