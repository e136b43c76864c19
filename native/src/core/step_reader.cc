// SPDX-License-Identifier: Apache-2.0
#include "core/step_reader.h"

#include <algorithm>
#include <cinttypes>

#include "core/dtype.h"
#include "core/failure.h"

namespace broadhead {
namespace {

bool is_valid(const uint8_t* validity, int64_t bit) {
  return !validity || (validity[bit >> 3] >> (bit & 7) & 1);
}

[[noreturn]] void bad_array(const char* column, const char* what, int64_t got, int64_t expected) {
  throw Failure(BH_INVALID_ARGUMENT, kNoRow, "column %s: %s is %" PRId64 ", expected %" PRId64,
                column, what, got, expected);
}

/// More entries than memory holds, and few enough for their bytes to be counted.
constexpr int64_t kMostEntries = INT64_MAX / 8;

/// Checks what every array has: the buffers and children of its type, and a range of entries.
void check_shape(const char* column, const ArrowArray& array, int64_t buffers, int64_t children) {
  if (array.n_buffers != buffers) bad_array(column, "n_buffers", array.n_buffers, buffers);
  if (array.n_children != children) bad_array(column, "n_children", array.n_children, children);
  if (array.length < 0) bad_array(column, "length", array.length, 0);
  if (array.offset < 0) bad_array(column, "offset", array.offset, 0);
  if (array.offset > kMostEntries || array.length > kMostEntries - array.offset) {
    throw Failure(BH_INVALID_ARGUMENT, kNoRow,
                  "column %s: %" PRId64 " entries from %" PRId64
                  " on are more than memory can hold",
                  column, array.length, array.offset);
  }
  bool complete = array.buffers && (children == 0 || array.children);
  for (int64_t i = 0; complete && i < children; ++i) complete = array.children[i] != nullptr;
  if (!complete) {
    throw Failure(BH_INVALID_ARGUMENT, kNoRow, "column %s: its buffers or a child are NULL",
                  column);
  }
}

void check_length(const char* column, const char* what, int64_t got, int64_t at_least) {
  if (got < at_least) {
    throw Failure(BH_INVALID_ARGUMENT, kNoRow,
                  "column %s: %s is %" PRId64 ", expected at least %" PRId64, column, what, got,
                  at_least);
  }
}

bool has_null(const ArrowArray& array, int64_t begin, int64_t end) {
  const auto* validity = static_cast<const uint8_t*>(array.buffers[0]);
  for (int64_t i = begin; validity && i < end; ++i) {
    if (!is_valid(validity, array.offset + i)) return true;
  }
  return false;
}

/// Whether an array has nulls. A null_count of -1 means that nobody counted.
bool has_null(const ArrowArray& array) {
  return array.null_count > 0 || (array.null_count < 0 && has_null(array, 0, array.length));
}

/// Refuses nulls in the lists of `num_rows` rows; where no row refers to, there may be some.
/// `array` is the child, or the child's, with `width` elements from `first` on for each entry of
/// the lists.
void check_no_nulls(const ListColumn& list, int64_t num_rows, const char* what,
                    const ArrowArray& array, int64_t first = 0, int64_t width = 1) {
  if (!has_null(array)) return;
  for (int64_t row = 0; list.offsets && row < num_rows; ++row) {
    if (!is_valid(list.validity, list.first_bit + row)) continue;
    const int64_t begin = list.offsets[row], end = list.offsets[row + 1];
    const bool inside = 0 <= begin && begin <= end && end <= list.child_length;
    if (inside && has_null(array, first + begin * width, first + end * width)) {
      throw Failure(BH_SCHEMA_MISMATCH, row, "column %s: expected no %s, got some", list.name,
                    what);
    }
  }
}

/// The second buffer, of `length` entries of `width` bytes; that of none may be anywhere.
const void* data_buffer(const char* column, const ArrowArray& array, int64_t length, int width) {
  const void* data = array.buffers[1];
  if (length == 0) return data;
  if (!data) {
    throw Failure(BH_INVALID_ARGUMENT, kNoRow, "column %s: its data buffer is NULL", column);
  }
  if (reinterpret_cast<uintptr_t>(data) % static_cast<uintptr_t>(width) != 0) {
    throw Failure(BH_INVALID_ARGUMENT, kNoRow,
                  "column %s: its data buffer is at %p, expected a multiple of %d", column, data,
                  width);
  }
  return data;
}

/// The same of an array of a batch: one that was released, or moved away, is not to be read.
void check_array(const char* column, const ArrowArray& array, int64_t buffers, int64_t children) {
  if (!array.release) {
    throw Failure(BH_INVALID_ARGUMENT, kNoRow, "column %s: an array of it was released before",
                  column);
  }
  check_shape(column, array, buffers, children);
}

ListColumn open_list(const char* name, const ArrowArray& parent, const ArrowArray& list) {
  check_array(name, list, 2, 1);
  check_length(name, "length", list.length, parent.offset + parent.length);
  ListColumn column;
  column.name = name;
  column.first_bit = parent.offset + list.offset;
  column.validity = list.null_count == 0 ? nullptr : static_cast<const uint8_t*>(list.buffers[0]);
  auto offsets =
      static_cast<const int32_t*>(data_buffer(name, list, parent.length, sizeof(int32_t)));
  column.offsets = offsets ? offsets + column.first_bit : nullptr;
  column.child_length = list.children[0]->length;
  return column;
}

/// Opens list<T>; `values` gets the address of child element 0.
template <class T>
ListColumn open_scalars(const char* name, const ArrowArray& parent, const ArrowArray& list,
                        const T*& values) {
  ListColumn column = open_list(name, parent, list);
  const ArrowArray& child = *list.children[0];
  check_array(name, child, 2, 0);
  check_no_nulls(column, parent.length, "nulls inside lists", child);
  auto data = static_cast<const T*>(data_buffer(name, child, child.length, sizeof(T)));
  values = data ? data + child.offset : nullptr;
  return column;
}

/// Opens list<fixed_size_list<T>[width]>; `values` gets the address of tensor 0.
ListColumn open_tensors(const char* name, const ArrowArray& parent, const ArrowArray& list,
                        int64_t width, int dtype, const void*& values) {
  ListColumn column = open_list(name, parent, list);
  const ArrowArray& tensors = *list.children[0];
  check_array(name, tensors, 1, 1);
  check_no_nulls(column, parent.length, "null tensors", tensors);
  const ArrowArray& elements = *tensors.children[0];
  check_array(name, elements, 2, 0);
  if (elements.length / width - tensors.offset < tensors.length) {
    throw Failure(BH_INVALID_ARGUMENT, kNoRow,
                  "column %s: number of elements is %" PRId64 ", expected %" PRId64
                  " for each of %" PRId64 " tensors from %" PRId64 " on",
                  name, elements.length, width, tensors.length, tensors.offset);
  }
  check_no_nulls(column, parent.length, "null elements", elements, tensors.offset * width, width);
  auto data =
      static_cast<const char*>(data_buffer(name, elements, elements.length, byte_width(dtype)));
  values = data ? data + (elements.offset + tensors.offset * width) * byte_width(dtype) : nullptr;
  return column;
}

/// Whether all are 0 .. last. Block tables are long: they are looked through as fast as the
/// processor can. (What chooses a clone runs before ThreadSanitizer is there.)
#if defined(__x86_64__) && !defined(__SANITIZE_THREAD__)
[[gnu::target_clones("default", "avx2", "avx512f")]]
#endif
bool are_ids(const int32_t* ids, int64_t count, int64_t last) {
  uint32_t signs = 0;  // of ids, and of what is left to the last one: none where all are good
  for (int64_t i = 0; i < count; ++i) {
    const auto id = static_cast<uint32_t>(ids[i]);
    signs |= id | (static_cast<uint32_t>(last) - id);
  }
  return signs >> 31 == 0;
}

// ---- result ----

void* open_result_list(const char* name, const ArrowArray& list, int64_t num_rows, int64_t tensors,
                       int64_t width, int dtype) {
  check_shape(name, list, 2, 1);
  check_shape(name, *list.children[0], 1, 1);
  check_shape(name, *list.children[0]->children[0], 2, 0);
  const ArrowArray& elements = *list.children[0]->children[0];
  if (list.offset || list.children[0]->offset || elements.offset) {
    throw Failure(BH_INVALID_ARGUMENT, kNoRow,
                  "result column %s: its arrays must start at offset 0", name);
  }
  check_length(name, "length", list.length, num_rows);
  check_length(name, "number of tensors", list.children[0]->length, tensors);
  check_length(name, "number of elements", elements.length, tensors * width);
  data_buffer(name, list, 1, sizeof(int32_t));
  return const_cast<void*>(data_buffer(name, elements, tensors, byte_width(dtype)));
}

/// Points a part at the caller's result array: `output` and, with return_lse, `lse`. Throws
/// Failure(BH_INVALID_ARGUMENT) where it is too small.
void open_result(const LayerSpec& spec, const ArrowArray& result, int64_t num_rows,
                 int64_t num_queries, StepPart& part) {
  check_shape("(result)", result, 1, spec.return_lse ? 2 : 1);
  check_length("(result)", "length", result.length, num_rows);
  if (result.offset) {
    throw Failure(BH_INVALID_ARGUMENT, kNoRow, "the result must start at offset 0");
  }
  part.output = open_result_list("output", *result.children[0], num_rows, num_queries,
                                 int64_t{spec.num_heads} * spec.head_size, spec.output_dtype());
  if (spec.return_lse) {
    part.lse = static_cast<float*>(open_result_list("lse", *result.children[1], num_rows,
                                                    num_queries, spec.num_heads, BH_FLOAT32));
  }
}

}  // namespace

ListColumn::Range ListColumn::range(int64_t row) const {
  if (!is_valid(validity, first_bit + row)) return {0, 0};
  const int64_t begin = offsets[row];
  const int64_t end = offsets[row + 1];
  if (begin < 0 || end < begin || end > child_length) {
    throw Failure(BH_INVALID_ROW, row,
                  "column %s: offsets %" PRId64 " .. %" PRId64
                  ", expected a rising range within 0 .. %" PRId64,
                  name, begin, end, child_length);
  }
  return {begin, end - begin};
}

StepReader::StepReader(const LayerSpec& spec, const Cache* cache, StepColumns columns)
    : spec_(spec), cache_(cache), columns_(columns) {}

void StepReader::open(const ArrowArray& batch) {
  check_shape("(all)", batch, 1, columns_.num_columns);
  if (has_null(batch)) {
    throw Failure(BH_INVALID_ARGUMENT, kNoRow, "expected no null rows, got some");
  }
  num_rows_ = batch.length;
  memory_ = StepPart{};
  auto child = [&batch](int index) -> const ArrowArray& { return *batch.children[index]; };
  const int64_t kv_width = int64_t{spec_.num_kv_heads} * spec_.head_size;
  if (columns_.query != StepColumns::kAbsent) {
    query_ = open_tensors("query", batch, child(columns_.query),
                          int64_t{spec_.num_heads} * spec_.head_size, spec_.dtype, memory_.query);
  }
  if (columns_.key != StepColumns::kAbsent) {
    key_ = open_tensors("key", batch, child(columns_.key), kv_width, spec_.dtype, memory_.key);
    value_ =
        open_tensors("value", batch, child(columns_.value), kv_width, spec_.dtype, memory_.value);
  }
  if (spec_.uses_cache()) {
    const ArrowArray& seq_len = child(columns_.seq_len);
    check_array("seq_len", seq_len, 2, 0);
    check_length("seq_len", "length", seq_len.length, batch.offset + batch.length);
    seq_len_first_bit_ = batch.offset + seq_len.offset;
    seq_len_validity_ =
        seq_len.null_count == 0 ? nullptr : static_cast<const uint8_t*>(seq_len.buffers[0]);
    auto lengths =
        static_cast<const int32_t*>(data_buffer("seq_len", seq_len, batch.length, sizeof(int32_t)));
    seq_len_ = lengths ? lengths + seq_len_first_bit_ : nullptr;
    block_table_ = open_scalars("block_table", batch, child(columns_.block_table), memory_.blocks);
    if (columns_.slot_mapping != StepColumns::kAbsent) {
      slot_mapping_ =
          open_scalars("slot_mapping", batch, child(columns_.slot_mapping), memory_.slots);
    }
  }
  if (spec_.rotary_dim > 0) {
    const ArrowArray& list = child(columns_.position);
    position_ = columns_.wide_positions
                    ? open_scalars("position", batch, list, memory_.positions.wide)
                    : open_scalars("position", batch, list, memory_.positions.narrow);
  }
}

StepRow StepReader::row(int64_t r) const {
  StepRow row{};
  auto count_of = [r](const ListColumn& column, int64_t& begin) {
    if (!column.present()) return int64_t{0};
    ListColumn::Range range = column.range(r);
    begin = range.begin;
    return range.count;
  };
  auto bad_count = [r](const char* column, int64_t got, const char* what, int64_t expected) {
    throw Failure(BH_INVALID_ROW, r, "column %s: %" PRId64 " entries, expected %" PRId64 " (%s)",
                  column, got, expected, what);
  };

  row.num_queries = static_cast<int32_t>(count_of(query_, row.query));
  row.num_keys = static_cast<int32_t>(count_of(key_, row.key));
  const int64_t num_values = count_of(value_, row.value);
  if (num_values != row.num_keys) bad_count("value", num_values, "as many as key", row.num_keys);

  if (spec_.rotary_dim > 0) {
    const int64_t count = count_of(position_, row.positions);
    const int64_t expected = row.num_queries > 0 ? row.num_queries : row.num_keys;
    if (count != expected) bad_count("position", count, "one for each new token", expected);
    if (row.num_queries > 0 && row.num_keys > 0 && row.num_keys != row.num_queries) {
      bad_count("key", row.num_keys, "as many as query, since the layer has rope", row.num_queries);
    }
    for (int64_t i = 0; i < count; ++i) {
      const int64_t position = memory_.positions[row.positions + i];
      if (position < 0 || position >= spec_.max_position) {
        throw Failure(BH_INVALID_ROW, r,
                      "column position: entry %" PRId64 " is %" PRId64 ", expected 0 .. %" PRId64
                      " (rope.max_position %" PRId64 ")",
                      i, position, spec_.max_position - 1, spec_.max_position);
      }
    }
  }
  if (!spec_.uses_cache()) {
    if (row.num_keys > kMaxSeqLen) {
      throw Failure(BH_INVALID_ROW, r, "column key: %d entries, expected at most %d", row.num_keys,
                    kMaxSeqLen);
    }
    row.seq_len = row.num_keys;
    return row;
  }

  if (!is_valid(seq_len_validity_, seq_len_first_bit_ + r)) {
    throw Failure(BH_INVALID_ROW, r, "column seq_len: null, expected an int32");
  }
  row.seq_len = seq_len_[r];
  const int least = spec_.is_causal() ? row.num_queries : 0;
  if (row.seq_len < least && row.seq_len != 0) {
    throw Failure(
        BH_INVALID_ROW, r,
        "column seq_len: %d, expected 0 (padding) or at least %d (the row's query tokens)",
        row.seq_len, least);
  }
  if (row.seq_len > kMaxSeqLen) {
    throw Failure(BH_INVALID_ROW, r, "column seq_len: %d, expected at most %d", row.seq_len,
                  kMaxSeqLen);
  }
  const int block_size = cache_->options().block_size;
  const int64_t used = (int64_t{row.seq_len} + block_size - 1) / block_size;
  const int64_t entries = count_of(block_table_, row.blocks);
  if (entries < used) {
    throw Failure(BH_INVALID_ROW, r,
                  "column block_table: %" PRId64 " entries, expected at least %" PRId64
                  " (seq_len %d in blocks of %d)",
                  entries, used, row.seq_len, block_size);
  }
  const int64_t num_blocks = cache_->options().num_blocks;
  const int32_t* blocks = memory_.blocks + row.blocks;
  if (!are_ids(blocks, used, std::min<int64_t>(num_blocks - 1, INT32_MAX))) {
    for (int64_t i = 0; i < used; ++i) {
      if (blocks[i] >= 0 && blocks[i] < num_blocks) continue;
      throw Failure(BH_INVALID_ROW, r,
                    "column block_table: entry %" PRId64 " is block %d, expected 0 .. %" PRId64
                    " (num_blocks %" PRId64 ")",
                    i, blocks[i], num_blocks - 1, num_blocks);
    }
  }
  if (row.num_keys > 0 && !spec_.read_only_cache) {
    const int64_t slots = count_of(slot_mapping_, row.slots);
    if (slots != row.num_keys) bad_count("slot_mapping", slots, "one for each key", row.num_keys);
    for (int64_t i = 0; i < slots; ++i) {
      const int64_t slot = memory_.slots[row.slots + i];
      if (slot < cache_->num_slots()) continue;
      throw Failure(BH_INVALID_ROW, r,
                    "column slot_mapping: entry %" PRId64 " is slot %" PRId64
                    ", expected below %" PRId64 " (%" PRId64 " blocks of %d)",
                    i, slot, cache_->num_slots(), num_blocks, block_size);
    }
  }
  return row;
}

void StepReader::begin_step() {
  rows_.clear();
  parts_.clear();
  num_queries_ = 0;
}

void StepReader::add_part(const ArrowArray& batch, const ArrowArray& result) {
  const auto rows_before = static_cast<int64_t>(rows_.size());
  try {
    open(batch);
    const int64_t num_queries = add_rows();
    if (num_queries_ + num_queries > INT32_MAX) {
      throw Failure(BH_INVALID_ARGUMENT, kNoRow,
                    "column query: a step has %" PRId64 " query tokens, expected at most %d",
                    num_queries_ + num_queries, INT32_MAX);
    }
    open_result(spec_, result, num_rows_, num_queries, memory_);
    parts_.push_back(memory_);
    num_queries_ += num_queries;
  } catch (const Failure& failure) {
    if (failure.row() == kNoRow || rows_before == 0) throw;
    throw Failure(failure.code(), rows_before + failure.row(), "%s", failure.what());
  }
}

/// Checks the rows of the open batch, adds them, and answers how many query tokens they have.
int64_t StepReader::add_rows() {
  int64_t num_queries = 0;
  for (int64_t r = 0; r < num_rows_; ++r) {
    StepRow checked = row(r);
    checked.part = static_cast<int32_t>(parts_.size());
    checked.output = num_queries;
    num_queries += checked.num_queries;
    rows_.push_back(checked);
  }
  return num_queries;
}

Step StepReader::step() {
  Step step;
  step.rows = rows_.data();
  step.num_rows = static_cast<int64_t>(rows_.size());
  step.parts = parts_.data();
  step.num_queries = num_queries_;
  step.slots_repeat = slots_repeat();
  return step;
}

bool StepReader::slots_repeat() {
  if (!cache_ || spec_.read_only_cache) return false;
  seen_slots_.resize(static_cast<size_t>((cache_->num_slots() + 63) / 64));
  auto for_each_slot = [this](auto&& visit) {
    for (const StepRow& row : rows_) {
      for (int64_t i = 0; i < row.num_keys; ++i) {
        const int64_t slot = parts_[static_cast<size_t>(row.part)].slots[row.slots + i];
        if (slot >= 0) visit(seen_slots_[static_cast<size_t>(slot / 64)], uint64_t{1} << slot % 64);
      }
    }
  };
  bool repeat = false;
  for_each_slot([&repeat](uint64_t& word, uint64_t bit) {
    repeat |= (word & bit) != 0;
    word |= bit;
  });
  for_each_slot([](uint64_t& word, uint64_t) { word = 0; });
  return repeat;
}

void write_result_offsets(const ArrowArray& result, std::span<const StepRow> rows) {
  for (int64_t c = 0; c < result.n_children; ++c) {
    auto offsets = static_cast<int32_t*>(const_cast<void*>(result.children[c]->buffers[1]));
    int32_t end = 0;
    *offsets++ = end;
    for (const StepRow& row : rows) *offsets++ = end += row.num_queries;
  }
}

}  // namespace broadhead
