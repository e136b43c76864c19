// SPDX-License-Identifier: Apache-2.0
// What decode and prefill share: score transforms, the running softmax of a wave's columns, the
// way out. Every mask is an interval of keys for each query token.
#pragma once

#include <type_traits>

#include "hip/cache_layout.h"
#include "hip/tile.h"

namespace broadhead::gpu {

constexpr float kLog2E = 1.4426950408889634f;
constexpr float kLn2 = 0.6931471805599453f;

/// How far scores may rise above the maximum that weights are relative to, as a power of two,
/// before sums are rescaled: float16 weights hold 2^8 easily.
constexpr float kSlack = 8;

/// Token t of an item.
BH_INLINE Token token_of(const StepArgs& step, const AttendItem& item, int t) {
  return t == 0 ? item.token : step.tokens[item.first_token + t];
}

/// Bytes of an element of query, key and value.
BH_INLINE int tensor_bytes(const LayerArgs& layer) { return layer.dtype == BH_FLOAT32 ? 4 : 2; }

/// tanh x, relative error below 6e-6: its series near zero, where 1 - 2 / (1 + e^2x) cancels.
/// Written so that no instruction has two constants, one of which would take a register.
BH_INLINE float tanh_fast(float x) {
  const float near = fmaf(x * x * x, -1.0f / 3, x);
  const float half = reciprocal_fast(1.0f + exp2_fast(x * (2 * kLog2E)));
  const float far = 1.0f - (half + half);
  return fabsf(x) < 0.05f ? near : far;
}

/// From a product of query and key to a score, in the order of the step format. A new transform
/// goes here. `kFloat32`: to the accuracy that float32 tensors are worth.
template <bool kFloat32 = false>
BH_INLINE float transform_score(const LayerArgs& layer, float slope, float product,
                                float distance) {
  float score = product * layer.score_scale;
  if (layer.soft_cap != 0) {
    const float x = score * layer.inverse_soft_cap;
    score = layer.soft_cap * (kFloat32 ? tanhf(x) : tanh_fast(x));
  }
  return fmaf(slope, distance, score);
}

/// Whether transform_score is nothing but a multiplication that keeps the order: kernels then leave
/// it to the exponent. Weights are 2^(factor * number - maximum), rounded once.
BH_INLINE bool is_plain(const LayerArgs& layer) {
  return layer.soft_cap == 0 && layer.alibi_slopes == nullptr && layer.score_scale > 0;
}
BH_INLINE float exponent_factor(const LayerArgs& layer) {
  return is_plain(layer) ? layer.score_scale * kLog2E : kLog2E;
}

/// What is left to do to the sums of a head: to multiply them.
struct Finish {
  float factor;
  float lse;
};

/// `maximum` is what weights are relative to, base 2.
BH_INLINE Finish finish(const LayerArgs& layer, int head, float maximum, float denominator) {
  float keep = 1;
  if (layer.sinks) {
    const float sink = layer.sinks[head] * kLog2E;
    const float highest = sink > maximum ? sink : maximum;
    if (highest > -infinity()) {
      keep = exp2_fast(maximum - highest);
      denominator = denominator * keep + exp2_fast(sink - highest);
      maximum = highest;
    }
  }
  if (denominator == 0) return {0, -infinity()};
  return {keep * layer.result_scale / denominator, (maximum + log2f(denominator)) * kLn2};
}

/// Stores kCount successive numbers of T.
template <class T, int kCount>
BH_INLINE void store_numbers(void* to, int64_t index, const float* numbers) {
  constexpr int kBytes = kCount * int{sizeof(T)};
  using Unit =
      std::conditional_t<kBytes % 16 == 0, Chunk,
                         std::conditional_t<kBytes % 8 == 0, Words2,
                                            std::conditional_t<kBytes % 4 == 0, uint32_t, T>>>;
  constexpr int kUnits = kBytes / int{sizeof(Unit)};
  Unit units[kUnits];
  auto* elements = reinterpret_cast<char*>(units);
  if constexpr (sizeof(T) == 2 && kCount % 2 == 0) {
#pragma unroll
    for (int i = 0; i < kCount / 2; ++i) {
      const uint32_t pair = pack<T>(numbers[2 * i], numbers[2 * i + 1]);
      __builtin_memcpy(elements + 4 * i, &pair, 4);
    }
  } else {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      T element;
      narrow(numbers[i], element);
      __builtin_memcpy(elements + i * int{sizeof(T)}, &element, sizeof(T));
    }
  }
#pragma unroll
  for (int i = 0; i < kUnits; ++i) {
    reinterpret_cast<Unit*>(static_cast<T*>(to) + index)[i] = units[i];
  }
}

