// SPDX-License-Identifier: Apache-2.0
#include "reference.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "number_format.h"

namespace broadhead::test {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

/// The keys and values of one row and one KV head; keys are transposed so that the loops below
/// run over tokens.
struct Context {
  int64_t count;
  std::vector<double> keys;    ///< [head_size][count]
  std::vector<double> values;  ///< [count][head_size]
};

/// `element(is_value, token, index)` reads an element of the row's keys or values.
template <class Element>
Context gather(const LayerConfig& layer, int64_t count, Element element) {
  const int size = layer.head_size;
  Context context{count, {}, {}};
  context.keys.resize(static_cast<size_t>(count * size));
  context.values.resize(static_cast<size_t>(count * size));
  for (int64_t j = 0; j < count; ++j) {
    for (int d = 0; d < size; ++d) {
      context.keys[static_cast<size_t>(d * count + j)] = element(false, j, d);
      context.values[static_cast<size_t>(j * size + d)] = element(true, j, d);
    }
  }
  return context;
}

/// The keys that the query at `position` sees are first .. end - 1.
struct Visible {
  int64_t first;
  int64_t end;

  int64_t count() const { return std::max<int64_t>(end - first, 0); }
};

Visible visible_keys(const LayerConfig& layer, int64_t position, int64_t count) {
  const bool causal = layer.attn_type == BH_DECODER;
  const int64_t window = layer.sliding_window;
  int64_t first = 0;
  int64_t end = causal ? position + 1 : count;
  if (window > 0) {
    first = position - window + 1;
    if (!causal) end = std::min(end, position + window);
  }
  return {std::max<int64_t>(first, 0), std::clamp<int64_t>(end, 0, count)};
}

void attend_one(const LayerConfig& layer, const Context& context, const double* query,
                int64_t position, int head, double* output, double* weight_error, double* lse) {
  const int size = layer.head_size;
  const Visible visible = visible_keys(layer, position, context.count);
  const int64_t first = visible.first;
  const int64_t seen = visible.count();
  std::vector<double> weights(static_cast<size_t>(seen), 0.0);
  double* const w = weights.data();
  for (int d = 0; d < size; ++d) {
    const double q = query[d];
    const double* keys = context.keys.data() + d * context.count + first;
    for (int64_t j = 0; j < seen; ++j) w[j] += q * keys[j];
  }
  const auto h = static_cast<size_t>(head);
  const double sink = layer.sinks.empty() ? -kInfinity : double{layer.sinks[h]};
  const double cap = double{layer.logits_soft_cap};
  double maximum = sink;
  for (int64_t j = 0; j < seen; ++j) {
    w[j] *= double{layer.scale};
    if (cap > 0) w[j] = cap * std::tanh(w[j] / cap);
    if (!layer.alibi_slopes.empty()) {
      w[j] += double{layer.alibi_slopes[h]} * static_cast<double>(first + j - position);
    }
    maximum = std::isnan(w[j]) ? w[j] : std::max(maximum, w[j]);
  }
  *lse = -kInfinity;
  std::fill(output, output + size, 0.0);
  std::fill(weight_error, weight_error + size, 0.0);
  if (maximum == -kInfinity) return;
  double denominator = std::exp(sink - maximum);
  for (int64_t j = 0; j < seen; ++j) denominator += w[j] = std::exp(w[j] - maximum);
  for (int64_t j = 0; j < seen; ++j) {
    const double weight = w[j] / denominator;
    // A weight may have been relative to another maximum, anywhere between two powers of two.
    const double error =
        std::max(w[j] * rounding_error(layer.dtype, 1), rounding_error(layer.dtype, 0)) /
        denominator;
    const double* values = context.values.data() + (first + j) * size;
    for (int d = 0; d < size; ++d) {
      output[d] += weight * values[d];
      weight_error[d] += error * std::fabs(values[d]);
    }
  }
  *lse = maximum + std::log(denominator);
}

/// Query or key elements as attention uses them: rotated, rounded once to the layer's dtype.
std::vector<double> loaded(const LayerConfig& layer, const std::vector<float>& tensors, int heads,
                           const std::vector<int64_t>& positions) {
  if (layer.rotary_dim == 0) return {tensors.begin(), tensors.end()};
  std::vector<double> elements = rotated(layer, tensors, heads, positions);
  for (double& element : elements) element = rounded(layer.dtype, element);
  return elements;
}

}  // namespace

LogicalCache::LogicalCache(const bh_cache_options& options)
    : options_(options),
      token_bytes_(int64_t{options.num_kv_heads} * options.head_size *
                   element_bytes(options.dtype)),
      block_bytes_(options.block_size * token_bytes_),
      keys_(static_cast<size_t>(options.num_blocks * block_bytes_), 0xff),
      values_(keys_),
      written_(static_cast<size_t>(options.num_blocks * options.block_size)) {}

