// SPDX-License-Identifier: Apache-2.0
// Joining partial softmax results: the pieces of one step's keys, and results of different steps.
// Included by kernel sources only (see vec.h).
#pragma once

#include "cpu/attend.h"

namespace broadhead::cpu::BH_TIER {

static void merge(const AttendContext& context, int64_t index, float* sums) {
  const LayerView& layer = *context.layer;
  const QueryToken& token = context.tokens[index];
  for (int head = 0; head < layer.num_heads; ++head) {
    const int64_t first = token.first_partial * layer.num_heads + head;
    SoftmaxState whole = {-kInfinity, 0};
    for (int p = 0; p < token.num_partials; ++p) {
      const float maximum = context.partial_state[(first + int64_t{p} * layer.num_heads) * 2];
      if (maximum > whole.maximum) whole.maximum = maximum;
    }
    for (int d = 0; d < layer.head_size; ++d) sums[d] = 0;
    for (int p = 0; p < token.num_partials; ++p) {
      const int64_t partial = first + int64_t{p} * layer.num_heads;
      const float maximum = context.partial_state[partial * 2];
      const float denominator = context.partial_state[partial * 2 + 1];
      if (denominator == 0) continue;
      const float factor = maximum == whole.maximum ? 1 : __builtin_expf(maximum - whole.maximum);
      whole.denominator += factor * denominator;
      const float* part = context.partial_sums + partial * layer.head_size;
      for (int d = 0; d < layer.head_size; d += kWidth) {
        store(sums + d, load(sums + d) + load(part + d) * broadcast(factor));
      }
    }
    write_output(context, token, head, whole, sums);
  }
}

template <class T>
static void merge_token(const MergeContext& context, int64_t token) {
  for (int head = 0; head < context.num_heads; ++head) {
    const int64_t at = token * context.num_heads + head;
    // Some kernels report an empty set of keys as +inf.
    auto lse_of = [&](int part) {
      const float lse = context.parts[part].lse[at];
      return lse == kInfinity ? -kInfinity : lse;
    };
    float maximum = -kInfinity;
    for (int p = 0; p < context.count; ++p) {
      if (!(lse_of(p) <= maximum)) maximum = lse_of(p);
    }
    float total = 0;
    for (int p = 0; p < context.count; ++p) {
      if (lse_of(p) != -kInfinity) total += __builtin_expf(lse_of(p) - maximum);
    }
    for (int d = 0; d < context.head_size; d += kWidth) {
      Vec sum = Vec{};
      for (int p = 0; p < context.count; ++p) {
        if (lse_of(p) == -kInfinity) continue;
        const T* part = static_cast<const T*>(context.parts[p].output) + at * context.head_size + d;
        sum += load(part) * broadcast(__builtin_expf(lse_of(p) - maximum) / total);
      }
      store(static_cast<T*>(context.output) + at * context.head_size + d, sum);
    }
    if (context.lse) context.lse[at] = total == 0 ? -kInfinity : maximum + __builtin_logf(total);
  }
}

static void merge_results(const MergeContext& context, int64_t token) {
  with_tensor_dtype(context.dtype, [&](auto t) { merge_token<decltype(t)>(context, token); });
}

}  // namespace broadhead::cpu::BH_TIER
