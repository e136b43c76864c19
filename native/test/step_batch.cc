// SPDX-License-Identifier: Apache-2.0
#include "step_batch.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "number_format.h"

namespace broadhead::test {
namespace {

constexpr uint8_t kPoison = 0xff;
constexpr int64_t kGuardBytes = 256;

Field tensor_field(const std::string& name, const LayerConfig& layer, int heads) {
  static const char* kFormats[] = {"f", "e", "S"};
  std::string shape = "{\"shape\":[";
  shape.append(std::to_string(heads)).append(",");
  shape.append(std::to_string(layer.head_size)).append("]}");
  Field element{"item", kFormats[layer.dtype - BH_FLOAT32], {}, {}};
  Field tensor{
      "item",
      std::string("+w:").append(std::to_string(heads * layer.head_size)),
      {{"ARROW:extension:name", "arrow.fixed_shape_tensor"}, {"ARROW:extension:metadata", shape}},
      {element}};
  Field list{name, "+l", {}, {tensor}};
  if (layer.dtype == BH_BFLOAT16) list.metadata = {{"dtype", "bfloat16"}};
  return list;
}

Field list_field(const std::string& name, const std::string& format) {
  return {name, "+l", {}, {{"item", format, {}, {}}}};
}

/// A list<tensor> column; `part` picks a row's elements.
template <class Part>
Array tensor_column(const LayerConfig& layer, const StepBatch& batch, int64_t width, Part part) {
  ListBuilder list;
  Bytes values;
  bool as_null = false;
  for (const StepRow& row : batch.rows) {
    const std::vector<float>& elements = part(row);
    const auto count = static_cast<int64_t>(elements.size()) / width;
    if (count == 0 && (as_null = !as_null)) {
      list.append_null();
    } else {
      list.append(count);
    }
    const Bytes bytes = encode_all(layer.dtype, elements);
    values.insert(values.end(), bytes.begin(), bytes.end());
  }
  return list.finish_tensors(values, width, element_bytes(layer.dtype));
}

/// A list<T> column; `part` picks a row's entries.
template <class T, class Part>
Array scalar_column(const StepBatch& batch, Part part) {
  ListBuilder list;
  std::vector<T> values;
  for (const StepRow& row : batch.rows) {
    for (auto value : part(row)) values.push_back(static_cast<T>(value));
    list.append(static_cast<int64_t>(part(row).size()));
  }
  return list.finish(to_bytes(values), sizeof(T));
}

}  // namespace

void LayerConfig::set_rope(int rotary, bool neox, int64_t positions, double base) {
  rotary_dim = rotary;
  is_neox = neox;
  max_position = positions;
  cos_sin.resize(static_cast<size_t>(positions * rotary));
  for (int64_t p = 0; p < positions; ++p) {
    float* row = cos_sin.data() + p * rotary;
    for (int j = 0; j < rotary / 2; ++j) {
      const double angle = double(p) / std::pow(base, 2.0 * j / rotary);
      row[j] = static_cast<float>(std::cos(angle));
      row[rotary / 2 + j] = static_cast<float>(std::sin(angle));
    }
  }
}

bh_layer_options LayerConfig::options(bh_rope& rope) const {
  bh_layer_options o{};
  o.struct_size = sizeof o;
  o.name = "layer";
  o.num_heads = num_heads;
  o.num_kv_heads = num_kv_heads;
  o.head_size = head_size;
  o.attn_type = attn_type;
  o.dtype = dtype;
  o.scale = scale;
  o.sliding_window = sliding_window;
  o.logits_soft_cap = logits_soft_cap;
  o.alibi_slopes = alibi_slopes.empty() ? nullptr : alibi_slopes.data();
  o.sinks = sinks.empty() ? nullptr : sinks.data();
  o.k_scale = k_scale;
  o.v_scale = v_scale;
  o.output_scale = output_scale;
  o.return_lse = return_lse;
  o.read_only_cache = read_only_cache;
  rope = {rotary_dim, max_position, is_neox, cos_sin.data()};
  o.rope = rotary_dim > 0 ? &rope : nullptr;
  return o;
}

int64_t StepRow::num_queries(const LayerConfig& layer) const {
  return static_cast<int64_t>(query.size()) / layer.query_width();
}

int64_t StepRow::num_keys(const LayerConfig& layer) const {
  return static_cast<int64_t>(key.size()) / layer.key_width();
}

int64_t StepBatch::num_queries(const LayerConfig& layer) const {
  int64_t total = 0;
  for (const StepRow& row : rows) total += has_query ? row.num_queries(layer) : 0;
  return total;
}

Field step_schema(const LayerConfig& layer, const StepBatch& batch) {
  Field schema{"", "+s", {}, {{"request_id", "i", {}, {}}}};
  auto add = [&schema](Field field) { schema.children.push_back(std::move(field)); };
  if (batch.has_key) {
    add(tensor_field("value", layer, layer.num_kv_heads));
    add(tensor_field("key", layer, layer.num_kv_heads));
  }
  if (batch.has_query) add(tensor_field("query", layer, layer.num_heads));
  if (layer.uses_cache()) {
    add({"seq_len", "i", {}, {}});
    if (batch.has_key) add(list_field("slot_mapping", "l"));
    add(list_field("block_table", "i"));
  }
  if (layer.rotary_dim > 0) add(list_field("position", batch.wide_positions ? "l" : "i"));
  return schema;
}

Array step_array(const LayerConfig& layer, const StepBatch& batch) {
  std::vector<int32_t> lengths;
  for (const StepRow& row : batch.rows) lengths.push_back(row.seq_len);
  std::vector<Array> columns = {int32_column(lengths)};  // request_id
  using Row = const StepRow&;
  if (batch.has_key) {
    columns.push_back(tensor_column(
        layer, batch, layer.key_width(), [](Row r) -> auto& { return r.value; }));
    columns.push_back(tensor_column(
        layer, batch, layer.key_width(), [](Row r) -> auto& { return r.key; }));
  }
  if (batch.has_query) {
    columns.push_back(tensor_column(
        layer, batch, layer.query_width(), [](Row r) -> auto& { return r.query; }));
  }
  if (layer.uses_cache()) {
    columns.push_back(int32_column(lengths));
    if (batch.has_key) {
      columns.push_back(scalar_column<int64_t>(
          batch, [](Row r) -> auto& { return r.slots; }));
    }
    columns.push_back(scalar_column<int32_t>(
        batch, [](Row r) -> auto& { return r.blocks; }));
  }
  if (layer.rotary_dim > 0) {
    auto positions = [](Row r) -> auto& { return r.positions; };
    columns.push_back(batch.wide_positions ? scalar_column<int64_t>(batch, positions)
                                           : scalar_column<int32_t>(batch, positions));
  }
  return struct_of(std::move(columns), static_cast<int64_t>(batch.rows.size()));
}

StepResult::StepResult(const LayerConfig& layer, const StepBatch& batch) : layer_(layer) {
  const int64_t tokens = batch.num_queries(layer);
  const auto rows = static_cast<int64_t>(batch.rows.size());
  output_bytes_ = tokens * layer.query_width() * element_bytes(layer.output_dtype());
  lse_count_ = tokens * layer.num_heads;
  output_.assign(static_cast<size_t>(output_bytes_ + kGuardBytes), kPoison);
  lse_.resize(static_cast<size_t>(lse_count_ + kGuardBytes / 4));
  std::memset(lse_.data(), kPoison, lse_.size() * 4);

  auto set = [](ArrowArray& node, std::vector<const void*>& buffers, int64_t length,
                std::vector<const void*> addresses, std::vector<ArrowArray*>* children) {
    buffers = std::move(addresses);
    node = ArrowArray{};
    node.length = length;
    node.n_buffers = static_cast<int64_t>(buffers.size());
    node.buffers = buffers.data();
    node.n_children = children ? static_cast<int64_t>(children->size()) : 0;
    node.children = children ? children->data() : nullptr;
  };
  const int columns = layer.return_lse ? 2 : 1;
  for (int c = 0; c < columns; ++c) {
    ArrowArray* list = nodes_ + 3 * c;
    const int64_t width = c == 0 ? layer.query_width() : layer.num_heads;
    offsets_[c].assign(static_cast<size_t>(rows + 1), -1);
    children_[2 * c] = {list + 1};
    children_[2 * c + 1] = {list + 2};
    void* values = c == 0 ? static_cast<void*>(output_.data()) : lse_.data();
    set(list[2], buffers_[3 * c + 2], tokens * width, {nullptr, values}, nullptr);
    set(list[1], buffers_[3 * c + 1], tokens, {nullptr}, &children_[2 * c + 1]);
    set(list[0], buffers_[3 * c], rows, {nullptr, offsets_[c].data()}, &children_[2 * c]);
    children_[4].push_back(list);
  }
  set(array_, buffers_[6], rows, {nullptr}, &children_[4]);
}

double StepResult::output(int64_t token, int64_t element) const {
  const int dtype = layer_.output_dtype();
  const double value =
      decode(dtype, load_bits(dtype, output_.data(), token * layer_.query_width() + element));
  return layer_.output_scale > 0 ? value * double{layer_.output_scale} : value;
}

float StepResult::lse(int64_t token, int head) const {
  return lse_[static_cast<size_t>(token * layer_.num_heads + head)];
}

bool StepResult::has_offsets_of(const StepBatch& batch) const {
  std::vector<int32_t> expected = {0};
  for (const StepRow& row : batch.rows) {
    expected.push_back(expected.back() +
                       (batch.has_query ? static_cast<int32_t>(row.num_queries(layer_)) : 0));
  }
  return offsets_[0] == expected && (!layer_.return_lse || offsets_[1] == expected);
}

bool StepResult::guards_intact() const {
  auto poisoned = [](uint8_t byte) { return byte == kPoison; };
  const auto* lse_end = reinterpret_cast<const uint8_t*>(lse_.data() + lse_.size());
  return std::all_of(output_.begin() + output_bytes_, output_.end(), poisoned) &&
         std::all_of(lse_end - kGuardBytes, lse_end, poisoned);
}

bool StepResult::untouched() const {
  auto poisoned = [](auto value) { return value == kPoison; };
  auto unset = [](int32_t offset) { return offset == -1; };
  const auto* lse = reinterpret_cast<const uint8_t*>(lse_.data());
  return std::all_of(output_.begin(), output_.end(), poisoned) &&
         std::all_of(lse, lse + lse_.size() * 4, poisoned) &&
         std::all_of(offsets_[0].begin(), offsets_[0].end(), unset) &&
         std::all_of(offsets_[1].begin(), offsets_[1].end(), unset);
}

}  // namespace broadhead::test
