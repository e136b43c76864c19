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

/// A step between its launch and its end.
struct StepInFlight {
  std::unique_ptr<Workspace> work;
  StepMemory memory;
  bh_step_stats stats{};
};

/// One layer on a GPU. A step is a copy of its plan and at most three launches: update, decode,
/// prefill. Encoder layers write their keys and values to a temporary cache and go the same way.
class GpuLayer final : public Layer {
 public:
  GpuLayer(const LayerSpec& spec, const GpuCache* cache, std::shared_ptr<Device> device,
           const Cancellation& cancellation);
  ~GpuLayer() override;

  void run(const Step& step, bh_step_stats& stats) override;

  /// Plans a step. Then send() its plan to the device and launch(), more than once for
  /// measurements.
  StepInFlight prepare(const Step& step);
  void send(const StepInFlight& flight);
  void launch(const StepInFlight& flight);
  /// Waits for the step.
  void end(StepInFlight& flight);

 private:
  void upload_constants();
  void choose_kernels();
  void write_plan(Workspace& work, StepArgs args);
  int32_t update_blocks() const;
  int64_t plan_bytes() const;

  const LayerSpec& spec_;
  const GpuCache* cache_;
  std::shared_ptr<Device> device_;
  const Cancellation& cancellation_;
  Buffer constants_;
  LayerArgs args_{};
  int cache_dtype_;
  CacheView view_;
  PlanLimits limits_{};
  GpuPlan plan_;
  StepGraphs graphs_;
};

}  // namespace broadhead::gpu
