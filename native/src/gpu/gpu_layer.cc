// SPDX-License-Identifier: Apache-2.0
#include "gpu/gpu_layer.h"

#include <algorithm>
#include <bit>

#include "core/dtype.h"

namespace broadhead::gpu {
namespace {

/// Tokens of a block of an encoder layer's temporary cache.
constexpr int kTemporaryBlock = kTile;

/// Blocks of threads that a grid has in its second dimension at most, where groups of heads are.
constexpr int kMostGroups = 65535;

/// The largest divisor of `group` that is at most `limit`.
int part_of_group(int group, int limit) {
  int part = std::min(group, limit);
  while (group % part != 0) --part;
  return part;
}

}  // namespace

LayerArgs layer_args(const LayerSpec& spec, int cache_dtype, const Device& device) {
  LayerArgs args{};
  args.num_heads = spec.num_heads;
  args.num_kv_heads = spec.num_kv_heads;
  args.head_size = spec.head_size;
  args.dtype = spec.dtype;
  args.output_dtype = spec.output_dtype();
  args.score_scale = spec.scale * spec.k_scale;
  args.k_scale = spec.k_scale;
  args.v_scale = spec.v_scale;
  args.result_scale = spec.output_scale > 0 ? spec.v_scale / spec.output_scale : spec.v_scale;
  args.soft_cap = spec.logits_soft_cap;
  args.inverse_soft_cap = spec.logits_soft_cap > 0 ? 1 / spec.logits_soft_cap : 0;
  args.rotary_dim = spec.rotary_dim;
  args.is_neox = spec.is_neox;
  const int rows = is_fast(spec.dtype, cache_dtype) ? device.api().prefill_rows(&args, cache_dtype)
                                                    : plain_rows(spec.head_size);
  args.group_size = part_of_group(spec.group_size(), rows);
  args.groups_per_kv_head = spec.group_size() / args.group_size;
  const int64_t num_groups = int64_t{spec.num_kv_heads} * args.groups_per_kv_head;
  if (num_groups > kMostGroups) {
    throw Failure(BH_UNSUPPORTED, kNoRow,
                  "%s: num_kv_heads must be at most %d on a GPU, times the groups of at most %d of "
                  "a KV head's query heads; got num_kv_heads %d with num_heads %d: %lld groups",
                  spec.name.c_str(), kMostGroups, rows, spec.num_kv_heads, spec.num_heads,
                  static_cast<long long>(num_groups));
  }
  args.num_groups = static_cast<int32_t>(num_groups);
  if (TensorBytes(spec).query > INT32_MAX) {
    throw Failure(
        BH_UNSUPPORTED, kNoRow,
        "%s: num_heads must be so few that a query has less than 2^31 bytes on a GPU, got "
        "%d of %d %s",
        spec.name.c_str(), spec.num_heads, spec.head_size, dtype_name(spec.dtype));
  }
  if (spec.max_position > INT32_MAX) {
    throw Failure(BH_UNSUPPORTED, kNoRow, "%s: max_position must be below 2^31 on a GPU, got %lld",
                  spec.name.c_str(), static_cast<long long>(spec.max_position));
  }
  return args;
}

GpuStep::GpuStep(std::shared_ptr<Device> device, std::shared_ptr<const Cancellation> cancellation)
    : device_(std::move(device)), cancellation_(std::move(cancellation)), work_(device_->take()) {}

GpuStep::~GpuStep() {
  if (!work_) return;
  // It never ended, or not well: nothing may read the caller's memory after this.
  (void)device_->api().use(device_->index());
  (void)device_->api().synchronize(work_->stream);
}

void GpuStep::wait() {
  device_->use();
  work_->sleep();
}

void GpuStep::end(bh_step_stats& stats) {
  device_->use();
  check(device_->api(), device_->api().synchronize(work_->stream), "step");
  stats_.kernel_nanoseconds = work_->nanoseconds();
  if (!cancellation_->requested()) memory_.deliver();
  device_->give_back(std::move(work_));
  cancellation_->check();
  stats = stats_;
}

GpuLayer::GpuLayer(const LayerSpec& spec, GpuCache* cache, std::shared_ptr<Device> device,
                   std::shared_ptr<const Cancellation> cancellation)
    : spec_(spec),
      cache_(cache),
      device_(std::move(device)),
      cancellation_(std::move(cancellation)),
      own_order_(device_->api()),
      order_(cache ? cache->order() : own_order_),
      constants_(device_->api(), Buffer::kOnDevice, "constants of a layer"),
      cache_dtype_(cache ? cache->options().dtype : spec.dtype),
      view_(cache ? cache->view()
                  : cache_view(spec.dtype, kTemporaryBlock, spec.num_kv_heads, spec.head_size)),
      graphs_(device_->api()) {
  device_->use();
  args_ = layer_args(spec, cache_dtype_, *device_);
  upload_constants();
  choose_kernels();
}

GpuLayer::~GpuLayer() {
  (void)device_->api().use(device_->index());
  order_.wait();
}

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
  put(spec_.cos_sin, args_.cos_sin);  // first, for its alignment
  put(spec_.alibi_slopes, args_.alibi_slopes);
  put(spec_.sinks, args_.sinks);
  check(api, api.copy(work->stream, constants_.data(), work->staged_input.data(), bytes), "layer");
  check(api, api.synchronize(work->stream), "layer");
}

