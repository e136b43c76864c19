// SPDX-License-Identifier: Apache-2.0
// Plain memory only: kernels of every instruction set tier include this.
#pragma once

#include <cstdint>

namespace broadhead {

/// Tokens that a row may see at most: positions have 32 bits, also where kernels look beyond.
constexpr int32_t kMaxSeqLen = 1 << 30;

/// One row of a step, every index checked: all that a backend needs to know of it. Indices are into
/// the arrays of its part.
struct StepRow {
  int32_t part;    ///< index into Step::parts
  int64_t query;   ///< index of its first query tensor
  int64_t output;  ///< index of its first output tensor
  int32_t num_queries;
  int32_t num_keys;  ///< new key and value tensors
  int64_t key;       ///< index of its first key tensor
  int64_t value;
  int64_t slots;      ///< index of its first slot
  int64_t blocks;     ///< index of its first block table entry
  int64_t positions;  ///< index of its first position
  int32_t seq_len;    ///< tokens in the cache after the update; keys of the row without a cache
};

/// Token positions, int32 or int64 as the producer sent them.
struct Positions {
  const int32_t* narrow = nullptr;
  const int64_t* wide = nullptr;

  [[gnu::always_inline]] int64_t operator[](int64_t i) const { return wide ? wide[i] : narrow[i]; }
};

/// The memory of one batch of a step and of its result. Tensor i of `query` and `output` starts at
/// element i * num_heads * head_size; of `key` and `value` at i * num_kv_heads * head_size.
struct StepPart {
  const void* query = nullptr;
  const void* key = nullptr;
  const void* value = nullptr;
  const int64_t* slots = nullptr;
  const int32_t* blocks = nullptr;
  Positions positions;
  void* output = nullptr;
  float* lse = nullptr;  ///< [query tokens, num_heads] or NULL
};

/// One step as backends see it: raw memory and checked rows, no Arrow.
struct Step {
  const StepRow* rows = nullptr;
  int64_t num_rows = 0;
  const StepPart* parts = nullptr;
  bool slots_repeat = false;  ///< a slot occurs twice: writes must keep row and token order
  int64_t num_queries = 0;

  [[gnu::always_inline]] const StepPart& part(const StepRow& row) const { return parts[row.part]; }
  [[gnu::always_inline]] const int32_t* blocks(const StepRow& row) const {
    return parts[row.part].blocks + row.blocks;
  }
  [[gnu::always_inline]] const int64_t* slots(const StepRow& row) const {
    return parts[row.part].slots + row.slots;
  }
};

}  // namespace broadhead
