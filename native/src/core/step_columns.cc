// SPDX-License-Identifier: Apache-2.0
#include "core/step_columns.h"

#include <cstdlib>
#include <cstring>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "core/dtype.h"
#include "core/failure.h"

namespace broadhead {
namespace {

[[noreturn]] void bad_column(const char* column, const std::string& expected,
                             const std::string& got) {
  throw Failure(BH_SCHEMA_MISMATCH, kNoRow, "column %s: expected %s, got %s", column,
                expected.c_str(), got.c_str());
}

/// Value of a key in C Data metadata: int32 count, then length-prefixed keys and values.
std::string_view metadata_value(const char* column, const char* metadata, std::string_view key) {
  if (!metadata) return {};
  auto read_size = [column, &metadata] {
    int32_t size;
    std::memcpy(&size, metadata, sizeof size);
    metadata += sizeof size;
    if (size < 0) bad_column(column, "sizes in its metadata", std::to_string(size));
    return size;
  };
  auto read_text = [&metadata, &read_size] {
    const int32_t length = read_size();
    std::string_view text(metadata, static_cast<size_t>(length));
    metadata += length;
    return text;
  };
  for (int32_t left = read_size(); left > 0; --left) {
    std::string_view name = read_text();
    std::string_view value = read_text();
    if (name == key) return value;
  }
  return {};
}

/// What follows `"key":` in an extension type's JSON. Names of dimensions may be any text, but no
/// colon follows them.
std::string_view json_value(std::string_view json, std::string_view key) {
  for (size_t at = 0; (at = json.find('"', at)) < json.size();) {
    const size_t begin = ++at;
    while (at < json.size() && json[at] != '"') at += json[at] == '\\' ? 2 : 1;
    if (at >= json.size()) break;
    const std::string_view text = json.substr(begin, at - begin);
    at = json.find_first_not_of(" \t\r\n", at + 1);
    if (at < json.size() && json[at] == ':' && text == key) return json.substr(at + 1);
  }
  return {};
}

/// The integers of `"key":[...]` there.
std::vector<int64_t> json_integers(std::string_view json, std::string_view key) {
  std::vector<int64_t> found;
  json = json_value(json, key);
  const size_t open = json.find('[');
  const size_t close = json.find(']');
  if (open == std::string_view::npos || close == std::string_view::npos) return found;
  std::string list(json.substr(open + 1, close - open - 1));
  for (const char* text = list.c_str(); *text;) {
    char* end;
    int64_t value = std::strtoll(text, &end, 10);
    if (end == text) {
      ++text;
    } else {
      found.push_back(value);
      text = end;
    }
  }
  return found;
}

/// Levels of a column's type below its first: tensors and their elements.
constexpr int kLevels = 2;

/// A type by its name in Arrow; rarer ones by their C Data format.
std::string type_name(const ArrowSchema& field, int levels_below = kLevels) {
  static constexpr std::pair<std::string_view, const char*> kNames[] = {
      {"n", "null"},       {"b", "bool"},    {"c", "int8"},         {"C", "uint8"},
      {"s", "int16"},      {"S", "uint16"},  {"i", "int32"},        {"I", "uint32"},
      {"l", "int64"},      {"L", "uint64"},  {"e", "float16"},      {"f", "float32"},
      {"g", "float64"},    {"z", "binary"},  {"Z", "large_binary"}, {"u", "utf8"},
      {"U", "large_utf8"}, {"+s", "struct"}, {"+m", "map"}};
  const std::string_view format = field.format;
  for (const auto& [letter, name] : kNames) {
    if (format == letter) return name;
  }
  const ArrowSchema* child = field.n_children == 1 && field.children ? field.children[0] : nullptr;
  const std::string element =
      levels_below > 0 && child && child->format ? type_name(*child, levels_below - 1) : "?";
  if (format == "+l") return "list<" + element + ">";
  if (format == "+L") return "large_list<" + element + ">";
  if (format.starts_with("+w:")) {
    return "fixed_size_list<" + element + ">[" + std::string(format.substr(3)) + "]";
  }
  return "a type of format '" + std::string(format) + "'";
}

std::string tensor_type(int dtype, int heads, int head_size) {
  std::string element = dtype == BH_BFLOAT16 ? "uint16 with field metadata dtype=bfloat16"
                                             : std::string(dtype_name(dtype));
  return "list<tensor[" + std::to_string(heads) + ", " + std::to_string(head_size) + "]> of " +
         element;
}

/// `label` is what the metadata key dtype says, empty without it.
int dtype_of(std::string_view format, std::string_view label) {
  const int dtype = format == "e"   ? BH_FLOAT16
                    : format == "f" ? BH_FLOAT32
                    : format == "S" ? BH_BFLOAT16
                                    : 0;
  if (label.empty()) return dtype == BH_BFLOAT16 ? 0 : dtype;
  return label == dtype_name(dtype) ? dtype : 0;
}

/// Refuses a type that is not complete, and indices of a dictionary: their format looks like
/// values.
void check_type(const char* column, const ArrowSchema* type, int levels_below) {
  if (!type || !type->format || (type->n_children > 0 && !type->children)) {
    bad_column(column, "a type", "one without a format or a child");
  }
  if (!type->release) bad_column(column, "a type", "one that was released");
  if (type->dictionary) bad_column(column, "plain values", "indices of a dictionary");
  if (type->n_children > 0 && levels_below == 0) bad_column(column, "tensors or numbers", "lists");
  for (int64_t i = 0; i < type->n_children; ++i) {
    check_type(column, type->children[i], levels_below - 1);
  }
}

/// The element type of a list; a malformed one without it is a mismatch too.
const ArrowSchema& only_child(const char* column, const ArrowSchema& list,
                              const std::string& expected) {
  if (list.n_children != 1) {
    bad_column(column, expected,
               type_name(list) + " with " + std::to_string(list.n_children) + " children");
  }
  return *list.children[0];
}

void check_tensor(const LayerSpec& spec, const ArrowSchema& field, int heads) {
  const int64_t width = int64_t{heads} * spec.head_size;
  const std::string expected = tensor_type(spec.dtype, heads, spec.head_size);
  auto bad = [&](const std::string& got) { bad_column(field.name, expected, got); };
  if (std::strcmp(field.format, "+l") != 0) bad(type_name(field));
  const ArrowSchema& tensor = only_child(field.name, field, expected);
  if (std::strncmp(tensor.format, "+w:", 3) != 0) bad(type_name(field));
  if (tensor.format + 3 != std::to_string(width)) {
    bad("tensors of " + std::string(tensor.format + 3) + " elements");
  }
  std::string_view json = metadata_value(field.name, tensor.metadata, "ARROW:extension:metadata");
  std::vector<int64_t> shape = json_integers(json, "shape");
  if (!shape.empty() && shape != std::vector<int64_t>{heads, spec.head_size}) {
    bad("another shape: " + std::string(json));
  }
  std::vector<int64_t> permutation = json_integers(json, "permutation");
  if (!permutation.empty() && permutation != std::vector<int64_t>{0, 1}) {
    bad("permuted tensors: " + std::string(json));
  }
  const ArrowSchema& element = only_child(field.name, tensor, expected);
  std::string_view label;
  for (const ArrowSchema* level : {&field, &tensor, &element}) {
    if (label.empty()) label = metadata_value(field.name, level->metadata, "dtype");
  }
  const int dtype = dtype_of(element.format, label);
  if (dtype != spec.dtype) {
    bad("elements of " + (dtype ? dtype_name(dtype)
                          : label.empty()
                              ? type_name(element)
                              : type_name(element) + " with metadata dtype=" + std::string(label)));
  }
}

/// `elements` holds the accepted element formats, one letter each.
void check_list(const ArrowSchema& field, std::string_view elements, const char* expected) {
  if (std::strcmp(field.format, "+l") != 0) bad_column(field.name, expected, type_name(field));
  const std::string_view format = only_child(field.name, field, expected).format;
  if (format.size() != 1 || elements.find(format) == std::string_view::npos) {
    bad_column(field.name, expected, type_name(field));
  }
}

}  // namespace

StepColumns find_columns(const LayerSpec& spec, const ArrowSchema& schema) {
  if (!schema.format) bad_column("(all)", "a struct of columns", "a type without a format");
  StepColumns columns;
  if (std::strcmp(schema.format, "+s") != 0) {
    bad_column("(all)", "a struct of columns", type_name(schema));
  }
  columns.num_columns = schema.n_children;
  for (int i = 0; i < schema.n_children; ++i) {
    if (!schema.children || !schema.children[i]) {
      bad_column("(all)", std::to_string(schema.n_children) + " columns", "none");
    }
    const ArrowSchema& field = *schema.children[i];
    if (!field.release) {
      bad_column("(all)", std::to_string(schema.n_children) + " columns",
                 "one that was released: " + std::to_string(i));
    }
    std::string_view name = field.name ? field.name : "";
    auto claim = [&](int& column) {
      if (column != StepColumns::kAbsent) bad_column(field.name, "one column", "it twice");
      check_type(field.name, &field, kLevels);
      column = i;
    };
    if (name == "query") {
      claim(columns.query);
      check_tensor(spec, field, spec.num_heads);
    } else if (name == "key") {
      claim(columns.key);
      check_tensor(spec, field, spec.num_kv_heads);
    } else if (name == "value") {
      claim(columns.value);
      check_tensor(spec, field, spec.num_kv_heads);
    } else if (name == "seq_len") {
      claim(columns.seq_len);
      if (std::strcmp(field.format, "i") != 0) {
        bad_column("seq_len", "int32", type_name(field));
      }
    } else if (name == "slot_mapping") {
      claim(columns.slot_mapping);
      check_list(field, "l", "list<int64>");
    } else if (name == "block_table") {
      claim(columns.block_table);
      check_list(field, "i", "list<int32>");
    } else if (name == "position") {
      claim(columns.position);
      check_list(field, "il", "list<int32> or list<int64>");
      columns.wide_positions = field.children[0]->format[0] == 'l';
    }
  }
  auto need = [&spec](int column, const char* name, const char* type) {
    if (column == StepColumns::kAbsent) bad_column(name, type, "no such column");
  };
  const std::string kv = tensor_type(spec.dtype, spec.num_kv_heads, spec.head_size);
  const bool has_key = columns.key != StepColumns::kAbsent;
  const bool has_value = columns.value != StepColumns::kAbsent;
  if (!spec.uses_cache() || !has_key) {  // a batch that does not update a cache attends
    const std::string query = tensor_type(spec.dtype, spec.num_heads, spec.head_size);
    need(columns.query, "query", query.c_str());
  }
  if (has_key != has_value || (!spec.uses_cache() && !has_key)) {
    need(columns.key, "key", kv.c_str());
    need(columns.value, "value", kv.c_str());
  }
  if (spec.uses_cache()) {
    need(columns.seq_len, "seq_len", "int32");
    need(columns.block_table, "block_table", "list<int32>");
    if (has_key && !spec.read_only_cache) need(columns.slot_mapping, "slot_mapping", "list<int64>");
  }
  if (spec.rotary_dim > 0) {
    need(columns.position, "position", "list<int32> or list<int64> (the layer has rope)");
  }
  return columns;
}

}  // namespace broadhead
