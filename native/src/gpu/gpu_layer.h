// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>

#include "core/backend.h"
#include "gpu/device.h"
#include "gpu/gpu_cache.h"
#include "gpu/gpu_plan.h"

namespace broadhead::gpu {

/// A step between its launch and its end.
struct StepInFlight {
  std::unique_ptr<Workspace> work;
  bh_step_stats stats{};
  void* output = nullptr;  ///< the caller's, where the result is staged
  void* lse = nullptr;
  int64_t output_bytes = 0;
  int64_t lse_bytes = 0;
  int64_t lse_offset = 0;
};

/// One layer on a GPU. A step is a copy of its plan and at most three launches: update, decode,
/// prefill. Encoder layers write their keys and values to a temporary cache and go the same way.
class GpuLayer final : public Layer {
 public:
  GpuLayer(const LayerSpec& spec, const GpuCache* cache, std::shared_ptr<Device> device);
  ~GpuLayer() override;

  void run(const Step& step, bh_step_stats& stats) override;

  /// Plans a step and sends the plan to the device, behind which launch() may follow, more than
  /// once for measurements.
  StepInFlight upload(const Step& step);
  void launch(const StepInFlight& flight);
  /// Waits for the step.
  void end(StepInFlight& flight);

 private:
  /// A tensor column of a step as kernels read it.
  struct Column {
    const void* tensors;
    int64_t first;  ///< tensors that the step uses: first .. end - 1
    int64_t end;
    int64_t tensor_bytes;
    const char* address = nullptr;  ///< of tensor 0, for kernels
    int32_t kind = kOnDevice;

    int64_t bytes() const { return first < end ? (end - first) * tensor_bytes : 0; }
  };

  void upload_constants();
  void choose_kernels();
  void bring(Column* columns, int count, Workspace& work, bh_step_stats& stats) const;
  char* place_result(void* result, int64_t bytes, Workspace& work, int64_t offset, void*& staged,
                     bh_step_stats& stats) const;
  void upload_plan(Workspace& work, StepArgs args);

  const LayerSpec& spec_;
  const GpuCache* cache_;
  std::shared_ptr<Device> device_;
  Buffer constants_;
  LayerArgs args_{};
  int cache_dtype_;
  CacheView view_;
  PlanLimits limits_{};
  GpuPlan plan_;
};

}  // namespace broadhead::gpu
