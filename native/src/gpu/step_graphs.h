// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <compare>
#include <cstddef>
#include <cstdint>
#include <map>

#include "gpu/device.h"
#include "gpu/kernel_args.h"

namespace broadhead::gpu {

/// What must be the same for a recorded step to be replayed: all that is not in its plan.
struct StepShape {
  const StepArgs* step;
  UpdateArgs update;
  int32_t decode_rows;
  int32_t decode_blocks;

  auto operator<=>(const StepShape&) const = default;
};

/// Records decode steps of one layer when their shape comes again, and replays them after that: one
/// call instead of one for each transfer and kernel.
class StepGraphs {
 public:
  explicit StepGraphs(const DeviceApi& api) : api_(api) {}
  ~StepGraphs() { clear(); }
  StepGraphs(const StepGraphs&) = delete;
  StepGraphs& operator=(const StepGraphs&) = delete;

  /// Puts on the stream what launch() does. Earlier steps in `order` may still run.
  template <class Launch>
  void run(const StepShape& shape, Stream stream, const StepOrder& order, Launch&& launch) {
    if (graphs_.size() >= kMost && !graphs_.contains(shape)) {
      order.wait();
      clear();
    }
    const auto [entry, is_new] = graphs_.try_emplace(shape, nullptr);
    if (is_new) {
      launch();
      return;
    }
    if (!entry->second) {
      check(api_, api_.begin_graph(stream), "graph");
      launch();
      check(api_, api_.end_graph(stream, &entry->second), "graph");
    }
    check(api_, api_.launch_graph(stream, entry->second), "graph");
  }

 private:
  static constexpr size_t kMost = 32;

  void clear() {
    for (const auto& [shape, graph] : graphs_) {
      if (graph) api_.destroy_graph(graph);
    }
    graphs_.clear();
  }

  const DeviceApi& api_;
  std::map<StepShape, Graph> graphs_;
};

}  // namespace broadhead::gpu