void GpuLayer::choose_kernels() {
  const bool fast = is_fast(spec_.dtype, cache_dtype_);
  const DeviceInfo& info = device_->info();
  limits_.decode_rows =
      fast ? decode_rows(info.columns, spec_.head_size) : plain_rows(spec_.head_size);
  // fp8 costs prefill more, which widens keys and values for as many rows as it could take.
  limits_.divided_rows = limits_.decode_rows * (is_fp8(cache_dtype_) ? 2 : 1);
  limits_.prefill_rows = fast ? device_->api().prefill_rows(&args_, cache_dtype_) : 0;
  limits_.columns = info.columns;
  limits_.multiprocessors = info.multiprocessors;
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

std::unique_ptr<GpuStep> GpuLayer::prepare(const Step& step) {
  auto flight = std::make_unique<GpuStep>(device_, cancellation_);
  Workspace& work = flight->work();
  const StepMemory& memory = flight->memory();
  bh_step_stats& stats = flight->stats();
  flight->memory().bring(*device_, spec_, step, work, stats);
  const char* prepared_query = nullptr;
  if (spec_.rotary_dim > 0 || !memory.queries_on_device()) {
    work.query.reserve(step.num_queries * TensorBytes(spec_).query);
    prepared_query = work.query.data();
  }
  plan_.plan(spec_, step, view_.block_size, memory.parts(), prepared_query, limits_);
  if (!cache_) work.temporary_cache.reserve(plan_.num_blocks() * block_bytes(view_));
  write_plan(work);

  stats.query_tokens = step.num_queries;
  stats.written_tokens = cache_ ? plan_.written_tokens() : 0;
  stats.keys_seen = plan_.keys_seen();
  stats.keys_read = plan_.keys_read();
  if (step.num_rows > 0) {
    const TensorBytes bytes(spec_);
    const StepRow& row = step.rows[0];
    const PartTensors& part = memory.parts()[static_cast<size_t>(row.part)];
    auto address_of = [](const char* tensors, int64_t offset) {
      return tensors ? reinterpret_cast<int64_t>(tensors + offset) : 0;
    };
    stats.query_address = address_of(part.query, row.query * bytes.query);
    stats.key_address = address_of(part.key, row.key * bytes.key);
    stats.value_address = address_of(part.value, row.value * bytes.key);
    stats.output_address = reinterpret_cast<int64_t>(part.output);
  }
  return flight;
}

CacheView GpuLayer::cache_of(const Workspace& work) const {
  CacheView view = view_;
  if (!cache_) view.memory = work.temporary_cache.data();
  return view;
}

void GpuLayer::write_plan(Workspace& work) {
  const DeviceApi& api = device_->api();
  StepArgs args{};
  args.cache = cache_of(work);
  const int64_t heads = plan_.num_partials() * spec_.num_heads;
  work.partial_sums.reserve(heads * spec_.head_size * int64_t{sizeof(float)});
  work.partial_state.reserve(heads * 2 * int64_t{sizeof(float)});
  args.partial_sums = reinterpret_cast<float*>(work.partial_sums.data());
  args.partial_state = reinterpret_cast<float*>(work.partial_state.data());
  const int64_t counters = 1 + int64_t{plan_.num_runs()} * args_.num_groups;
  if (work.counters.reserve(counters * int64_t{sizeof(int32_t)})) {
    check(api, api.clear(work.stream, work.counters.data(), work.counters.capacity()), "counters");
  }
  args.taken = reinterpret_cast<int32_t*>(work.counters.data());
  args.finished = args.taken + 1;
  work.plan_host.reserve(plan_bytes());
  work.plan.reserve(plan_bytes());
  plan_.write(args, work.plan_host.data(), work.plan.data());
}

/// Rounded up, so that the steps of growing sequences are alike for a while.
int64_t GpuLayer::plan_bytes() const {
  return static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(plan_.bytes())));
}

