// SPDX-License-Identifier: Apache-2.0
#include "cases.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "harness.h"
#include "number_format.h"
#include "random.h"
#include "summary.h"

namespace broadhead::test {
namespace {

/// The block of NaN that tables may name for tokens outside the window.
constexpr int32_t kNullBlock = 0;

LayerConfig layer_of(const Instance& instance, Random& random) {
  const Case& c = *instance.source;
  LayerConfig layer;
  layer.num_heads = instance.heads.query;
  layer.num_kv_heads = instance.heads.kv;
  layer.head_size = instance.head_size;
  layer.attn_type = c.attn_type;
  layer.dtype = instance.dtype;
  layer.scale = c.scale != 0 ? c.scale : 1 / std::sqrt(static_cast<float>(instance.head_size));
  layer.sliding_window = instance.window;
  layer.logits_soft_cap = instance.soft_cap;
  if (element_bytes(instance.cache_dtype) == 1) {
    layer.k_scale = c.k_scale;
    layer.v_scale = c.v_scale;
  }
  layer.output_scale = c.output_scale;
  layer.return_lse = c.lse;
  for (int h = 0; h < layer.num_heads; ++h) {
    if (instance.alibi != Slopes::kNone) {
      // As models have them: a geometric series that starts at 2^(-8 / num_heads).
      const float slope = std::exp2(-8.0f * static_cast<float>(h + 1) / layer.num_heads);
      const bool negative =
          instance.alibi == Slopes::kNegative || (instance.alibi == Slopes::kMixed && h % 2 == 1);
      layer.alibi_slopes.push_back(negative ? -slope : slope);
    }
    if (instance.sinks != Sinks::kNone) {
      layer.sinks.push_back(instance.sinks == Sinks::kOff ? -HUGE_VALF : 3 * random.normal());
    }
  }
  if (instance.rope.dim != 0) {
    int longest = 1;
    for (const Sequence& row : c.rows) longest = std::max({longest, row.length, row.queries});
    layer.set_rope(instance.rope.dim == kWholeHead ? instance.head_size : instance.rope.dim,
                   instance.rope.neox, longest);
  }
  return layer;
}

/// The batches of a case, and the block tables that they share.
class Workload {
 public:
  Workload(const Instance& instance, const LayerConfig& layer, Random& random)
      : case_(*instance.source),
        block_size_(instance.block_size),
        cache_dtype_(instance.cache_dtype),
        layer_(layer),
        random_(random) {
    if (layer.uses_cache()) assign_blocks();
  }

  int64_t num_blocks() const { return num_blocks_; }

  /// A batch without queries that writes tokens 0 .. length - 1 of each sequence; with `context`
  /// only those before its queries.
  StepBatch fill(bool context) {
    StepBatch batch;
    batch.has_query = false;
    for (size_t r = 0; r < case_.rows.size(); ++r) {
      const Sequence& sequence = case_.rows[r];
      const int end = context ? context_of(sequence) : sequence.length;
      StepRow row;
      row.seq_len = end;
      row.blocks = table(r);
      add_keys(row, r, r == 0 ? 0 : std::min(shared_tokens(), end), end);
      batch.rows.push_back(std::move(row));
    }
    return batch;
  }

  /// The step that attends; with `writes` it brings its own keys and values.
  StepBatch step(bool writes) {
    StepBatch batch;
    batch.has_key = writes;
    batch.wide_positions = case_.int64_positions;
    for (size_t r = 0; r < case_.rows.size(); ++r) {
      const Sequence& sequence = case_.rows[r];
      StepRow row;
      row.seq_len = sequence.length;
      const int first = layer_.attn_type == BH_DECODER ? context_of(sequence) : 0;
      if (layer_.uses_cache()) row.blocks = step_table(r, first);
      if (writes) {
        if (case_.flow == Flow::kDuplicates) add_overwritten_keys(row, r, first);
        add_keys(row, r, first, sequence.length);
        if (case_.flow == Flow::kPadding) add_padding_keys(row);
      }
      row.positions.resize(static_cast<size_t>(sequence.queries));
      for (int i = 0; i < sequence.queries; ++i) {
        row.positions[static_cast<size_t>(i)] = std::max(first, 0) + i;
      }
      row.query = tensors(row.positions, layer_.num_heads, 0);
      if (layer_.rotary_dim == 0) row.positions.clear();
      batch.rows.push_back(std::move(row));
    }
    return batch;
  }

