// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "broadhead/broadhead.h"
#include "core/backend.h"
#include "core/layer_spec.h"
#include "core/step_columns.h"

namespace broadhead {

/// A list column: its rows as ranges of its child, each checked as it is read.
struct ListColumn {
  const char* name = nullptr;
  const int32_t* offsets = nullptr;  ///< of row 0
  const uint8_t* validity = nullptr;
  int64_t first_bit = 0;
  int64_t child_length = 0;

  struct Range {
    int64_t begin;
    int64_t count;
  };
  bool present() const { return name != nullptr; }
  /// Throws Failure(BH_INVALID_ROW) for offsets that fall or leave the child.
  Range range(int64_t row) const;
};

/// Reads the rows of step batches, one or several for a step, and checks every index in them. One
/// thread at a time; keeps its buffers between steps, so that steps of one shape allocate nothing.
class StepReader {
 public:
  /// `cache` is NULL for layers without one. Both outlive the reader.
  StepReader(const LayerSpec& spec, const Cache* cache, StepColumns columns);

  /// Points the reader at a batch. Throws where lengths or buffers do not fit the schema.
  void open(const ArrowArray& batch);

  /// Rows of the open batch.
  int64_t num_rows() const { return num_rows_; }

  /// Checks one row of the open batch; throws Failure(BH_INVALID_ROW).
  StepRow row(int64_t row) const;

  /// Forgets the step that was read.
  void begin_step();

  /// Opens a batch as the next part of the step, checks all its rows, and points their outputs at
  /// `result`. A Failure's row counts the rows of all parts.
  void add_part(const ArrowArray& batch, const ArrowArray& result);

  /// The step of all parts that were added.
  Step step();

 private:
  int64_t add_rows();
  bool slots_repeat();

  const LayerSpec& spec_;
  const Cache* cache_;
  StepColumns columns_;
  int64_t num_rows_ = 0;
  ListColumn query_, key_, value_, slot_mapping_, block_table_, position_;
  StepPart memory_;  ///< buffers of the open batch
  const int32_t* seq_len_ = nullptr;
  const uint8_t* seq_len_validity_ = nullptr;
  int64_t seq_len_first_bit_ = 0;
  std::vector<StepRow> rows_;
  std::vector<StepPart> parts_;
  int64_t num_queries_ = 0;           ///< of all parts
  std::vector<uint64_t> seen_slots_;  ///< one bit per slot, all zero between steps
};

/// Writes the list offsets of the result's columns, for the rows `rows` of one part.
void write_result_offsets(const ArrowArray& result, std::span<const StepRow> rows);

}  // namespace broadhead
