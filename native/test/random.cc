// SPDX-License-Identifier: Apache-2.0
#include "random.h"

#include <array>
#include <cmath>
#include <numbers>

#include "number_format.h"

namespace broadhead::test {
namespace {

/// Does every x in value +- error round to the same element?
bool rounds_surely(int dtype, double value, double error) {
  return encode(dtype, value - error) == encode(dtype, value + error);
}

}  // namespace

float Random::normal(int dtype) {
  constexpr size_t kSize = 1 << 15;
  static const auto kTables = [] {
    std::array<std::vector<float>, BH_BFLOAT16 + 1> tables;
    Random uniform(uint64_t{1});
    auto unit = [&uniform] { return double(uniform.next() >> 11) * 0x1p-53; };
    for (size_t i = 0; i < kSize; ++i) {
      const double radius = std::sqrt(-2 * std::log(1 - unit()));
      const auto value = static_cast<float>(radius * std::cos(2 * std::numbers::pi * unit()));
      for (const int type : {BH_FLOAT32, BH_FLOAT16, BH_BFLOAT16}) {
        tables[static_cast<size_t>(type)].push_back(static_cast<float>(rounded(type, value)));
      }
    }
    return tables;
  }();
  return kTables[static_cast<size_t>(dtype)][next() % kSize];
}

std::vector<float> random_tensors(Random& random, const LayerConfig& layer, int64_t tokens,
                                  int heads) {
  std::vector<float> elements(static_cast<size_t>(tokens * heads * layer.head_size));
  for (float& element : elements) {
    element = random.normal(layer.dtype);
  }
  return elements;
}

StepRow random_row(Random& random, const LayerConfig& layer, int32_t tokens, int32_t seq_len,
                   std::vector<int32_t> blocks, int block_size) {
  StepRow row;
  row.query = random_tensors(random, layer, tokens, layer.num_heads);
  row.key = random_tensors(random, layer, tokens, layer.num_kv_heads);
  row.value = random_tensors(random, layer, tokens, layer.num_kv_heads);
  row.seq_len = seq_len;
  row.blocks = std::move(blocks);
  for (int32_t p = seq_len - tokens; p < seq_len; ++p) {
    const int64_t block = row.blocks[static_cast<size_t>(p / block_size)];
    row.slots.push_back(block * block_size + p % block_size);
    row.positions.push_back(p);
  }
  return row;
}

std::vector<float> random_rotary_tensors(Random& random, const LayerConfig& layer,
                                         const std::vector<int64_t>& positions, int heads,
                                         int cache_dtype) {
  const auto tokens = static_cast<int64_t>(positions.size());
  std::vector<float> elements = random_tensors(random, layer, tokens, heads);
  const int half = layer.rotary_dim / 2;
  const bool fp8 = cache_dtype != 0 && element_bytes(cache_dtype) == 1;
  const double scale = fp8 ? double{layer.k_scale} : 1.0;
  auto sure = [&](double value, double error) {
    if (layer.dtype != BH_FLOAT32) return rounds_surely(layer.dtype, value, error);
    if (cache_dtype == 0 || cache_dtype == BH_FLOAT32) return true;
    return rounds_surely(cache_dtype, value / scale, error / scale);
  };
  for (int64_t token = 0; token < tokens; ++token) {
    const float* cosines =
        layer.cos_sin.data() + positions[static_cast<size_t>(token)] * layer.rotary_dim;
    for (int64_t h = 0; h < heads; ++h) {
      float* head = elements.data() + (token * heads + h) * layer.head_size;
      for (int j = 0; j < half; ++j) {
        float& x = head[layer.is_neox ? j : 2 * j];
        float& y = head[layer.is_neox ? j + half : 2 * j + 1];
        const double c = double{cosines[j]};
        const double s = double{cosines[j + half]};
        auto is_sure = [&] {
          const double error = 0x1p-21 * (std::fabs(x) + std::fabs(y));
          return sure(x * c - y * s, error) && sure(y * c + x * s, error);
        };
        while (!is_sure()) {
          x = random.normal(layer.dtype);
          y = random.normal(layer.dtype);
        }
      }
    }
  }
  return elements;
}

}  // namespace broadhead::test