 private:
  static int context_of(const Sequence& sequence) {
    return std::max(sequence.length - sequence.queries, 0);
  }

  /// Tokens of the blocks that all sequences share.
  int shared_tokens() const { return case_.shared_prefix / block_size_ * block_size_; }

  void assign_blocks() {
    int64_t needed = 1;
    for (const Sequence& row : case_.rows) needed += (row.length + block_size_ - 1) / block_size_;
    num_blocks_ = needed + 2;
    std::vector<int64_t> free = random_.sample(num_blocks_ - 1, num_blocks_ - 1);
    for (size_t r = 0; r < case_.rows.size(); ++r) {
      std::vector<int32_t> blocks;
      const int used = (case_.rows[r].length + block_size_ - 1) / block_size_;
      for (int b = 0; b < used; ++b) {
        if (r > 0 && (b + 1) * block_size_ <= shared_tokens()) {
          blocks.push_back(tables_[0][static_cast<size_t>(b)]);
        } else {
          blocks.push_back(static_cast<int32_t>(free.back() + 1));
          free.pop_back();
        }
      }
      tables_.push_back(std::move(blocks));
    }
  }

  /// A table with entries past the used ones that no block has.
  std::vector<int32_t> table(size_t r) const {
    std::vector<int32_t> blocks = tables_[r];
    if (r % 3 != 2) {
      blocks.insert(blocks.end(),
                    {-1, std::numeric_limits<int32_t>::max(), static_cast<int32_t>(num_blocks_),
                     std::numeric_limits<int32_t>::min()});
    }
    return blocks;
  }

  std::vector<int32_t> step_table(size_t r, int first_query) const {
    std::vector<int32_t> blocks = table(r);
    if (!case_.window_blocks_freed) return blocks;
    const auto window = static_cast<int>(layer_.sliding_window);
    for (int b = 0; (b + 1) * block_size_ <= first_query - window + 1; ++b) {
      blocks[static_cast<size_t>(b)] = kNullBlock;
    }
    return blocks;
  }

  int64_t slot_of(size_t r, int token) const {
    return int64_t{tables_[r][static_cast<size_t>(token / block_size_)]} * block_size_ +
           token % block_size_;
  }

  std::vector<float> tensors(const std::vector<int64_t>& positions, int heads, int cache_dtype) {
    if (layer_.rotary_dim > 0) {
      return random_rotary_tensors(random_, layer_, positions, heads, cache_dtype);
    }
    return random_tensors(random_, layer_, static_cast<int64_t>(positions.size()), heads);
  }

  void add_keys(StepRow& row, size_t r, int first, int end) {
    for (int token = first; token < end; ++token) {
      row.positions.push_back(token);
      if (layer_.uses_cache()) row.slots.push_back(slot_of(r, token));
    }
    const std::vector<float> keys =
        tensors({row.positions.end() - std::max(end - first, 0), row.positions.end()},
                layer_.num_kv_heads, cache_dtype_);
    row.key.insert(row.key.end(), keys.begin(), keys.end());
    add_values(row, end - first);
    if (layer_.rotary_dim == 0) row.positions.clear();
  }

  /// Keys for the slots of this row and of the next one, which will be written again.
  void add_overwritten_keys(StepRow& row, size_t r, int first) {
    add_keys(row, r, first, case_.rows[r].length);
    if (r + 1 == case_.rows.size()) return;
    const Sequence& next = case_.rows[r + 1];
    add_keys(row, r + 1, context_of(next), next.length);
  }

  void add_padding_keys(StepRow& row) {
    for (const int64_t slot : {int64_t{-1}, std::numeric_limits<int64_t>::min(), int64_t{-16}}) {
      row.slots.push_back(slot);
      const std::vector<float> keys = random_tensors(random_, layer_, 1, layer_.num_kv_heads);
      row.key.insert(row.key.end(), keys.begin(), keys.end());
      add_values(row, 1);
    }
  }

  void add_values(StepRow& row, int tokens) {
    const std::vector<float> values =
        random_tensors(random_, layer_, std::max(tokens, 0), layer_.num_kv_heads);
    row.value.insert(row.value.end(), values.begin(), values.end());
  }

