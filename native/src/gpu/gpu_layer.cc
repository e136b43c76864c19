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
constexpr int kUpdateBlocks = 8;

/// The largest divisor of `group` that is at most `limit`.
int part_of_group(int group, int limit) {
  int part = std::min(group, limit);
  while (group % part != 0) --part;
  return part;
}

int64_t aligned(int64_t bytes) { return (bytes + 255) / 256 * 256; }

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
  args_.score_scale = spec.scale * spec.k_scale;
  args_.k_scale = spec.k_scale;
  args_.v_scale = spec.v_scale;
  args_.output_scale = spec.output_scale;
  args_.soft_cap = spec.logits_soft_cap;
  args_.inverse_soft_cap = spec.logits_soft_cap > 0 ? 1 / spec.logits_soft_cap : 0;
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
  const bool fast =
      spec_.dtype != BH_FLOAT32 && (cache_dtype_ == spec_.dtype || is_fp8(cache_dtype_));
  const DeviceInfo& info = device_->info();
  limits_.decode_rows =
      fast ? decode_rows(info.columns, spec_.head_size) : plain_rows(spec_.head_size);
  limits_.prefill_rows = fast ? device_->api().prefill_rows(&args_, cache_dtype_) : 0;
  limits_.columns = info.columns;
  limits_.multiprocessors = info.multiprocessors;
  args_.group_size =
      part_of_group(spec_.group_size(), fast ? limits_.prefill_rows : limits_.decode_rows);
  args_.groups_per_kv_head = spec_.group_size() / args_.group_size;
  args_.num_groups = spec_.num_kv_heads * args_.groups_per_kv_head;
  limits_.group_size = args_.group_size;
  limits_.num_groups = args_.num_groups;
  limits_.row_bytes = view_.row_bytes;
  for (const bool large : {false, true}) {
    int32_t slots = 0;
    check(device_->api(),
          device_->api().decode_slots(&args_, cache_dtype_,
                                      large ? limits_.decode_rows : info.columns, &slots),
          "kernel");
    limits_.slots[large] = std::max(1, slots / args_.num_groups);
  }
}

/// Kernels read tensors where they are if they can; what is pageable goes through pinned memory.
void GpuLayer::bring(Column* columns, int count, Workspace& work, bh_step_stats& stats) const {
  const DeviceApi& api = device_->api();
  int64_t staged = 0;
  for (Column* c = columns; c < columns + count; ++c) {
    if (c->bytes() == 0) continue;
    void* address = nullptr;
    check(api,
          api.locate(static_cast<const char*>(c->tensors) + c->first * c->tensor_bytes, &c->kind,
                     &address),
          "tensor");
    c->address = static_cast<const char*>(address) - c->first * c->tensor_bytes;
    (c->kind == kPageable ? stats.bytes_staged : stats.bytes_in_place) += c->bytes();
    if (c->kind == kPageable) staged += aligned(c->bytes());
  }
  work.staged_input.reserve(staged);
  int64_t at = 0;
  for (Column* c = columns; c < columns + count; ++c) {
    if (c->kind != kPageable) continue;
    std::memcpy(work.staged_input.data() + at,
                static_cast<const char*>(c->tensors) + c->first * c->tensor_bytes,
                static_cast<size_t>(c->bytes()));
    c->address = work.staged_input.device_address() + at - c->first * c->tensor_bytes;
    at += aligned(c->bytes());
  }
}

/// Where kernels write a result: in place, or at `offset` of the staging memory, whence end()
/// copies it to `staged`.
char* GpuLayer::place_result(void* result, int64_t bytes, Workspace& work, int64_t offset,
                             void*& staged, bh_step_stats& stats) const {
  if (bytes == 0) return nullptr;
  int32_t kind = kPageable;
  void* address = nullptr;
  check(device_->api(), device_->api().locate(result, &kind, &address), "result");
  if (kind != kPageable) {
    stats.bytes_in_place += bytes;
    return static_cast<char*>(address);
  }
  stats.bytes_staged += bytes;
  staged = result;
  return work.staged_output.device_address() + offset;
}