/// Writes a run of a head's result to a token's output.
template <class T, int kCount>
BH_INLINE void store_output(const LayerArgs& layer, char* output, int head, int dimension,
                            float factor, const float* sums) {
  const int64_t index = int64_t{head} * layer.head_size + dimension;
  float numbers[kCount];
#pragma unroll
  for (int i = 0; i < kCount; ++i) numbers[i] = sums[i] * factor;
  if (layer.output_dtype == BH_FLOAT8_E4M3FN) {
    store_numbers<Float8E4M3, kCount>(output, index, numbers);
  } else {
    store_numbers<T, kCount>(output, index, numbers);
  }
}

/// Whether the number that store_output wrote there is NaN.
template <class T>
BH_INLINE bool is_nan_in_output(const LayerArgs& layer, const char* output, int64_t index) {
  const float number = layer.output_dtype == BH_FLOAT8_E4M3FN
                           ? widen(reinterpret_cast<const Float8E4M3*>(output)[index])
                           : widen(reinterpret_cast<const T*>(output)[index]);
  return number != number;
}

/// The threads that work on an item together.
struct WholeBlock {
  BH_INLINE int index() const { return static_cast<int>(threadIdx.x); }
  BH_INLINE int size() const { return static_cast<int>(blockDim.x); }
  BH_INLINE void synchronize() const { __syncthreads(); }
};

/// Over the kLanes lanes that the calling one is among.
template <int kLanes, class Op>
BH_INLINE float over_lanes(float x, Op&& op) {
#pragma unroll
  for (int mask = 1; mask < kLanes; mask *= 2) x = op(x, shuffle_xor(x, mask));
  return x;
}

