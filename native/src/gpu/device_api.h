// SPDX-License-Identifier: Apache-2.0
// The table of functions that libbroadhead_cuda.so and libbroadhead_hip.so hand to the core. Plain
// C across the boundary: the library may have been built by another compiler.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "gpu/kernel_args.h"

namespace broadhead::gpu {

/// Raised whenever the table or a structure of kernel_args.h changes.
constexpr uint32_t kDeviceApiVersion = 9;

/// What went wrong in a call, for bh_error.
enum DeviceStatus : int32_t { kOk = 0, kOutOfMemory, kDeviceError, kDeviceLost };

struct DeviceInfo {
  char name[128];
  char architecture[32];
  char reason[192];  ///< why the device cannot be used; empty if it can
  int32_t wave;      ///< threads that run in step
  int32_t columns;   ///< query rows of a matrix tile
  int32_t multiprocessors;
  int64_t memory;
  int64_t free_memory;
};

/// Where memory is.
enum MemoryKind : int32_t { kPageable = 0, kPinned, kOnDevice };

using Stream = void*;
using Event = void*;
using Graph = void*;

/// Every function that returns int32_t returns a DeviceStatus; message() then says more, for the
/// calling thread. `device` must be current (use) on the calling thread for all that follows it.
struct DeviceApi {
  uint32_t version;
  uint32_t struct_size;
  const char* (*message)();

  /// Devices that the driver shows. Fails with a message where there is no driver or no device.
  int32_t (*count)(int32_t* devices);
  int32_t (*describe)(int32_t device, DeviceInfo* info);
  int32_t (*use)(int32_t device);

  int32_t (*allocate)(int64_t bytes, void** memory);
  void (*release)(void* memory);
  /// Pinned and mapped for all devices.
  int32_t (*allocate_host)(int64_t bytes, void** memory);
  void (*release_host)(void* memory);
  /// Tells what `memory` is, and its address for kernels: NULL for pageable memory.
  int32_t (*locate)(const void* memory, int32_t* kind, void** device_address);
  int32_t (*copy)(Stream stream, void* to, const void* from, int64_t bytes);
  int32_t (*clear)(Stream stream, void* memory, int64_t bytes);

  int32_t (*create_stream)(Stream* stream);
  void (*destroy_stream)(Stream stream);
  int32_t (*synchronize)(Stream stream);
  /// `sleeps`: a thread in wait_event leaves its processor to others, and wakes up later; not for
  /// elapsed().
  int32_t (*create_event)(Event* event, int32_t sleeps);
  void (*destroy_event)(Event event);
  int32_t (*record)(Event event, Stream stream);
  /// What is put on `stream` from now on runs after what the event was last recorded behind.
  int32_t (*follow_event)(Stream stream, Event event);
  int32_t (*wait_event)(Event event);
  int32_t (*elapsed)(Event start, Event end, float* milliseconds);

  /// What is launched on `stream` between begin and end is recorded and not run.
  int32_t (*begin_graph)(Stream stream);
  int32_t (*end_graph)(Stream stream, Graph* graph);
  int32_t (*launch_graph)(Stream stream, Graph graph);
  void (*destroy_graph)(Graph graph);

  /// Blocks of threads of decode that the device runs at once for such a layer; `rows` is the
  /// largest number of query rows of an item.
  int32_t (*decode_slots)(const LayerArgs* layer, int32_t cache_dtype, int32_t rows,
                          int32_t* slots);
  /// Query rows of a prefill item.
  int32_t (*prefill_rows)(const LayerArgs* layer, int32_t cache_dtype);
  /// Writes keys and values to the cache, prepares queries and brings the plan.
  int32_t (*update)(Stream stream, const LayerArgs* layer, const UpdateArgs* update);
  int32_t (*decode)(Stream stream, const LayerArgs* layer, int32_t cache_dtype,
                    const StepArgs* step, int32_t rows, int32_t blocks);
  int32_t (*prefill)(Stream stream, const LayerArgs* layer, int32_t cache_dtype,
                     const StepArgs* step, int32_t items);
  int32_t (*merge_results)(Stream stream, const MergeArgs* merge);

  /// Moves a block between the cache and [block_size, num_kv_heads, head_size] in device memory.
  int32_t (*read_block)(Stream stream, const CacheView* cache, int64_t block, void* key,
                        void* value);
  int32_t (*write_block)(Stream stream, const CacheView* cache, int64_t block, const void* key,
                         const void* value);
  /// Reads blocks whole, as fast as it can be done.
  int32_t (*read_blocks)(Stream stream, const CacheView* cache, const int32_t* blocks,
                         int64_t count, void* sink);
};

/// The one symbol of a library.
using GetDeviceApi = const DeviceApi* (*)();
constexpr const char* kGetDeviceApi = "broadhead_device_api";

}  // namespace broadhead::gpu
