// SPDX-License-Identifier: Apache-2.0
// Arrow C Data structures made from plain values that tests can change before they export them.
#pragma once

#include <cstdint>
#include <cstring>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "broadhead/broadhead.h"

namespace broadhead::test {

using Bytes = std::vector<uint8_t>;
using Metadata = std::vector<std::pair<std::string, std::string>>;

template <class T>
Bytes to_bytes(const std::vector<T>& values) {
  Bytes bytes(values.size() * sizeof(T));
  if (!bytes.empty()) std::memcpy(bytes.data(), values.data(), bytes.size());
  return bytes;
}

/// A schema node.
struct Field {
  std::string name;
  std::string format;
  Metadata metadata;
  std::vector<Field> children;
  bool dictionary = false;  ///< indices of one, of strings

  Field& child(const std::string& name);
};

/// An array node. A buffer that is not there is exported as NULL.
struct Array {
  int64_t length = 0;
  int64_t null_count = 0;
  int64_t offset = 0;
  std::vector<std::optional<Bytes>> buffers;
  std::vector<Array> children;
};

/// The exported structures own copies of everything; their release callback frees them.
ArrowSchema export_schema(const Field& field);
ArrowArray export_array(Array array);

/// Exported structures that were not released yet.
int64_t live_c_data();

/// Batches address a row of a child with all of these offsets at once, so that an import that
/// forgets one of them is caught. What lies before them is poison.
inline constexpr int64_t kStructOffset = 2;
inline constexpr int64_t kListOffset = 1;
inline constexpr int64_t kFirstListOffset = 3;  ///< value of the first list offset
inline constexpr int64_t kValuesOffset = 5;

/// Adds up a list column row by row. A null row keeps a range of poisoned values, as Arrow allows.
class ListBuilder {
 public:
  void append(int64_t count);
  void append_null();

  /// `values` holds the counts appended, without poison; `value_bytes` is the size of one value.
  Array finish(const Bytes& values, int64_t value_bytes) const;

  /// The same for values that are tensors of `width` elements.
  Array finish_tensors(const Bytes& values, int64_t width, int64_t element_bytes) const;

 private:
  Array finish_list(Array values) const;
  Bytes poisoned(const Bytes& values, int64_t value_bytes) const;
  int64_t num_values() const;

  struct Entry {
    int64_t count;
    bool is_null;
  };
  std::vector<Entry> entries_;
};

Array int32_column(const std::vector<int32_t>& values);
Array struct_of(std::vector<Array> columns, int64_t num_rows);

}  // namespace broadhead::test
