// SPDX-License-Identifier: Apache-2.0
#include "gpu/gpu_layer.h"

#include <algorithm>
#include <cstring>

#include "core/dtype.h"

namespace broadhead::gpu {
namespace {

/// Tokens of a block of an encoder layer's temporary cache.
constexpr int kTemporaryBlock = kTile;

/// Blocks of threads of the update kernel for each multiprocessor.
constexpr int kUpdateBlocks = 16;

/// The largest divisor of `group` that is at most `limit`.
int part_of_group(int group, int limit) {
  int part = std::min(group, limit);
  while (group % part != 0) --part;
  return part;
}

struct Range {
  int64_t first = INT64_MAX;
  int64_t end = 0;

  void add(int64_t begin, int64_t count) {
    if (count == 0) return;
    first = std::min(first, begin);
    end = std::max(end, begin + count);
  }
  bool empty() const { return first >= end; }
};

}  // namespace

GpuLayer::GpuLayer(const LayerSpec& spec, const GpuCache* cache, std::shared_ptr<Device> device)
    : spec_(spec),
      cache_(cache),
      device_(std::move(device)),
      constants_(device_->api(), Buffer::kOnDevice, "constants of a layer"),
      cache_dtype_(cache ? cache->options().dtype : spec.dtype),
      view_(cache ? cache->view()
                  : cache_view(spec.dtype, kTemporaryBlock, spec.num_kv_heads, spec.head_size)) {
  device_->use();
  args_.num_heads = spec.num_heads;
  args_.num_kv_heads = spec.num_kv_heads;
  args_.head_size = spec.head_size;
  args_.dtype = spec.dtype;
  args_.output_dtype = spec.output_dtype();
  args_.causal = spec.is_causal();
  args_.window = spec.window();
  args_.score_scale = spec.scale * spec.k_scale;
  args_.k_scale = spec.k_scale;
  args_.v_scale = spec.v_scale;
  args_.output_scale = spec.output_scale;
  args_.soft_cap = spec.logits_soft_cap;
  args_.rotary_dim = spec.rotary_dim;
  args_.is_neox = spec.is_neox;
  upload_constants();
  choose_kernels();
}

GpuLayer::~GpuLayer() { device_->api().use(device_->index()); }

void GpuLayer::upload_constants() {
  const size_t floats = spec_.alibi_slopes.size() + spec_.sinks.size() + spec_.cos_sin.size();
  if (floats == 0) return;
  const DeviceApi& api = device_->api();
  const Lease work(*device_);
  const auto bytes = static_cast<int64_t>(floats * sizeof(float));
  constants_.reserve(bytes);
  work->staged_input.reserve(bytes);
  auto* host = reinterpret_cast<float*>(work->staged_input.data());
  auto* device = reinterpret_cast<const float*>(constants_.data());
  auto put = [&](const std::vector<float>& numbers, const float*& pointer) {
    if (numbers.empty()) return;
    std::copy(numbers.begin(), numbers.end(), host);
    pointer = device;
    host += numbers.size();
    device += numbers.size();
  };
  put(spec_.alibi_slopes, args_.alibi_slopes);
  put(spec_.sinks, args_.sinks);
  put(spec_.cos_sin, args_.cos_sin);
  check(api, api.copy(work->stream, constants_.data(), work->staged_input.data(), bytes), "layer");
  check(api, api.synchronize(work->stream), "layer");
}

/// The matrix kernels take 16-bit tensors on a cache of their own dtype or of fp8.
void GpuLayer::choose_kernels() {
  const bool fast = spec_.dtype != BH_FLOAT32 &&
                    (cache_dtype_ == spec_.dtype || is_fp8(cache_dtype_));
  const DeviceInfo& info = device_->info();
  limits_.decode_rows = fast ? decode_rows(info.columns, spec_.head_size) : plain_rows(spec_.head_size);
  limits_.prefill_rows = fast ? prefill_rows(spec_.head_size) : 0;
  limits_.columns = info.columns;
  limits_.multiprocessors = info.multiprocessors;
  args_.group_size = part_of_group(spec_.group_size(), fast ? limits_.prefill_rows : limits_.decode_rows);
  args_.groups_per_kv_head = spec_.group_size() / args_.group_size;
  args_.num_groups = spec_.num_kv_heads * args_.groups_per_kv_head;
  limits_.group_size = args_.group_size;
  limits_.num_groups = args_.num_groups;
  for (const bool large : {false, true}) {
    int32_t slots = 0;
    check(device_->api(),
          device_->api().decode_slots(&args_, cache_dtype_,
                                      large ? limits_.decode_rows : info.columns, &slots),
          "kernel");
    limits_.slots[large] = std::max(1, slots / args_.num_groups);
  }
}

/// Kernels read tensors where they are if they can; what is pageable goes through `staging`.
GpuLayer::Tensors GpuLayer::bring(const void* tensors, int64_t first, int64_t end,
                                  int64_t tensor_bytes, char* staging, char* staging_address,
                                  bh_step_stats& stats) const {
  if (first >= end) return {};
  const char* host = static_cast<const char*>(tensors) + first * tensor_bytes;
  const int64_t bytes = (end - first) * tensor_bytes;
  if (!staging) {
    Tensors found;
    void* address = nullptr;
    check(device_->api(), device_->api().locate(host, &found.kind, &address), "tensor");
    found.address = static_cast<const char*>(address) - first * tensor_bytes;
    if (found.kind != kPageable) stats.bytes_in_place += bytes;
    return found;
  }
  std::memcpy(staging, host, static_cast<size_t>(bytes));
  stats.bytes_staged += bytes;
  return {staging_address - first * tensor_bytes, kPinned};
}

void GpuLayer::run(const Step& step, bh_step_stats& stats) {
  const Lease work(*device_);
  const DeviceApi& api = device_->api();
  const int64_t head_bytes = int64_t{spec_.head_size} * byte_width(spec_.dtype);
  const int64_t query_bytes = spec_.num_heads * head_bytes;
  const int64_t key_bytes = spec_.num_kv_heads * head_bytes;
  const int64_t output_bytes = step.num_queries * spec_.num_heads * spec_.head_size *
                               byte_width(spec_.output_dtype());
  const int64_t lse_bytes = step.lse ? step.num_queries * spec_.num_heads * 4 : 0;

  Range queries, keys, values;
  const bool writes = step.key && !spec_.read_only_cache;
  for (int64_t r = 0; r < step.num_rows; ++r) {
    const StepRow& row = step.rows[r];
    if (step.query) queries.add(row.query, row.num_queries);
    if (writes) keys.add(row.key, row.num_keys);
    if (writes) values.add(row.value, row.num_keys);
  }
  struct Column {
    const void* tensors;
    const Range& range;
    int64_t tensor_bytes;
    Tensors found;
  } columns[] = {{step.query, queries, query_bytes, {}},
                 {step.key, keys, key_bytes, {}},
                 {step.value, values, key_bytes, {}}};
  int64_t staged = 0;
  for (Column& c : columns) {
    c.found = bring(c.tensors, c.range.first, c.range.end, c.tensor_bytes, nullptr, nullptr, stats);
    if (c.found.kind == kPageable) {
      staged += ((c.range.end - c.range.first) * c.tensor_bytes + 255) / 256 * 256;
    }
  }
  work->staged_input.reserve(staged);
  int64_t at = 0;
  for (Column& c : columns) {
    if (c.found.kind != kPageable) continue;
    c.found = bring(c.tensors, c.range.first, c.range.end, c.tensor_bytes,
                    work->staged_input.data() + at, work->staged_input.device_address() + at,
                    stats);
    at += ((c.range.end - c.range.first) * c.tensor_bytes + 255) / 256 * 256;
  }

  const bool prepare = spec_.rotary_dim > 0 || columns[0].found.kind != kOnDevice;
  plan_.plan(spec_, step, view_.block_size, prepare, limits_);

  StepArgs args{};
  args.cache = view_;
  args.source_query = columns[0].found.address;
  args.source_key = columns[1].found.address;
  args.source_value = columns[2].found.address;
  args.query = args.source_query;
  if (prepare) {
    work->query.reserve(step.num_queries * query_bytes);
    args.query = args.prepared_query = work->query.data();
  }
  if (!cache_) {
    work->temporary_cache.reserve(plan_.temporary_blocks() * block_bytes(view_));
    args.cache.memory = work->temporary_cache.data();
  }
  bool output_staged = false;
  auto place_result = [&](void* result, int64_t bytes, int64_t offset) -> char* {
    if (bytes == 0) return nullptr;
    int32_t kind = kPageable;
    void* address = nullptr;
    check(api, api.locate(result, &kind, &address), "result");
    if (kind == kPageable) {
      output_staged = true;
      stats.bytes_staged += bytes;
      return work->staged_output.device_address() + offset;
    }
    stats.bytes_in_place += bytes;
    return static_cast<char*>(address);
  };
  const int64_t lse_offset = (output_bytes + 255) / 256 * 256;
  work->staged_output.reserve(lse_offset + lse_bytes);
  char* output = place_result(step.output, output_bytes, 0);
  const bool stage_output = output_staged;
  output_staged = false;
  char* lse = place_result(step.lse, lse_bytes, lse_offset);
  const bool stage_lse = output_staged;
  args.output = output;
  args.lse = reinterpret_cast<float*>(lse);

  launch(step, *work, args, limits_.prefill_rows > 0);
  check(api, api.synchronize(work->stream), "step");
  if (stage_output) {
    std::memcpy(step.output, work->staged_output.data(), static_cast<size_t>(output_bytes));
  }
  if (stage_lse) {
    std::memcpy(step.lse, work->staged_output.data() + lse_offset, static_cast<size_t>(lse_bytes));
  }

  stats.query_tokens = step.num_queries;
  stats.written_tokens = cache_ ? plan_.written_tokens() : 0;
  stats.keys_seen = plan_.keys_seen();
  stats.keys_read = plan_.keys_read();
  auto first_address = [](const Column& c, int64_t first) {
    return c.range.empty() ? 0
                           : reinterpret_cast<int64_t>(c.found.address) + first * c.tensor_bytes;
  };
  if (step.num_rows > 0) {
    stats.query_address = first_address(columns[0], step.rows[0].query);
    stats.key_address = first_address(columns[1], step.rows[0].key);
    stats.value_address = first_address(columns[2], step.rows[0].value);
  }
  stats.output_address = reinterpret_cast<int64_t>(output);
}

void GpuLayer::launch(const Step& step, Workspace& work, StepArgs args, bool fast) {
  (void)step;
  (void)fast;
  const DeviceApi& api = device_->api();
  const int64_t heads = plan_.num_partials() * spec_.num_heads;
  work.partial_sums.reserve(heads * spec_.head_size * 4);
  work.partial_state.reserve(heads * 2 * 4);
  args.partial_sums = reinterpret_cast<float*>(work.partial_sums.data());
  args.partial_state = reinterpret_cast<float*>(work.partial_state.data());
  const int64_t counters = int64_t{plan_.num_rows()} * args_.num_groups * 4;
  if (work.finished.reserve(counters)) {
    check(api, api.clear(work.stream, work.finished.data(), work.finished.capacity()), "counters");
  }
  args.finished = reinterpret_cast<int32_t*>(work.finished.data());

  const int64_t bytes = plan_.bytes();
  work.plan_host.reserve(bytes);
  work.plan.reserve(bytes);
  plan_.write(args, work.plan_host.data(), work.plan.data());
  check(api, api.copy(work.stream, work.plan.data(), work.plan_host.data(), bytes), "plan");
  const auto* step_args = reinterpret_cast<const StepArgs*>(work.plan.data());
  if (plan_.update_work() > 0) {
    const int64_t blocks =
        std::min<int64_t>(plan_.update_work(), kUpdateBlocks * device_->info().multiprocessors);
    check(api,
          api.update(work.stream, &args_, cache_dtype_, step_args, static_cast<int32_t>(blocks)),
          "cache update");
  }
  if (plan_.has_decode()) {
    check(api,
          api.decode(work.stream, &args_, cache_dtype_, step_args, plan_.decode_rows(),
                     plan_.decode_slots()),
          "decode");
  }
  if (plan_.num_prefill_items() > 0) {
    check(api,
          api.prefill(work.stream, &args_, cache_dtype_, step_args, plan_.num_prefill_items()),
          "prefill");
  }
}

}  // namespace broadhead::gpu
