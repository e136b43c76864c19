// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <vector>

#include "broadhead/broadhead.h"
#include "core/layer_spec.h"
#include "core/step.h"
#include "gpu/device.h"

namespace broadhead::gpu {

/// Tensors of one part of a step as kernels reach them: addresses of tensor 0 of each column.
struct PartTensors {
  const char* query = nullptr;
  const char* key = nullptr;
  const char* value = nullptr;
  char* output = nullptr;
  float* lse = nullptr;
};

/// Bytes of a token's tensor in each column.
struct TensorBytes {
  explicit TensorBytes(const LayerSpec& spec);
  int64_t query;
  int64_t key;
  int64_t output;
  int64_t lse;
};

/// Decides how kernels reach the tensors of a step: where the caller has them if they can, through
/// pinned memory of the workspace if not. Large results are written to memory of the device and
/// transferred whole: kernels store them in pieces that fill a bus badly.
class StepMemory {
 public:
  /// Copies what must be copied and counts in `stats`.
  void bring(Device& device, const LayerSpec& spec, const Step& step, Workspace& work,
             bh_step_stats& stats);

  const std::vector<PartTensors>& parts() const { return parts_; }
  /// Whether attention itself can read all queries fast.
  bool queries_on_device() const { return queries_on_device_; }

  /// Puts the transfers of results on the stream, behind the kernels.
  void send_back(const DeviceApi& api, Stream stream) const;
  /// After the step: hands over results that were staged.
  void deliver() const;

 private:
  /// A column of a part: its tensors first .. end - 1 are used.
  struct Column {
    char* tensors = nullptr;
    int64_t tensor_bytes = 0;
    int64_t first = INT64_MAX;
    int64_t end = 0;
    char* address = nullptr;    ///< of tensor 0, for kernels
    char* staging = nullptr;    ///< of what is used; NULL: in place
    char* on_device = nullptr;  ///< of results that are transferred
    int32_t kind = kOnDevice;

    void use(int64_t begin, int64_t count);
    char* used() const { return tensors + first * tensor_bytes; }
    int64_t bytes() const { return first < end ? (end - first) * tensor_bytes : 0; }
  };
  enum Name { kQuery, kKey, kValue, kOutput, kLse, kNames };
  struct Part {
    Column columns[kNames];
  };

  void find(const LayerSpec& spec, const Step& step);
  void locate(Device& device, Column& column, bh_step_stats& stats);
  void stage(Buffer& buffer, Name first, Name end);
  void keep_on_device(Buffer& buffer, bh_step_stats& stats);

  std::vector<Part> columns_;
  std::vector<PartTensors> parts_;
  bool queries_on_device_ = true;
  uintptr_t pageable_page_ = 0;  ///< the step's last that the driver did not know, which takes long
};

}  // namespace broadhead::gpu
