// SPDX-License-Identifier: Apache-2.0
#include "gpu/gpu_plan.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <iterator>
#include <numeric>
#include <unordered_map>
#include <utility>

#include "core/failure.h"
#include "core/visible_keys.h"

namespace broadhead::gpu {
namespace {

/// Tiles of decode work that are not worth to be divided further.
constexpr int kLeastTiles = 8;

/// A block of threads can stream several times as fast as its share of the device's bandwidth, so
/// that the device stays busy though some have more work than others: only what is longer than so
/// many shares is divided, for pieces cost a join.
constexpr int kLargestShare = 2;

/// Keys likewise, in prefill.
constexpr int kLeastKeys = 512;

constexpr AttendItem kNoWork = [] {
  AttendItem item{};
  item.next = -1;
  return item;
}();

bool is_decode(const PlanLimits& limits, int num_tokens) {
  return limits.prefill_rows == 0 || int64_t{num_tokens} * limits.group_size <= limits.decode_rows;
}

/// How many of `num_tokens` tokens that are side by side a unit takes.
int tokens_of_unit(const PlanLimits& limits, int num_tokens) {
  const bool divided = limits.group_size <= limits.decode_rows &&
                       int64_t{num_tokens} * limits.group_size <= limits.divided_rows;
  const int rows =
      divided || is_decode(limits, num_tokens) ? limits.decode_rows : limits.prefill_rows;
  return std::max(1, rows / limits.group_size);
}

int round_down(int key) { return key / kTile * kTile; }
int32_t position_of(const LayerSpec& spec, const Step& step, const StepRow& row, int32_t i) {
  if (spec.rotary_dim == 0) return 0;
  return static_cast<int32_t>(step.part(row).positions[row.positions + i]);
}
int tiles_of(int first_key, int end_key) { return (end_key - first_key + kTile - 1) / kTile; }

}  // namespace

void GpuPlan::plan(const LayerSpec& spec, const Step& step, int block_size,
                   const std::vector<PartTensors>& parts, const char* prepared_query,
                   const PlanLimits& of_layer) {
  PlanLimits limits = of_layer;
  // Prefill divides the keys of few rows among more blocks of threads.
  if (step.num_rows * limits.num_groups < limits.multiprocessors / 4) {
    limits.divided_rows = limits.decode_rows;
  }
  rows_.clear();
  runs_.clear();
  tokens_.clear();
  tables_.clear();
  first_block_of_row_.clear();
  update_tokens_.clear();
  query_tokens_.clear();
  decode_units_.clear();
  prefill_units_.clear();
  shared_keys_.assign(static_cast<size_t>(step.num_rows), 0);
  shared_tokens_.clear();
  num_blocks_ = written_tokens_ = keys_seen_ = keys_read_ = 0;
  add_rows(spec, step, block_size, parts, prepared_query);
  if (!spec.read_only_cache) add_updates(spec, step, block_size, parts);
  if (spec.uses_cache()) share_prefixes(step, block_size, limits);
  add_units(limits);
  divide_decode(limits);
  divide_prefill(limits);
  place_partials();
  add_items(decode_units_, block_size, decode_items_);
  add_items(prefill_units_, block_size, prefill_items_);
  chain_decode();
}

void GpuPlan::add_rows(const LayerSpec& spec, const Step& step, int block_size,
                       const std::vector<PartTensors>& parts, const char* prepared_query) {
  const TensorBytes bytes(spec);
  auto blocks_of = [block_size](const StepRow& row) {
    return (int64_t{row.seq_len} + block_size - 1) / block_size;
  };
  int64_t all = 0;
  for (int64_t r = 0; r < step.num_rows; ++r) all += blocks_of(step.rows[r]);
  if (all > INT32_MAX) {
    throw Failure(BH_INVALID_ARGUMENT, kNoRow,
                  "the rows of a step have %lld blocks, expected at most %d on a GPU",
                  static_cast<long long>(all), INT32_MAX);
  }
  if (!spec.uses_cache()) {
    temporary_ids_.resize(static_cast<size_t>(all));
    std::iota(temporary_ids_.begin(), temporary_ids_.end(), 0);
  }
  for (int64_t r = 0; r < step.num_rows; ++r) {
    const StepRow& from = step.rows[r];
    rows_.push_back({static_cast<int32_t>(tokens_.size()), from.num_queries});
    first_block_of_row_.push_back(static_cast<int32_t>(num_blocks_));
    // Only what is used: entries behind may be anything.
    const int64_t used = blocks_of(from);
    const int32_t* table =
        spec.uses_cache() ? step.blocks(from) : temporary_ids_.data() + num_blocks_;
    tables_.emplace_back(table, static_cast<size_t>(used));
    num_blocks_ += used;
    const PartTensors& part = parts[static_cast<size_t>(from.part)];
    for (int32_t i = 0; i < from.num_queries; ++i) {
      const VisibleKeys keys =
          visible_keys(spec.is_causal(), spec.window(), from.seq_len, from.num_queries, i);
      keys_seen_ += keys.end - keys.first;
      Token& token = tokens_.emplace_back();
      token.query = part.query + (from.query + i) * bytes.query;
      token.output = part.output + (from.output + i) * bytes.output;
      token.lse = part.lse ? part.lse + (from.output + i) * spec.num_heads : nullptr;
      token.position = keys.position;
      token.first = keys.first;
      token.end = keys.end;
      if (prepared_query) {
        query_tokens_.push_back({token.query, position_of(spec, step, from, i), 0});
        token.query = prepared_query + static_cast<int64_t>(tokens_.size() - 1) * bytes.query;
      }
    }
  }
}

void GpuPlan::add_updates(const LayerSpec& spec, const Step& step, int block_size,
                          const std::vector<PartTensors>& parts) {
  const int64_t bytes = TensorBytes(spec).key;
  std::unordered_map<int64_t, size_t> places;  // of slots, where one may occur twice
  for (int64_t r = 0; r < step.num_rows; ++r) {
    const StepRow& from = step.rows[r];
    const PartTensors& part = parts[static_cast<size_t>(from.part)];
    for (int32_t i = 0; i < from.num_keys; ++i) {
      int64_t slot;
      if (spec.uses_cache()) {
        slot = step.slots(from)[i];
        if (slot < 0) continue;
      } else {
        slot = int64_t{tables_[static_cast<size_t>(r)][0]} * block_size + i;
      }
      ++written_tokens_;
      size_t place = update_tokens_.size();
      if (step.slots_repeat) place = places.try_emplace(slot, place).first->second;
      // The last one stays.
      UpdateToken& token =
          place < update_tokens_.size() ? update_tokens_[place] : update_tokens_.emplace_back();
      token.key = part.key + (from.key + i) * bytes;
      token.value = part.value + (from.value + i) * bytes;
      token.block = static_cast<int32_t>(slot / block_size);
      token.offset = static_cast<int32_t>(slot % block_size);
      token.position = position_of(spec, step, from, i);
    }
  }
}

void GpuPlan::share_prefixes(const Step& step, int block_size, const PlanLimits& limits) {
  prefixes_.clear();
  for (size_t r = 0; r < rows_.size(); ++r) {
    const Row& row = rows_[r];
    const int64_t query_rows = int64_t{row.num_queries} * limits.group_size;
    if (query_rows == 0 || query_rows > limits.decode_rows) continue;
    const Token* tokens = tokens_.data() + row.first_token;
    if (tokens[row.num_queries - 1].first == 0) {
      prefixes_.add(step, static_cast<int64_t>(r), tokens[0].end);
    }
  }
  prefixes_.for_each(step, block_size, [&](const auto* group, int64_t count, int keys) {
    const auto first = static_cast<int32_t>(tokens_.size());
    for (int64_t i = 0; i < count; ++i) {
      const auto r = static_cast<size_t>(group[i].row);
      shared_keys_[r] = keys;
      for (int32_t t = 0; t < rows_[r].num_queries; ++t) {
        shared_tokens_.push_back(rows_[r].first_token + t);
        const Token token = tokens_[static_cast<size_t>(rows_[r].first_token + t)];
        tokens_.push_back(token);
      }
    }
    const auto end = static_cast<int32_t>(tokens_.size());
    const int run = tokens_of_unit(limits, end - first);
    for (int32_t t = first; t < end; t += run) {
      Unit& unit = add_unit(limits, t, std::min(run, end - t));
      unit.row = static_cast<int32_t>(group[0].row);
      unit.end_key = keys;
    }
  });
}

void GpuPlan::add_units(const PlanLimits& limits) {
  for (size_t r = 0; r < rows_.size(); ++r) {
    const Row& row = rows_[r];
    Token* tokens = tokens_.data() + row.first_token;
    const int run = tokens_of_unit(limits, row.num_queries);
    // Later tokens see more keys: the last items are small ones.
    for (int32_t end = row.num_queries; end > 0; end -= run) {
      const int32_t begin = std::max(0, end - run);
      Unit& unit = add_unit(limits, row.first_token + begin, end - begin);
      unit.row = static_cast<int32_t>(r);
      unit.first_seen = std::max(tokens[begin].first, shared_keys_[r]);
      unit.first_key = round_down(unit.first_seen);
      unit.end_key = std::max(tokens[end - 1].end, unit.first_key);
      if (unit.end_key <= unit.first_seen) unit.end_key = unit.first_key;
      for (int32_t t = begin; t < end; ++t) tokens[t].run = static_cast<int32_t>(runs_.size());
      runs_.push_back({unit.first_token, unit.num_tokens, 0});
    }
  }
}

GpuPlan::Unit& GpuPlan::add_unit(const PlanLimits& limits, int32_t first_token, int num_tokens) {
  Unit& unit = (is_decode(limits, num_tokens) ? decode_units_ : prefill_units_).emplace_back();
  unit.first_token = first_token;
  unit.num_tokens = num_tokens;
  return unit;
}

/// The longest pieces come first.
void GpuPlan::divide_decode(const PlanLimits& limits) {
  int64_t total = 0;
  decode_rows_ = 0;
  for (const Unit& unit : decode_units_) {
    total += tiles_of(unit.first_key, unit.end_key);
    decode_rows_ = std::max(decode_rows_, unit.num_tokens * limits.group_size);
  }
  decode_slots_ = limits.slots[decode_rows_ > limits.columns];
  const int64_t share = (total + decode_slots_ - 1) / decode_slots_;
  const auto largest = static_cast<int32_t>(kLargestShare * std::max<int64_t>(kLeastTiles, share));
  for (Unit& unit : decode_units_) {
    const int32_t tiles = tiles_of(unit.first_key, unit.end_key);
    divide(unit, (tiles + largest - 1) / largest);
  }
  auto is_longer = [](const Unit& a, const Unit& b) { return a.tiles_of_piece > b.tiles_of_piece; };
  if (!std::is_sorted(decode_units_.begin(), decode_units_.end(), is_longer)) {
    std::stable_sort(decode_units_.begin(), decode_units_.end(), is_longer);
  }
}

/// Keys are divided only where the device would be idle otherwise. Rows with the longest units come
/// first; a row's units stay together, so that its keys are read while they are in the second-level
/// cache.
void GpuPlan::divide_prefill(const PlanLimits& limits) {
  if (prefill_units_.empty()) return;
  const auto blocks = static_cast<int64_t>(prefill_units_.size()) * limits.num_groups;
  const auto wanted =
      static_cast<int32_t>(blocks >= limits.multiprocessors ? 1 : limits.multiprocessors / blocks);
  std::vector<int32_t> longest(rows_.size());
  auto longest_of_row = [&](const Unit& unit) -> int32_t& {
    return longest[static_cast<size_t>(unit.row)];
  };
  for (Unit& unit : prefill_units_) {
    longest_of_row(unit) = std::max(longest_of_row(unit), unit.end_key - unit.first_key);
    divide(unit, std::min(wanted, (unit.end_key - unit.first_key) / kLeastKeys));
  }
  std::stable_sort(prefill_units_.begin(), prefill_units_.end(), [&](const Unit& a, const Unit& b) {
    return longest_of_row(a) > longest_of_row(b);
  });
}

/// Divides the unit's keys into about `pieces` pieces, the last of which may be shorter.
void GpuPlan::divide(Unit& unit, int32_t pieces) {
  keys_read_ += unit.end_key - unit.first_key;
  const int32_t tiles = tiles_of(unit.first_key, unit.end_key);
  unit.tiles_of_piece = pieces > 1 ? (tiles + pieces - 1) / pieces : tiles;
  unit.pieces = pieces > 1 ? (tiles + unit.tiles_of_piece - 1) / unit.tiles_of_piece : 1;
}

/// A token's partial results lie side by side, those of a shared prefix first.
void GpuPlan::place_partials() {
  const auto own_tokens =
      static_cast<int32_t>(tokens_.size() - shared_tokens_.size());  // the others repeat them
  auto own = [&](int32_t token) -> Token& {
    return tokens_[static_cast<size_t>(
        token < own_tokens ? token : shared_tokens_[static_cast<size_t>(token - own_tokens)])];
  };
  for (const bool shared : {true, false}) {
    for (auto* units : {&decode_units_, &prefill_units_}) {
      for (Unit& unit : *units) {
        if (shared != (unit.first_token >= own_tokens)) continue;
        unit.first_piece = own(unit.first_token).num_partials;
        for (int32_t t = 0; t < unit.num_tokens; ++t) {
          own(unit.first_token + t).num_partials += unit.pieces;
        }
      }
    }
  }
  num_partials_ = 0;
  for (int32_t t = 0; t < own_tokens; ++t) {
    Token& token = tokens_[static_cast<size_t>(t)];
    token.first_partial = static_cast<int32_t>(num_partials_);
    if (token.num_partials > 1) num_partials_ += token.num_partials;
  }
  for (auto t = static_cast<size_t>(own_tokens); t < tokens_.size(); ++t) {
    tokens_[t] = own(static_cast<int32_t>(t));
  }
}

/// An item for each piece of the units, in their order; counts the items of runs that have partial
/// results.
void GpuPlan::add_items(const std::vector<Unit>& units, int block_size,
                        std::vector<AttendItem>& items) {
  items.clear();
  for (const Unit& unit : units) {
    int32_t last_run = -1;
    for (int32_t t = 0; t < unit.num_tokens; ++t) {
      const Token& token = tokens_[static_cast<size_t>(unit.first_token + t)];
      if (token.run == last_run || token.num_partials == 1) continue;
      last_run = token.run;
      runs_[static_cast<size_t>(token.run)].items += unit.pieces;
    }
    const int32_t* table = tables_[static_cast<size_t>(unit.row)].data();
    for (int32_t p = 0; p < unit.pieces; ++p) {
      AttendItem& item = items.emplace_back(kNoWork);
      item.token = tokens_[static_cast<size_t>(unit.first_token)];
      item.first_token = unit.first_token;
      item.num_tokens = unit.num_tokens;
      item.first_key = unit.first_key + p * unit.tiles_of_piece * kTile;
      item.end_key = std::min(item.first_key + unit.tiles_of_piece * kTile, unit.end_key);
      item.first_seen = unit.first_seen;
      item.piece = unit.first_piece + p;
      item.blocks = first_block_of_row_[static_cast<size_t>(unit.row)];
      item.is_partial = last_run >= 0;
      find_first_blocks(table, block_size, item);
    }
  }
}

/// Blocks of threads begin with the items of their index, the longest ones; the others are chained
/// to those back and forth, so that who got the longest of one round gets the shortest of the next.
/// Where there are several rounds no more slots are used than make them equal: half of what is
/// resident keeps the device busy, but not the few that would be left over. In a single round slots
/// without work get an item without tokens, up to a power of two: so the steps of growing sequences
/// are alike for a while.
void GpuPlan::chain_decode() {
  const auto count = static_cast<int32_t>(decode_items_.size());
  const int32_t rounds = (count + decode_slots_ - 1) / decode_slots_;
  decode_blocks_ =
      rounds > 1 ? (count + rounds - 1) / rounds
      : count == 0
          ? 0
          : std::min(decode_slots_, static_cast<int>(std::bit_ceil(static_cast<unsigned>(count))));
  for (int32_t round = 1; round < rounds; ++round) {
    const int32_t first = round * decode_blocks_;
    for (int32_t i = first; i < std::min(first + decode_blocks_, count); ++i) {
      decode_items_[static_cast<size_t>(2 * first - 1 - i)].next = i;
    }
  }
  decode_items_.resize(static_cast<size_t>(std::max(count, decode_blocks_)), kNoWork);
}

void GpuPlan::find_first_blocks(const int32_t* table, int block_size, AttendItem& item) {
  const int tiles_per_block = block_size / kTile;
  const int tile = item.first_key / kTile;
  const int32_t* block = table + tile / tiles_per_block;
  int tiles_left = tiles_per_block - tile % tiles_per_block;
  const int tiles =
      std::min<int>(tiles_of(item.first_key, item.end_key), std::size(item.first_blocks));
  for (int t = 0; t < tiles; ++t) {
    item.first_blocks[t] = *block;
    if (--tiles_left == 0) {
      ++block;
      tiles_left = tiles_per_block;
    }
  }
}

namespace {

template <class Element>
int64_t bytes_of(const std::vector<Element>& array) {
  return static_cast<int64_t>(array.size() * sizeof(Element));
}

/// Arrays lie around StepArgs, each from a multiple of 16 bytes on.
int64_t aligned(int64_t bytes) { return (bytes + 15) / 16 * 16; }

}  // namespace

int64_t GpuPlan::bytes() const {
  int64_t total = attention_offset() + int64_t{sizeof(StepArgs)};
  auto add = [&total](const auto&... arrays) { ((total += aligned(bytes_of(arrays))), ...); };
  add(decode_items_, runs_, tokens_, prefill_items_);
  return total + aligned(num_blocks_ * int64_t{sizeof(int32_t)});
}

int64_t GpuPlan::attention_offset() const {
  return bytes_of(update_tokens_) + bytes_of(query_tokens_);
}

void GpuPlan::point(UpdateArgs& args, const char* plan) const {
  args.tokens = reinterpret_cast<const UpdateToken*>(plan);
  args.queries = reinterpret_cast<const QueryToken*>(plan + bytes_of(update_tokens_));
  args.num_tokens = static_cast<int32_t>(update_tokens_.size());
  args.num_queries = static_cast<int32_t>(query_tokens_.size());
}

void GpuPlan::write(StepArgs args, char* host, char* device) const {
  int64_t at = 0;
  auto point = [&](auto& pointer, int64_t bytes) {
    pointer = reinterpret_cast<std::remove_reference_t<decltype(pointer)>>(device + at);
    at = aligned(at + bytes);
  };
  auto put = [&](const auto& array, auto& pointer) {
    if (!array.empty()) std::memcpy(host + at, array.data(), array.size() * sizeof(array[0]));
    point(pointer, bytes_of(array));
  };
  const void* known = nullptr;
  put(update_tokens_, known);
  put(query_tokens_, known);
  at += sizeof(StepArgs);
  put(decode_items_, known);
  put(runs_, args.runs);
  put(tokens_, args.tokens);
  put(prefill_items_, args.prefill_items);
  args.num_prefill_items = num_prefill_items();
  auto* blocks = reinterpret_cast<int32_t*>(host + at);
  for (auto table = tables_.begin(); table != tables_.end();) {
    // Tables that follow one another are one copy.
    const int32_t* const first = table->data();
    const int32_t* end = first;
    for (; table != tables_.end() && table->data() == end; ++table) end += table->size();
    blocks = std::copy(first, end, blocks);
  }
  point(args.blocks, num_blocks_ * int64_t{sizeof(int32_t)});
  std::memcpy(host + attention_offset(), &args, sizeof args);
}

}  // namespace broadhead::gpu