std::vector<double> rotated(const LayerConfig& layer, const std::vector<float>& tensors, int heads,
                            const std::vector<int64_t>& positions) {
  std::vector<double> elements(tensors.begin(), tensors.end());
  const size_t tokens = tensors.size() / (static_cast<size_t>(heads) * layer.head_size);
  const int half = layer.rotary_dim / 2;
  for (size_t token = 0; token < tokens; ++token) {
    const float* cosines = layer.cos_sin.data() + positions[token] * layer.rotary_dim;
    const float* sines = cosines + half;
    for (int h = 0; h < heads; ++h) {
      double* head = elements.data() + (static_cast<int64_t>(token) * heads + h) * layer.head_size;
      for (int j = 0; j < half; ++j) {
        double& a = head[layer.is_neox ? j : 2 * j];
        double& b = head[layer.is_neox ? j + half : 2 * j + 1];
        const double c = double{cosines[j]};
        const double s = double{sines[j]};
        const double x = a;
        const double y = b;
        a = x * c - y * s;
        b = y * c + x * s;
      }
    }
  }
  return elements;
}

void update_reference(const LayerConfig& layer, const StepBatch& batch, LogicalCache& cache) {
  if (!batch.has_key || layer.read_only_cache) return;
  const int dtype = cache.options().dtype;
  const bool fp8 = element_bytes(dtype) == 1;
  auto stored = [&](double x, float scale) {
    // The quotient is formed in float32, as the step format says.
    return encode(dtype, fp8 ? double{static_cast<float>(x) / scale} : x);
  };
  const auto width = static_cast<size_t>(layer.key_width());
  for (const StepRow& row : batch.rows) {
    const std::vector<double> keys = loaded(layer, row.key, layer.num_kv_heads, row.positions);
    for (size_t t = 0; t < row.slots.size(); ++t) {
      const int64_t slot = row.slots[t];
      if (slot < 0) continue;
      cache.written()[static_cast<size_t>(slot)] = true;
      for (size_t i = 0; i < width; ++i) {
        const auto index = static_cast<int64_t>(i);
        store_bits(dtype, cache.keys_of(slot), index, stored(keys[t * width + i], layer.k_scale));
        store_bits(dtype, cache.values_of(slot), index,
                   stored(double{row.value[t * width + i]}, layer.v_scale));
      }
    }
  }
}

Expected attend_reference(const LayerConfig& layer, const StepBatch& batch,
                          const LogicalCache* cache) {
  Expected expected;
  const auto tokens = static_cast<size_t>(batch.num_queries(layer));
  const auto size = static_cast<size_t>(layer.head_size);
  const auto heads = static_cast<size_t>(layer.num_heads);
  expected.output.resize(tokens * heads * size);
  expected.weight_error.resize(tokens * heads * size);
  expected.lse.resize(tokens * heads);
  size_t first_token = 0;
  for (const StepRow& row : batch.rows) {
    const auto queries = batch.has_query ? static_cast<size_t>(row.num_queries(layer)) : 0;
    if (queries == 0) continue;
    const std::vector<double> query = loaded(layer, row.query, layer.num_heads, row.positions);
    const std::vector<double> own_keys =
        cache ? std::vector<double>() : loaded(layer, row.key, layer.num_kv_heads, row.positions);
    const int64_t count = cache ? row.seq_len : row.num_keys(layer);
    for (int kv_head = 0; kv_head < layer.num_kv_heads; ++kv_head) {
      const int first_element = kv_head * layer.head_size;
      const Context context = gather(layer, count, [&](bool is_value, int64_t j, int d) {
        if (!cache) {
          const auto i = static_cast<size_t>(j * layer.key_width() + first_element + d);
          return is_value ? double{row.value[i]} : own_keys[i];
        }
        const bh_cache_options& pool = cache->options();
        const int64_t slot =
            int64_t{row.blocks[static_cast<size_t>(j / pool.block_size)]} * pool.block_size +
            j % pool.block_size;
        const uint8_t* elements = is_value ? cache->values_of(slot) : cache->keys_of(slot);
        return decode(pool.dtype, load_bits(pool.dtype, elements, first_element + d)) *
               double{is_value ? layer.v_scale : layer.k_scale};
      });
      for (size_t i = 0; i < queries; ++i) {
        const int64_t offset =
            layer.attn_type == BH_DECODER ? count - static_cast<int64_t>(queries) : 0;
        const int64_t position = offset + static_cast<int64_t>(i);
        if (kv_head == 0) expected.keys_seen += visible_keys(layer, position, count).count();
        for (int g = 0; g < layer.group_size(); ++g) {
          const int head = kv_head * layer.group_size() + g;
          const size_t at = (first_token + i) * heads + static_cast<size_t>(head);
          attend_one(layer, context, query.data() + (i * heads + static_cast<size_t>(head)) * size,
                     position, head, expected.output.data() + at * size,
                     expected.weight_error.data() + at * size, expected.lse.data() + at);
        }
      }
    }
    first_token += queries;
  }
  return expected;
}

}  // namespace broadhead::test
