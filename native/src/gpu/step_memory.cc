// SPDX-License-Identifier: Apache-2.0
#include "gpu/step_memory.h"

#include <algorithm>
#include <cstring>

#include "core/dtype.h"

namespace broadhead::gpu {
namespace {

/// Kernels load and store so many bytes at a time: what is not aligned to them is staged.
constexpr uintptr_t kAlignment = 16;

/// Memory is pinned by pages of at least so many bytes.
constexpr uintptr_t kPage = 4096;

/// Results from this size on are transferred. Smaller ones are those of decode steps, which spread
/// their stores over the whole step.
constexpr int64_t kLeastTransfer = int64_t{4} << 20;

int64_t aligned(int64_t bytes) { return (bytes + 255) / 256 * 256; }

char* writable(const void* memory) { return static_cast<char*>(const_cast<void*>(memory)); }

}  // namespace

TensorBytes::TensorBytes(const LayerSpec& spec)
    : query(int64_t{spec.num_heads} * spec.head_size * byte_width(spec.dtype)),
      key(int64_t{spec.num_kv_heads} * spec.head_size * byte_width(spec.dtype)),
      output(int64_t{spec.num_heads} * spec.head_size * byte_width(spec.output_dtype())),
      lse(int64_t{spec.num_heads} * int64_t{sizeof(float)}) {}

void StepMemory::Column::use(int64_t begin, int64_t count) {
  if (!tensors || count == 0) return;
  first = std::min(first, begin);
  end = std::max(end, begin + count);
}

void StepMemory::bring(Device& device, const LayerSpec& spec, const Step& step, Workspace& work,
                       bh_step_stats& stats) {
  find(spec, step);
  queries_on_device_ = true;
  for (Part& part : columns_) {
    for (Column& column : part.columns) {
      if (column.bytes() > 0) locate(device, column, stats);
    }
    queries_on_device_ &= part.columns[kQuery].kind == kOnDevice;
  }
  stage(work.staged_input, kQuery, kOutput);
  stage(work.staged_output, kOutput, kNames);
  keep_on_device(work.results, stats);
  parts_.clear();
  for (const Part& part : columns_) {
    const Column* c = part.columns;
    parts_.push_back({c[kQuery].address, c[kKey].address, c[kValue].address, c[kOutput].address,
                      reinterpret_cast<float*>(c[kLse].address)});
    for (int name = kQuery; name < kOutput; ++name) {
      if (c[name].staging) {
        std::memcpy(c[name].staging, c[name].used(), static_cast<size_t>(c[name].bytes()));
      }
    }
  }
}

void StepMemory::find(const LayerSpec& spec, const Step& step) {
  const TensorBytes bytes(spec);
  const bool writes = !spec.read_only_cache;
  columns_.clear();
  pageable_page_ = 0;
  for (int64_t r = 0; r < step.num_rows; ++r) {
    const StepRow& row = step.rows[r];
    while (static_cast<int32_t>(columns_.size()) <= row.part) {
      const StepPart& part = step.parts[columns_.size()];
      Part added;
      auto open = [&](Name name, const void* tensors, int64_t tensor_bytes) {
        added.columns[name].tensors = writable(tensors);
        added.columns[name].tensor_bytes = tensor_bytes;
      };
      open(kQuery, part.query, bytes.query);
      open(kKey, writes ? part.key : nullptr, bytes.key);
      open(kValue, writes ? part.value : nullptr, bytes.key);
      open(kOutput, part.output, bytes.output);
      open(kLse, part.lse, bytes.lse);
      columns_.push_back(added);
    }
    Column* columns = columns_[static_cast<size_t>(row.part)].columns;
    columns[kQuery].use(row.query, row.num_queries);
    columns[kKey].use(row.key, row.num_keys);
    columns[kValue].use(row.value, row.num_keys);
    columns[kOutput].use(row.output, row.num_queries);
    columns[kLse].use(row.output, row.num_queries);
  }
}

void StepMemory::locate(Device& device, Column& column, bh_step_stats& stats) {
  const uintptr_t page = reinterpret_cast<uintptr_t>(column.used()) / kPage;
  void* address = nullptr;
  column.kind = kPageable;
  if (page != pageable_page_) {
    address = device.pinned().device_address(column.used());
    column.kind = kPinned;
    if (!address) {
      const DeviceApi& api = device.api();
      check(api, api.locate(column.used(), &column.kind, &address), "tensor");
      if (column.kind == kPageable) pageable_page_ = page;
    }
    if (reinterpret_cast<uintptr_t>(address) % kAlignment != 0) column.kind = kPageable;
  }
  if (column.kind == kPageable) {
    stats.bytes_staged += column.bytes();
  } else {
    stats.bytes_in_place += column.bytes();
    column.address = static_cast<char*>(address) - column.first * column.tensor_bytes;
  }
}

/// Gives the pageable columns first .. end - 1 of all parts places in a buffer.
void StepMemory::stage(Buffer& buffer, Name first, Name end) {
  int64_t bytes = 0;
  auto for_each_staged = [&](auto&& visit) {
    for (Part& part : columns_) {
      for (int name = first; name < end; ++name) {
        Column& column = part.columns[name];
        if (column.bytes() > 0 && column.kind == kPageable) visit(column);
      }
    }
  };
  for_each_staged([&](Column& column) { bytes += aligned(column.bytes()); });
  buffer.reserve(bytes);
  int64_t at = 0;
  for_each_staged([&](Column& column) {
    column.staging = buffer.data() + at;
    column.address = buffer.device_address() + at - column.first * column.tensor_bytes;
    at += aligned(column.bytes());
  });
}

void StepMemory::keep_on_device(Buffer& buffer, bh_step_stats& stats) {
  auto for_each_large = [&](auto&& visit) {
    for (Part& part : columns_) {
      for (int name = kOutput; name < kNames; ++name) {
        Column& column = part.columns[name];
        if (column.bytes() >= kLeastTransfer && column.kind != kOnDevice) visit(column);
      }
    }
  };
  int64_t bytes = 0;
  for_each_large([&](Column& column) { bytes += aligned(column.bytes()); });
  buffer.reserve(bytes);
  int64_t at = 0;
  for_each_large([&](Column& column) {
    column.on_device = buffer.data() + at;
    column.address = column.on_device - column.first * column.tensor_bytes;
    at += aligned(column.bytes());
    stats.bytes_transferred += column.bytes();
    if (!column.staging) stats.bytes_in_place -= column.bytes();
  });
}

void StepMemory::send_back(const DeviceApi& api, Stream stream) const {
  for (const Part& part : columns_) {
    for (int name = kOutput; name < kNames; ++name) {
      const Column& column = part.columns[name];
      if (!column.on_device) continue;
      char* to = column.staging ? column.staging : column.used();
      check(api, api.copy(stream, to, column.on_device, column.bytes()), "result");
    }
  }
}

void StepMemory::deliver() const {
  for (const Part& part : columns_) {
    for (int name = kOutput; name < kNames; ++name) {
      const Column& column = part.columns[name];
      if (column.staging) {
        std::memcpy(column.used(), column.staging, static_cast<size_t>(column.bytes()));
      }
    }
  }
}

}  // namespace broadhead::gpu