StepInFlight GpuLayer::upload(const Step& step) {
  StepInFlight flight;
  flight.work = device_->take();
  Workspace& work = *flight.work;
  bh_step_stats& stats = flight.stats;
  const int64_t head_bytes = int64_t{spec_.head_size} * byte_width(spec_.dtype);
  Column columns[] = {{step.query, INT64_MAX, 0, spec_.num_heads * head_bytes},
                      {step.key, INT64_MAX, 0, spec_.num_kv_heads * head_bytes},
                      {step.value, INT64_MAX, 0, spec_.num_kv_heads * head_bytes}};
  auto& [query, key, value] = columns;
  auto use = [](Column& column, int64_t first, int64_t count) {
    if (!column.tensors || count == 0) return;
    column.first = std::min(column.first, first);
    column.end = std::max(column.end, first + count);
  };
  for (int64_t r = 0; r < step.num_rows; ++r) {
    const StepRow& row = step.rows[r];
    use(query, row.query, row.num_queries);
    if (spec_.read_only_cache) continue;
    use(key, row.key, row.num_keys);
    use(value, row.value, row.num_keys);
  }
  bring(columns, 3, work, stats);
  const bool prepare = spec_.rotary_dim > 0 || query.kind != kOnDevice;
  plan_.plan(spec_, step, view_.block_size, prepare, limits_);

  StepArgs args{};
  args.cache = view_;
  args.source_query = query.address;
  args.source_key = key.address;
  args.source_value = value.address;
  args.query = query.address;
  if (prepare) {
    work.query.reserve(step.num_queries * query.tensor_bytes);
    args.query = args.prepared_query = work.query.data();
  }
  if (!cache_) {
    work.temporary_cache.reserve(plan_.temporary_blocks() * block_bytes(view_));
    args.cache.memory = work.temporary_cache.data();
  }
  const int64_t results = step.num_queries * spec_.num_heads;
  flight.output_bytes = results * spec_.head_size * byte_width(spec_.output_dtype());
  flight.lse_bytes = step.lse ? results * int64_t{sizeof(float)} : 0;
  flight.lse_offset = aligned(flight.output_bytes);
  work.staged_output.reserve(flight.lse_offset + flight.lse_bytes);
  args.output = place_result(step.output, flight.output_bytes, work, 0, flight.output, stats);
  args.lse = reinterpret_cast<float*>(
      place_result(step.lse, flight.lse_bytes, work, flight.lse_offset, flight.lse, stats));
  upload_plan(work, args);

  stats.query_tokens = step.num_queries;
  stats.written_tokens = cache_ ? plan_.written_tokens() : 0;
  stats.keys_seen = plan_.keys_seen();
  stats.keys_read = plan_.keys_read();
  auto address_of = [](const Column& c, int64_t first) {
    return c.bytes() == 0 ? 0 : reinterpret_cast<int64_t>(c.address) + first * c.tensor_bytes;
  };
  if (step.num_rows > 0) {
    stats.query_address = address_of(query, step.rows[0].query);
    stats.key_address = address_of(key, step.rows[0].key);
    stats.value_address = address_of(value, step.rows[0].value);
  }
  stats.output_address = reinterpret_cast<int64_t>(args.output);
  return flight;
}

void GpuLayer::upload_plan(Workspace& work, StepArgs args) {
  const DeviceApi& api = device_->api();
  const int64_t heads = plan_.num_partials() * spec_.num_heads;
  work.partial_sums.reserve(heads * spec_.head_size * int64_t{sizeof(float)});
  work.partial_state.reserve(heads * 2 * int64_t{sizeof(float)});
  args.partial_sums = reinterpret_cast<float*>(work.partial_sums.data());
  args.partial_state = reinterpret_cast<float*>(work.partial_state.data());
  const int64_t counters = int64_t{plan_.num_rows()} * args_.num_groups * int64_t{sizeof(int32_t)};
  if (work.finished.reserve(counters)) {
    check(api, api.clear(work.stream, work.finished.data(), work.finished.capacity()), "counters");
  }
  args.finished = reinterpret_cast<int32_t*>(work.finished.data());
  const int64_t bytes = plan_.bytes();
  work.plan_host.reserve(bytes);
  work.plan.reserve(bytes);
  plan_.write(args, work.plan_host.data(), work.plan.data());
  check(api, api.copy(work.stream, work.plan.data(), work.plan_host.data(), bytes), "plan");
}

void GpuLayer::launch(const StepInFlight& flight) {
  const DeviceApi& api = device_->api();
  const Stream stream = flight.work->stream;
  const auto* step = reinterpret_cast<const StepArgs*>(flight.work->plan.data());
  if (plan_.update_work() > 0) {
    const int64_t blocks =
        std::min<int64_t>(plan_.update_work(), kUpdateBlocks * device_->info().multiprocessors);
    check(api, api.update(stream, &args_, cache_dtype_, step, static_cast<int32_t>(blocks)),
          "cache update");
  }
  if (plan_.has_decode()) {
    check(api,
          api.decode(stream, &args_, cache_dtype_, step, plan_.decode_rows(), plan_.decode_slots()),
          "decode");
  }
  if (plan_.num_prefill_items() > 0) {
    check(api, api.prefill(stream, &args_, cache_dtype_, step, plan_.num_prefill_items()),
          "prefill");
  }
}

void GpuLayer::end(StepInFlight& flight) {
  Workspace& work = *flight.work;
  check(device_->api(), device_->api().synchronize(work.stream), "step");
  const char* staged = work.staged_output.data();
  if (flight.output) {
    std::memcpy(flight.output, staged, static_cast<size_t>(flight.output_bytes));
  }
  if (flight.lse) {
    std::memcpy(flight.lse, staged + flight.lse_offset, static_cast<size_t>(flight.lse_bytes));
  }
  device_->give_back(std::move(flight.work));
}

void GpuLayer::run(const Step& step, bh_step_stats& stats) {
  StepInFlight flight = upload(step);
  launch(flight);
  end(flight);
  stats = flight.stats;
}

}  // namespace broadhead::gpu
