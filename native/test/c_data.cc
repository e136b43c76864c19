// SPDX-License-Identifier: Apache-2.0
#include "c_data.h"

#include <atomic>
#include <stdexcept>

namespace broadhead::test {
namespace {

constexpr uint8_t kPoison = 0xff;
constexpr int64_t kNullRowValues = 2;

std::atomic<int64_t> live{0};

struct SchemaMemory {
  Field field;
  std::string metadata;
  std::vector<ArrowSchema> children;
  std::vector<ArrowSchema*> pointers;
  ArrowSchema dictionary{};
};

struct ArrayMemory {
  Array array;
  std::vector<const void*> buffers;
  std::vector<ArrowArray> children;
  std::vector<ArrowArray*> pointers;
};

template <class Memory, class Node>
void release(Node* node) {
  auto* memory = static_cast<Memory*>(node->private_data);
  for (Node& child : memory->children) {
    if (child.release) child.release(&child);
  }
  delete memory;
  node->release = nullptr;
  live.fetch_sub(1);
}

template <class Node>
std::vector<Node*> pointers_to(std::vector<Node>& nodes) {
  std::vector<Node*> pointers;
  for (Node& node : nodes) pointers.push_back(&node);
  return pointers;
}

std::string encode_metadata(const Metadata& metadata) {
  std::string bytes;
  auto add_int = [&bytes](size_t value) {
    const auto narrow = static_cast<int32_t>(value);
    bytes.append(reinterpret_cast<const char*>(&narrow), sizeof narrow);
  };
  add_int(metadata.size());
  for (const auto& [key, value] : metadata) {
    add_int(key.size());
    bytes += key;
    add_int(value.size());
    bytes += value;
  }
  return bytes;
}

std::optional<Bytes> with_poison_before(int64_t poison_bytes, const Bytes& bytes) {
  Bytes all(static_cast<size_t>(poison_bytes), kPoison);
  all.insert(all.end(), bytes.begin(), bytes.end());
  return all;
}

}  // namespace

Field& Field::child(const std::string& wanted) {
  for (Field& field : children) {
    if (field.name == wanted) return field;
  }
  throw std::out_of_range("no field " + wanted);
}

ArrowSchema export_schema(const Field& field) {
  auto* memory = new SchemaMemory{field, encode_metadata(field.metadata), {}, {}};
  memory->dictionary.format = "u";
  for (const Field& child : field.children) memory->children.push_back(export_schema(child));
  memory->pointers = pointers_to(memory->children);
  live.fetch_add(1);
  ArrowSchema schema{};
  schema.format = memory->field.format.c_str();
  schema.name = memory->field.name.c_str();
  schema.metadata = field.metadata.empty() ? nullptr : memory->metadata.data();
  schema.flags = ARROW_FLAG_NULLABLE;
  schema.n_children = static_cast<int64_t>(memory->children.size());
  schema.children = memory->pointers.data();
  schema.dictionary = field.dictionary ? &memory->dictionary : nullptr;
  schema.release = release<SchemaMemory, ArrowSchema>;
  schema.private_data = memory;
  return schema;
}

ArrowArray export_array(Array array) {
  auto* memory = new ArrayMemory{std::move(array), {}, {}, {}};
  for (const auto& buffer : memory->array.buffers) {
    memory->buffers.push_back(buffer ? buffer->data() : nullptr);
  }
  for (Array& child : memory->array.children) {
    memory->children.push_back(export_array(std::move(child)));
  }
  memory->pointers = pointers_to(memory->children);
  live.fetch_add(1);
  ArrowArray exported{};
  exported.length = memory->array.length;
  exported.null_count = memory->array.null_count;
  exported.offset = memory->array.offset;
  exported.n_buffers = static_cast<int64_t>(memory->buffers.size());
  exported.n_children = static_cast<int64_t>(memory->children.size());
  exported.buffers = memory->buffers.data();
  exported.children = memory->pointers.data();
  exported.release = release<ArrayMemory, ArrowArray>;
  exported.private_data = memory;
  return exported;
}

int64_t live_c_data() { return live.load(); }

void ListBuilder::append(int64_t count) { entries_.push_back({count, false}); }

void ListBuilder::append_null() { entries_.push_back({kNullRowValues, true}); }

int64_t ListBuilder::num_values() const {
  int64_t count = kFirstListOffset;
  for (const Entry& entry : entries_) count += entry.count;
  return count;
}

Bytes ListBuilder::poisoned(const Bytes& values, int64_t value_bytes) const {
  Bytes all(static_cast<size_t>((kValuesOffset + kFirstListOffset) * value_bytes), kPoison);
  auto next = values.begin();
  for (const Entry& entry : entries_) {
    const int64_t bytes = entry.count * value_bytes;
    if (entry.is_null) {
      all.insert(all.end(), static_cast<size_t>(bytes), kPoison);
    } else {
      all.insert(all.end(), next, next + bytes);
      next += bytes;
    }
  }
  return all;
}

Array ListBuilder::finish(const Bytes& values, int64_t value_bytes) const {
  return finish_list(
      {num_values(), 0, kValuesOffset, {std::nullopt, poisoned(values, value_bytes)}, {}});
}

Array ListBuilder::finish_tensors(const Bytes& values, int64_t width, int64_t element_bytes) const {
  // The offset is split between the two levels: tensors and their elements.
  const int64_t elements = (num_values() + kValuesOffset) * width;
  Array child{
      elements - width, 0, width, {std::nullopt, poisoned(values, width * element_bytes)}, {}};
  return finish_list({num_values(), 0, kValuesOffset - 1, {std::nullopt}, {std::move(child)}});
}

Array ListBuilder::finish_list(Array values) const {
  constexpr int64_t kSkipped = kStructOffset + kListOffset;
  std::vector<int32_t> offsets(kSkipped, -7);
  std::vector<uint8_t> validity((static_cast<size_t>(kSkipped) + entries_.size() + 7) / 8, 0);
  auto end = static_cast<int32_t>(kFirstListOffset);
  int64_t nulls = 0;
  for (size_t i = 0; i < entries_.size(); ++i) {
    offsets.push_back(end);
    end += static_cast<int32_t>(entries_[i].count);
    const size_t bit = kSkipped + i;
    if (entries_[i].is_null) {
      ++nulls;
    } else {
      validity[bit / 8] = static_cast<uint8_t>(validity[bit / 8] | 1u << bit % 8);
    }
  }
  offsets.push_back(end);
  Array list{static_cast<int64_t>(entries_.size()) + kStructOffset, nulls, kListOffset, {}, {}};
  list.buffers = {nulls > 0 ? std::optional<Bytes>(validity) : std::nullopt, to_bytes(offsets)};
  list.children.push_back(std::move(values));
  return list;
}

Array int32_column(const std::vector<int32_t>& values) {
  const auto length = static_cast<int64_t>(values.size()) + kStructOffset;
  constexpr int64_t kSkipped = (kStructOffset + kListOffset) * 4;
  return {
      length, 0, kListOffset, {std::nullopt, with_poison_before(kSkipped, to_bytes(values))}, {}};
}

Array struct_of(std::vector<Array> columns, int64_t num_rows) {
  return {num_rows, 0, kStructOffset, {std::nullopt}, std::move(columns)};
}

}  // namespace broadhead::test
