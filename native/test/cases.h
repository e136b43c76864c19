// SPDX-License-Identifier: Apache-2.0
// The conformance table's vocabulary: a line describes a layer and its batches, and lists values
// for some axes; it stands for every combination of them, on every target.
#pragma once

#include <cstdint>
#include <ostream>
#include <string>
#include <vector>

#include "broadhead/broadhead.h"
#include "target.h"

namespace broadhead::test {

/// One sequence: the last `queries` of its `length` tokens are new, unless the layer is an encoder
/// (`length` keys) or encoder_decoder layer (`length` encoder tokens).
struct Sequence {
  int queries;
  int length;
};

struct Heads {
  int query;
  int kv;
};

/// Rotary dimensions: 0 none, kWholeHead all.
struct Rotary {
  int dim = 0;
  bool neox = true;
};
inline constexpr int kWholeHead = -1;

enum class Slopes { kNone, kPositive, kNegative, kMixed };
enum class Sinks { kNone, kRandom, kOff };  // kOff: -inf, a sink without weight

/// How keys and values reach the cache.
enum class Flow {
  kStep,        ///< context by a batch without queries, new tokens by the step itself
  kAttendOnly,  ///< all by a batch without queries; the step has no key and value columns
  kShared,      ///< as kAttendOnly, and the step's own keys must not be written
  kDuplicates,  ///< as kStep; slots are written several times, the last time right
  kPadding,     ///< as kStep; each row has more keys, with negative slots
};

inline constexpr int kAuto = 0;  ///< the cache has the query's dtype
inline const std::vector<int> kTensorDtypes = {BH_FLOAT32, BH_FLOAT16, BH_BFLOAT16};
inline const std::vector<int> kFp8 = {BH_FLOAT8_E4M3FN, BH_FLOAT8_E5M2};
inline const std::vector<int> kAutoAndFp8 = {kAuto, BH_FLOAT8_E4M3FN};
inline const std::vector<int> kEveryCache = {kAuto,       BH_FLOAT32,       BH_FLOAT16,
                                             BH_BFLOAT16, BH_FLOAT8_E4M3FN, BH_FLOAT8_E5M2};

struct Case {
  std::string feature;
  std::string name;
  std::vector<Sequence> rows;

  // axes
  std::vector<Heads> heads = {{8, 2}};
  std::vector<int> head_sizes = {64};
  std::vector<int> block_sizes = {16};
  std::vector<int> windows = {0};
  std::vector<float> soft_caps = {0};
  std::vector<Slopes> alibi = {Slopes::kNone};
  std::vector<Sinks> sinks = {Sinks::kNone};
  std::vector<Rotary> rope = {{}};
  std::vector<int> dtypes = kTensorDtypes;
  std::vector<int> caches = {kAuto};

  // the same for all
  int attn_type = BH_DECODER;
  Flow flow = Flow::kStep;
  float scale = 0;       ///< 0: head_size ^ -0.5
  float k_scale = 0.7f;  ///< of fp8 caches
  float v_scale = 1.3f;
  float output_scale = 0;
  int threads = 2;
  int shared_prefix = 0;  ///< tokens that all sequences have in common, in the same blocks
  bool window_blocks_freed = false;  ///< tables name a block of NaN before the window
  bool int64_positions = false;
  bool lse = true;
};

/// One combination of a case's axes on one target.
struct Instance {
  const Case* source;
  Heads heads;
  int head_size;
  int block_size;
  int window;
  float soft_cap;
  Slopes alibi;
  Sinks sinks;
  Rotary rope;
  int dtype;
  int cache_dtype;
  Target target;

  /// Identifies the combination; its data is drawn from it, so that targets see the same.
  std::string seed() const;
  std::string label() const;
};

/// For GoogleTest's messages.
inline void PrintTo(const Instance& instance, std::ostream* out) { *out << instance.label(); }

std::vector<Instance> expand(const std::vector<Case>& cases);

/// Runs the case and compares every step with the reference.
void run(const Instance& instance);

}  // namespace broadhead::test
