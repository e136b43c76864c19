// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "core/layer_spec.h"
#include "core/shared_prefix.h"
#include "core/step.h"
#include "gpu/kernel_args.h"
#include "gpu/step_memory.h"

namespace broadhead::gpu {

/// What planning must know of a layer's kernels on their device.
struct PlanLimits {
  int decode_rows;      ///< query rows of a decode item, at most
  int divided_rows;     ///< query rows that several decode items do sooner than one of prefill
  int prefill_rows;     ///< query rows of a prefill item; 0: decode takes all
  int columns;          ///< query rows of decode's small items
  int slots[2];         ///< resident blocks of threads of decode for each group of heads: if all
                        ///< items are small, and otherwise
  int multiprocessors;  ///< blocks of threads that prefill should have at least
  int group_size;
  int num_groups;
};

/// One step as kernels take it: checked rows become flat arrays. Keeps its memory between steps.
///
/// Query tokens of a row that fit into a block of threads are a unit of work, with all keys that
/// they see. What rows with a common prefix see of that is one unit of them all. The keys of a unit
/// are divided into pieces where the device would be idle otherwise, and each piece is an item, for
/// decode or prefill, which blocks of threads take for one group of heads each. A token whose keys
/// several items have gets a partial result from each; the block of threads that ends the last item
/// of a run, which is the tokens of a row's unit, joins them.
class GpuPlan {
 public:
  /// `block_size` is that of the cache, also of the temporary one of encoder layers, whose tables
  /// and slots are made here. `parts` says where tensors are. Where `prepared_query` is given,
  /// queries pass through the update kernel, which puts them there.
  void plan(const LayerSpec& spec, const Step& step, int block_size,
            const std::vector<PartTensors>& parts, const char* prepared_query,
            const PlanLimits& of_layer);

  /// Bytes of the tokens of the update, of StepArgs and of its arrays.
  int64_t bytes() const;
  /// Where StepArgs is.
  int64_t attention_offset() const;

  /// Writes them to `host`, with pointers for their copy at `device`; the other fields of `args`
  /// are the caller's. Block tables are copied from the step's memory now.
  void write(StepArgs args, char* host, char* device) const;

  /// Names the tokens of the update in the plan, or a copy of it, at an address for kernels.
  void point(UpdateArgs& args, const char* plan) const;

  int64_t num_partials() const { return num_partials_; }
  int num_runs() const { return static_cast<int>(runs_.size()); }
  int num_prefill_items() const { return static_cast<int>(prefill_items_.size()); }
  int decode_rows() const { return decode_rows_; }  ///< of the largest item
  /// Blocks of threads that decode begins with for each group of heads; 0: there is no such work.
  int decode_blocks() const { return decode_blocks_; }
  bool has_update() const { return !update_tokens_.empty() || !query_tokens_.empty(); }
  int64_t written_tokens() const { return written_tokens_; }
  /// Blocks of all tables: those that an encoder layer's temporary cache needs.
  int64_t num_blocks() const { return num_blocks_; }
  int64_t keys_seen() const { return keys_seen_; }
  int64_t keys_read() const { return keys_read_; }

 private:
  struct Row {
    int32_t first_token;
    int32_t num_queries;
  };

  struct Unit {
    int32_t first_token;  ///< index into tokens_
    int32_t num_tokens;
    int32_t row;        ///< whose block table it is
    int32_t first_key;  ///< of its first tile
    int32_t end_key;
    int32_t first_seen;  ///< by any token
    int32_t tiles_of_piece;
    int32_t pieces;
    int32_t first_piece;  ///< counted among the partial results of its tokens
  };

  void add_rows(const LayerSpec& spec, const Step& step, int block_size,
                const std::vector<PartTensors>& parts, const char* prepared_query);
  void add_updates(const LayerSpec& spec, const Step& step, int block_size,
                   const std::vector<PartTensors>& parts);
  void share_prefixes(const Step& step, int block_size, const PlanLimits& limits);
  void add_units(const PlanLimits& limits);
  Unit& add_unit(const PlanLimits& limits, int32_t first_token, int num_tokens);
  void divide_decode(const PlanLimits& limits);
  void divide_prefill(const PlanLimits& limits);
  void divide(Unit& unit, int32_t pieces);
  void place_partials();
  void add_items(const std::vector<Unit>& units, int block_size, std::vector<AttendItem>& items);
  void chain_decode();
  static void find_first_blocks(const int32_t* table, int block_size, AttendItem& item);

  std::vector<Row> rows_;
  std::vector<Run> runs_;
  std::vector<Token> tokens_;  ///< of all rows, then those of shared prefixes once more
  std::vector<std::span<const int32_t>> tables_;  ///< block tables of rows, as much as is used
  std::vector<UpdateToken> update_tokens_;
  std::vector<QueryToken> query_tokens_;
  std::vector<int32_t> first_block_of_row_;  ///< where all tables follow one another
  std::vector<int32_t> temporary_ids_;       ///< 0, 1, ...: tables of encoder layers
  std::vector<int32_t> shared_keys_;         ///< of each row: how many it has in a shared prefix
  std::vector<int32_t> shared_tokens_;       ///< which ones the tokens once more repeat
  std::vector<Unit> decode_units_;
  std::vector<Unit> prefill_units_;
  std::vector<AttendItem> decode_items_;
  std::vector<AttendItem> prefill_items_;
  SharedPrefixes prefixes_;
  int decode_rows_ = 0;
  int decode_slots_ = 0;
  int decode_blocks_ = 0;
  int64_t num_partials_ = 0;
  int64_t num_blocks_ = 0;
  int64_t written_tokens_ = 0;
  int64_t keys_seen_ = 0;
  int64_t keys_read_ = 0;
};

}  // namespace broadhead::gpu