void GpuLayer::send(const GpuStep& flight, Stream stream) {
  const Workspace& work = flight.work();
  check(device_->api(),
        device_->api().copy(stream, work.plan.data(), work.plan_host.data(), plan_.bytes()),
        "plan");
}

UpdateArgs GpuLayer::update_of(const Workspace& work, bool sent) const {
  UpdateArgs args{};
  args.cache = cache_of(work);
  args.prepared_query = work.query.data();
  const char* host = work.plan_host.device_address();
  plan_.point(args, sent ? work.plan.data() : host);
  if (!sent) {
    const int64_t offset = plan_.attention_offset();
    args.plan = {work.plan.data() + offset, host + offset, plan_bytes() - offset};
  }
  return args;
}

void GpuLayer::launch(const GpuStep& flight, Stream stream, const UpdateArgs& update) {
  const DeviceApi& api = device_->api();
  const auto* step = step_of(flight.work());
  if (plan_.has_update()) {
    check(api, api.update(stream, &args_, &update), "cache update");
  }
  if (plan_.decode_blocks() > 0) {
    check(
        api,
        api.decode(stream, &args_, cache_dtype_, step, plan_.decode_rows(), plan_.decode_blocks()),
        "decode");
  }
  if (plan_.num_prefill_items() > 0) {
    check(api, api.prefill(stream, &args_, cache_dtype_, step, plan_.num_prefill_items()),
          "prefill");
  }
}

std::unique_ptr<StepInFlight> GpuLayer::begin(const Step& step, bh_step_stats&) {
  cancellation_->check();
  std::unique_ptr<GpuStep> flight = prepare(step);
  const Workspace& work = flight->work();
  const bool is_replayed = plan_.num_prefill_items() == 0;
  // While earlier steps compute, the plan goes ahead: by a copy engine, since decode is shared out
  // unevenly where other kernels run as it starts. Otherwise the update brings it sooner.
  const bool sent = !is_replayed || !plan_.has_update() || order_.is_elsewhere(work.stream);
  if (sent) send(*flight, work.stream);
  const UpdateArgs update = update_of(work, sent);
  order_.follow(work.stream);
  work.start_clock();
  auto put_on_stream = [&] { launch(*flight, work.stream, update); };
  if (is_replayed) {
    graphs_.run({step_of(work), update, plan_.decode_rows(), plan_.decode_blocks()}, work.stream,
                order_, put_on_stream);
  } else {
    put_on_stream();
  }
  work.stop_clock();
  // Results travel while the next step computes.
  order_.mark(work.stream);
  flight->memory().send_back(device_->api(), work.stream);
  return flight;
}

}  // namespace broadhead::gpu
