// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>

#include "core/backend.h"
#include "gpu/device.h"
#include "gpu/gpu_cache.h"
#include "gpu/gpu_plan.h"

namespace broadhead::gpu {

/// One layer on a GPU. A step is a copy of its plan and at most three launches: update, decode,
/// prefill. Encoder layers write their keys and values to a temporary cache and go the same way.
class GpuLayer final : public Layer {
 public:
  GpuLayer(const LayerSpec& spec, const GpuCache* cache, std::shared_ptr<Device> device);
  ~GpuLayer() override;

  void run(const Step& step, bh_step_stats& stats) override;

 private:
  /// A tensor column of a step as kernels read it.
  struct Tensors {
    const char* address = nullptr;  ///< of tensor 0, for kernels
    int32_t kind = kOnDevice;
  };

  void upload_constants();
  void choose_kernels();
  Tensors bring(const void* tensors, int64_t first, int64_t end, int64_t tensor_bytes,
                char* staging, char* staging_address, bh_step_stats& stats) const;
  void launch(const Step& step, Workspace& work, StepArgs args, bool fast);

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
