// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "broadhead/broadhead.h"
#include "core/layer_spec.h"

namespace broadhead {

/// Where the columns of a step batch are, found once per schema.
struct StepColumns {
  static constexpr int kAbsent = -1;
  int query = kAbsent;
  int key = kAbsent;
  int value = kAbsent;
  int seq_len = kAbsent;
  int slot_mapping = kAbsent;
  int block_table = kAbsent;
  int position = kAbsent;
  bool wide_positions = false;
  int64_t num_columns = 0;
};

/// Finds and checks the columns that the layer needs. Throws Failure(BH_SCHEMA_MISMATCH) that names
/// the column, what is expected and what was got.
StepColumns find_columns(const LayerSpec& spec, const ArrowSchema& schema);

}  // namespace broadhead