/// Joins the partial results of a run of tokens for the heads of one group, and writes them: kLanes
/// lanes for each token's head. kHead is 0 where the head size is known at run time alone.
template <class T, int kHead, int kLanes, class Team>
BH_INLINE void merge_run(const LayerArgs& layer, const StepArgs& step, const Run& run, int group,
                         const Team& team) {
  constexpr int kRun = 4;
  constexpr int kRuns = ((kHead > 0 ? kHead : 256) + kRun * kLanes - 1) / (kRun * kLanes);
  // Partial results of a row that are loaded at once.
  [[maybe_unused]] constexpr int kAhead = kRuns <= 4 ? 8 : kHead <= 128 ? 4 : 1;
  const int head_size = kHead > 0 ? kHead : layer.head_size;
  auto larger = [](float a, float b) { return fmaxf(a, b); };
  const int lane = lane_index() % kLanes;
  const int rows = run.num_tokens * layer.group_size;
  const int step_rows = team.size() / kLanes;
  for (int i = team.index() / kLanes; any(i < rows); i += step_rows) {
    const int row = i < rows ? i : 0;
    const int head = group * layer.group_size + row % layer.group_size;
    const Token token = step.tokens[run.first_token + row / layer.group_size];
    const int partials = i < rows && token.num_partials > 1 ? token.num_partials : 0;
    const int most =
        kLanes == kWave ? partials
                        : static_cast<int>(over_lanes<kWave>(static_cast<float>(partials), larger));
    const int64_t first =
        partials > 0 ? int64_t{token.first_partial} * layer.num_heads + head : int64_t{head};
    auto state = [&](int p, int which) {
      return load_across_blocks(step.partial_state + (first + int64_t{p} * layer.num_heads) * 2 +
                                which);
    };
    float maximum = -infinity();
    float denominator = 0;
    float sums[kRuns][kRun] = {};
    for (int base = 0; base < most; base += kLanes) {
      float part = 0;
      float m = -infinity();
      if (base + lane < partials) {
        part = state(base + lane, 1);
        m = state(base + lane, 0);
      }
      const float raised = fmaxf(maximum, over_lanes<kLanes>(m, larger));
      if (raised != maximum && base > 0) {
        const float keep = exp2_fast(maximum - raised);
        denominator *= keep;
#pragma unroll
        for (auto& of_run : sums) {
          for (float& sum : of_run) sum *= keep;
        }
      }
      maximum = raised;
      const float factor = part == 0 ? 0.0f : m == maximum ? 1.0f : exp2_fast(m - maximum);
      denominator += factor * part;
      const int count = most - base < kLanes ? most - base : kLanes;
#pragma unroll kAhead
      for (int p = 0; p < count; ++p) {
        const float of_part = shuffle(factor, lane_index() - lane + p);
        // Other rows of the wave may have more of them: no branch, so that loads run ahead.
        const bool is_part = kLanes == kWave || base + p < partials;
        const float* from = step.partial_sums +
                            (first + int64_t{is_part ? base + p : 0} * layer.num_heads) * head_size;
#pragma unroll
        for (int r = 0; r < kRuns; ++r) {
          const int dimension = (r * kLanes + lane) * kRun;
          if (dimension >= head_size) continue;
          float numbers[kRun];
          load_across_blocks(from + dimension, numbers);
#pragma unroll
          for (int d = 0; d < kRun; ++d) sums[r][d] += is_part ? of_part * numbers[d] : 0;
        }
      }
    }
    denominator = over_lanes<kLanes>(denominator, [](float a, float b) { return a + b; });
    if (partials == 0) continue;
    const Finish last = finish(layer, head, maximum, denominator);
#pragma unroll
    for (int r = 0; r < kRuns; ++r) {
      const int dimension = (r * kLanes + lane) * kRun;
      if (dimension >= head_size) continue;
      store_output<T, kRun>(layer, token.output, head, dimension, last.factor, sums[r]);
    }
    if (token.lse && lane == 0) token.lse[head] = last.lse;
  }
}

/// Lanes for each row in prefill, whose runs have many rows: so a wave has several under way.
template <int kHead>
constexpr int kMergeLanes = kHead <= 160 ? 4 : 16;

/// Called by every thread of a team when an item is done: whoever ends the last item of a run joins
/// the run's partial results, with kLanes lanes for each token's head. `shared` is a word of shared
/// memory.
template <class T, int kHead, int kLanes, class Team = WholeBlock>
BH_INLINE void finish_item(const LayerArgs& layer, const StepArgs& step, const AttendItem& item,
                           int group, int32_t* shared, const Team& team = {}) {
  if (!item.is_partial) return;
  int32_t last_run = -1;
  for (int t = 0; t < item.num_tokens; ++t) {
    const Token token = token_of(step, item, t);
    if (token.run == last_run || token.num_partials == 1) continue;
    last_run = token.run;
    const Run run = step.runs[token.run];
    int32_t* finished = step.finished + int64_t{token.run} * layer.num_groups + group;
    __threadfence();
    team.synchronize();
    if (team.index() == 0) {
      *shared = atomicAdd(finished, 1) + 1 == run.items;
      if (*shared) *finished = 0;
    }
    team.synchronize();
    if (*shared) {
      __threadfence();
      merge_run<T, kHead, kLanes>(layer, step, run, group, team);
    }
  }
}

}  // namespace broadhead::gpu
