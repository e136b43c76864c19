// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>

#include "core/backend.h"
#include "gpu/device.h"
#include "gpu/gpu_cache.h"
#include "gpu/gpu_plan.h"
#include "gpu/step_graphs.h"
#include "gpu/step_memory.h"

namespace broadhead::gpu {

/// A step between its launch and its end, with its workspace: two of them in turn are a double
/// buffer of plans, staged tensors and results.
class GpuStep final : public StepInFlight {
 public:
  GpuStep(std::shared_ptr<Device> device, std::shared_ptr<const Cancellation> cancellation);
  ~GpuStep() override;

  void wait() override;
  void end(bh_step_stats& stats) override;

  Workspace& work() const { return *work_; }
  StepMemory& memory() { return memory_; }
  bh_step_stats& stats() { return stats_; }

 private:
  std::shared_ptr<Device> device_;
  std::shared_ptr<const Cancellation> cancellation_;
  std::unique_ptr<Workspace> work_;  ///< NULL after the end
  StepMemory memory_;
  bh_step_stats stats_{};
};

/// What kernels must know of a layer; its constants have no addresses yet. `device` is current.
/// Throws Failure(BH_UNSUPPORTED) that names the option where a GPU cannot run the layer.
LayerArgs layer_args(const LayerSpec& spec, int cache_dtype, const Device& device);

/// One layer on a GPU. A step is a copy of its plan, by itself or by the update, and at most three
/// launches: update, decode, prefill. Encoder layers write their keys and values to a temporary
/// cache and go the same way.
class GpuLayer final : public Layer {
 public:
  GpuLayer(const LayerSpec& spec, GpuCache* cache, std::shared_ptr<Device> device,
           std::shared_ptr<const Cancellation> cancellation);
  ~GpuLayer() override;

  std::unique_ptr<StepInFlight> begin(const Step& step, bh_step_stats& stats) override;

  /// Plans a step. Then send() its plan to the device and launch(), more than once for
  /// measurements.
  std::unique_ptr<GpuStep> prepare(const Step& step);
  void send(const GpuStep& flight, Stream stream);
  void launch(const GpuStep& flight, Stream stream, const UpdateArgs& update);
  /// The update of the step that was prepared last. Where the plan was not sent, it brings it.
  UpdateArgs update_of(const Workspace& work, bool sent) const;

 private:
  void upload_constants();
  void choose_kernels();
  CacheView cache_of(const Workspace& work) const;
  void write_plan(Workspace& work);
  int64_t plan_bytes() const;
  const StepArgs* step_of(const Workspace& work) const {
    return reinterpret_cast<const StepArgs*>(work.plan.data() + plan_.attention_offset());
  }

  const LayerSpec& spec_;
  GpuCache* cache_;
  std::shared_ptr<Device> device_;
  std::shared_ptr<const Cancellation> cancellation_;
  StepOrder own_order_;
  StepOrder& order_;  ///< of the cache; a layer without one has its own
  Buffer constants_;
  LayerArgs args_{};
  int cache_dtype_;
  CacheView view_;
  PlanLimits limits_{};
  GpuPlan plan_;
  StepGraphs graphs_;
};

}  // namespace broadhead::gpu
