// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <numeric>
#include <string_view>
#include <utility>
#include <vector>

#include "step_batch.h"

namespace broadhead::test {

/// A small, fast generator whose numbers are the same everywhere.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  explicit Random(std::string_view seed) : state_(0xcbf29ce484222325u) {
    for (const char c : seed) state_ = (state_ ^ static_cast<uint8_t>(c)) * 0x100000001b3u;
  }

  uint64_t next() {
    uint64_t z = state_ += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }

  int64_t below(int64_t limit) {
    return static_cast<int64_t>(next() % static_cast<uint64_t>(limit));
  }

  /// From the standard normal distribution, rounded to a tensor's `dtype`.
  float normal(int dtype = BH_FLOAT32);

  template <class T>
  void shuffle(std::vector<T>& values) {
    for (size_t i = values.size(); i > 1; --i) {
      std::swap(values[i - 1], values[static_cast<size_t>(below(static_cast<int64_t>(i)))]);
    }
  }

  /// `count` different numbers below `limit`.
  std::vector<int64_t> sample(int64_t count, int64_t limit) {
    std::vector<int64_t> all(static_cast<size_t>(limit));
    std::iota(all.begin(), all.end(), 0);
    shuffle(all);
    all.resize(static_cast<size_t>(count));
    return all;
  }

 private:
  uint64_t state_;
};

/// `tokens` tensors of N(0, 1) elements of the layer's dtype.
std::vector<float> random_tensors(Random& random, const LayerConfig& layer, int64_t tokens,
                                  int heads);

/// The last `tokens` of a sequence of `seq_len`, as one row, with slots and positions. `blocks` are
/// those of the sequence.
StepRow random_row(Random& random, const LayerConfig& layer, int32_t tokens, int32_t seq_len,
                   std::vector<int32_t> blocks, int block_size);

/// The same as random_tensors for a layer with rope, at these positions. Elements are drawn again
/// where the float32 error of a rotation could decide how its result is rounded, to the layer's
/// dtype or on its way to a cache of `cache_dtype` (0: none): so every backend must store the same
/// bits.
std::vector<float> random_rotary_tensors(Random& random, const LayerConfig& layer,
                                         const std::vector<int64_t>& positions, int heads,
                                         int cache_dtype);

}  // namespace broadhead::test