  const Case& case_;
  int block_size_;
  int cache_dtype_;
  const LayerConfig& layer_;
  Random& random_;
  int64_t num_blocks_ = 0;
  std::vector<std::vector<int32_t>> tables_;
};

void run_decoder(const Case& c, Workload& workload, Session& session) {
  switch (c.flow) {
    case Flow::kStep:
    case Flow::kDuplicates:
    case Flow::kPadding:
      session.step(workload.fill(true));
      session.step(workload.step(true));
      return;
    case Flow::kAttendOnly:
      session.step(workload.fill(false));
      session.step(workload.step(false));
      return;
    case Flow::kShared:
      session.step(workload.fill(false));
      session.share_cache();
      session.step(workload.step(true));
      return;
  }
}

/// Encoder keys come with the first decoder step; later ones find them in the cache, with key and
/// value columns that are null or not there.
void run_encoder_decoder(const Case& c, Workload& workload, Session& session) {
  session.step(workload.step(true));
  if (c.flow == Flow::kShared) {
    session.share_cache();
    session.step(workload.step(true));
  }
  StepBatch later = workload.step(true);
  for (StepRow& row : later.rows) {
    row.key.clear();
    row.value.clear();
    row.slots.clear();
  }
  session.step(later);
  session.step(workload.step(false));
}

void run_supported(const Instance& instance) {
  const Case& c = *instance.source;
  Random random(instance.seed());
  const LayerConfig layer = layer_of(instance, random);
  Workload workload(instance, layer, random);
  bh_cache_options pool{};
  pool.num_blocks = workload.num_blocks();
  pool.block_size = instance.block_size;
  pool.dtype = instance.cache_dtype;
  Session session(instance.target, c.threads, layer, pool);
  BH_SKIP_IF_UNUSABLE(session, instance.target);
  if (layer.attn_type == BH_DECODER) {
    run_decoder(c, workload, session);
  } else if (layer.attn_type == BH_ENCODER_DECODER) {
    run_encoder_decoder(c, workload, session);
  } else {
    session.step(workload.step(true));
  }
  record(c.feature, instance.target, session.worst());
}

}  // namespace

std::string Instance::seed() const {
  static const char* kSlopes[] = {"none", "positive", "negative", "mixed"};
  static const char* kSinks[] = {"none", "random", "off"};
  const Case& c = *source;
  auto number = [](auto value) { return std::to_string(static_cast<int>(value)); };
  std::string label = c.feature + "_" + c.name;
  auto add = [&label](const auto& axis, const char* prefix, const std::string& text) {
    if (axis.size() > 1) label.append("_").append(prefix).append(text);
  };
  add(c.heads, "h", number(heads.query) + "x" + number(heads.kv));
  add(c.head_sizes, "d", number(head_size));
  add(c.block_sizes, "b", number(block_size));
  add(c.windows, "w", number(window));
  add(c.soft_caps, "c", number(soft_cap));
  add(c.alibi, "a", kSlopes[static_cast<int>(alibi)]);
  add(c.sinks, "s", kSinks[static_cast<int>(sinks)]);
  add(c.rope, "r", rope.dim == kWholeHead ? std::string("all") : number(rope.dim));
  if (c.rope.size() > 1) label += rope.neox ? "neox" : "gptj";
  label.append("_").append(dtype_label(dtype));
  if (cache_dtype != dtype) label.append("_on_").append(dtype_label(cache_dtype));
  return label;
}

std::string Instance::label() const { return seed() + "_" + target.label(); }

std::vector<Instance> expand(const std::vector<Case>& cases) {
  std::vector<Instance> all;
  int64_t count = 0;
  for (const Case& c : cases) {
    for (const Heads& heads : c.heads)
      for (const int head_size : c.head_sizes)
        for (const int block_size : c.block_sizes)
          for (const int window : c.windows)
            for (const float soft_cap : c.soft_caps)
              for (const Slopes alibi : c.alibi)
                for (const Sinks sinks : c.sinks)
                  for (const Rotary& rope : c.rope)
                    for (const int dtype : c.dtypes)
                      for (const int cache : c.caches) {
                        if (cache == dtype) continue;  // the same as kAuto
                        if (count++ % options().every != 0) continue;
                        for (const Target& target : targets()) {
                          all.push_back({&c, heads, head_size, block_size, window, soft_cap, alibi,
                                         sinks, rope, dtype, cache == kAuto ? dtype : cache,
                                         target});
                        }
                      }
  }
  return all;
}

void run(const Instance& instance) {
  try {
    run_supported(instance);
  } catch (const Unsupported& reason) {
    GTEST_SKIP() << reason.what();
  }
}

}  // namespace broadhead::test
