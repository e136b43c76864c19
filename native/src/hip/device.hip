// SPDX-License-Identifier: Apache-2.0
// The library's face: devices, memory, streams and launches behind the table of device_api.h.
#include <algorithm>
#include <cstdio>
#include <cstring>

#include "broadhead/broadhead.h"
#include "gpu/device_api.h"
#include "hip/kernels.h"

namespace broadhead::gpu {
namespace {

thread_local char last_message[256];

int32_t report(hipError_t error, const char* what) {
  if (error == hipSuccess) return kOk;
  std::snprintf(last_message, sizeof last_message, "%s: %s", what, hipGetErrorString(error));
  (void)hipGetLastError();  // a later launch must not report it again
  switch (error) {
    case hipErrorMemoryAllocation:
      return kOutOfMemory;
#if defined(__CUDACC__)
    case cudaErrorIllegalAddress:
    case cudaErrorECCUncorrectable:
    case cudaErrorHardwareStackError:
    case cudaErrorIllegalInstruction:
    case cudaErrorMisalignedAddress:
    case cudaErrorInvalidAddressSpace:
    case cudaErrorInvalidPc:
    case cudaErrorLaunchFailure:
    case cudaErrorDevicesUnavailable:
      return kDeviceLost;
#elif !defined(BH_EMULATED)
    case hipErrorIllegalAddress:
    case hipErrorECCNotCorrectable:
    case hipErrorLaunchFailure:
      return kDeviceLost;
#endif
    default:
      return kDeviceError;
  }
}

const char* message() { return last_message; }

// ---- devices ----

int32_t count(int32_t* devices) {
  int found = 0;
  const hipError_t error = hipGetDeviceCount(&found);
  *devices = found;
#if defined(__CUDACC__)
  if (error == cudaErrorInsufficientDriver) {
    int driver = 0;
    (void)cudaDriverGetVersion(&driver);
    std::snprintf(
        last_message, sizeof last_message,
        driver == 0 ? "no NVIDIA driver" : "the NVIDIA driver is for CUDA %d.%d, CUDA 13 is needed",
        driver / 1000, driver % 1000 / 10);
    return kDeviceError;
  }
#endif
  return report(error, "counting devices");
}

const char* architecture_of(const hipDeviceProp_t& properties, char* name, size_t size) {
#if defined(__CUDACC__)
  std::snprintf(name, size, "sm_%d%d", properties.major, properties.minor);
#else
  std::snprintf(name, size, "%s", properties.gcnArchName);
  if (char* features = std::strchr(name, ':')) *features = '\0';
#endif
  return name;
}

/// Query rows of the device's matrix tiles, as tile.h has them for each architecture.
int columns_of() {
#if defined(__CUDACC__)
  return 8;
#elif defined(BH_EMULATED)
  return emulator::columns();
#else
  return 16;
#endif
}

int32_t describe(int32_t device, DeviceInfo* info) {
  *info = {};
  hipDeviceProp_t properties;
  if (const int32_t status = report(hipGetDeviceProperties(&properties, device), "device")) {
    return status;
  }
  std::snprintf(info->name, sizeof info->name, "%.*s", int{sizeof info->name} - 1, properties.name);
  architecture_of(properties, info->architecture, sizeof info->architecture);
  info->wave = properties.warpSize;
  info->columns = columns_of();
  info->multiprocessors = properties.multiProcessorCount;
  if (const int32_t status = report(hipSetDevice(device), "device")) return status;
  size_t free = 0, total = 0;
  if (const int32_t status = report(hipMemGetInfo(&free, &total), "device memory")) return status;
  info->memory = static_cast<int64_t>(total);
  info->free_memory = static_cast<int64_t>(free);
  hipFuncAttributes attributes;
  const auto* any_kernel = reinterpret_cast<const void*>(plain_kernel({}, BH_FLOAT32, 0).kernel);
  if (hipFuncGetAttributes(&attributes, any_kernel) != hipSuccess) {
    (void)hipGetLastError();
    std::snprintf(info->reason, sizeof info->reason,
                  "%s has no kernels for %s (it has " BH_ARCHITECTURES ")", "this library",
                  info->architecture);
  }
  return kOk;
}

int32_t use(int32_t device) { return report(hipSetDevice(device), "choosing the device"); }

// ---- memory ----

int32_t allocate(int64_t bytes, void** memory) {
  return report(hipMalloc(memory, static_cast<size_t>(bytes)), "allocating device memory");
}
void release(void* memory) { (void)hipFree(memory); }

int32_t allocate_host(int64_t bytes, void** memory) {
  return report(hipHostMalloc(memory, static_cast<size_t>(bytes),
                              hipHostMallocMapped | hipHostMallocPortable),
                "allocating pinned memory");
}
void release_host(void* memory) { (void)hipHostFree(memory); }

int32_t locate(const void* memory, int32_t* kind, void** device_address) {
  hipPointerAttribute_t attributes{};
  *kind = kPageable;
  *device_address = nullptr;
  if (hipPointerGetAttributes(&attributes, memory) != hipSuccess) {
    (void)hipGetLastError();  // HIP says so of memory that it does not know
    return kOk;
  }
  if (attributes.type == hipMemoryTypeDevice) {
    *kind = kOnDevice;
    *device_address = const_cast<void*>(memory);
  } else if (attributes.type == hipMemoryTypeHost && attributes.devicePointer) {
    *kind = kPinned;
    *device_address = attributes.devicePointer;
  }
  return kOk;
}

int32_t copy(Stream stream, void* to, const void* from, int64_t bytes) {
  return report(hipMemcpyAsync(to, from, static_cast<size_t>(bytes), hipMemcpyDefault,
                               static_cast<hipStream_t>(stream)),
                "copying");
}
int32_t clear(Stream stream, void* memory, int64_t bytes) {
  return report(
      hipMemsetAsync(memory, 0, static_cast<size_t>(bytes), static_cast<hipStream_t>(stream)),
      "clearing memory");
}

// ---- streams, events, graphs ----

int32_t create_stream(Stream* stream) {
  hipStream_t created;
  const int32_t status =
      report(hipStreamCreateWithFlags(&created, hipStreamNonBlocking), "creating a stream");
  *stream = status == kOk ? created : nullptr;
  return status;
}
void destroy_stream(Stream stream) { (void)hipStreamDestroy(static_cast<hipStream_t>(stream)); }
int32_t synchronize(Stream stream) {
  return report(hipStreamSynchronize(static_cast<hipStream_t>(stream)), "step");
}

int32_t create_event(Event* event, int32_t sleeps) {
  hipEvent_t created;
  const int32_t status =
      report(hipEventCreateWithFlags(
                 &created, sleeps ? hipEventBlockingSync | hipEventDisableTiming : hipEventDefault),
             "creating an event");
  *event = status == kOk ? created : nullptr;
  return status;
}
void destroy_event(Event event) { (void)hipEventDestroy(static_cast<hipEvent_t>(event)); }
int32_t record(Event event, Stream stream) {
  return report(hipEventRecord(static_cast<hipEvent_t>(event), static_cast<hipStream_t>(stream)),
                "event");
}
int32_t follow_event(Stream stream, Event event) {
  return report(
      hipStreamWaitEvent(static_cast<hipStream_t>(stream), static_cast<hipEvent_t>(event), 0),
      "event");
}
int32_t wait_event(Event event) {
  return report(hipEventSynchronize(static_cast<hipEvent_t>(event)), "step");
}
int32_t elapsed(Event start, Event end, float* milliseconds) {
  return report(hipEventElapsedTime(milliseconds, static_cast<hipEvent_t>(start),
                                    static_cast<hipEvent_t>(end)),
                "event");
}

int32_t begin_graph(Stream stream) {
  return report(
      hipStreamBeginCapture(static_cast<hipStream_t>(stream), hipStreamCaptureModeThreadLocal),
      "recording a graph");
}
int32_t end_graph(Stream stream, Graph* graph) {
  hipGraph_t recorded = nullptr;
  if (const int32_t status = report(
          hipStreamEndCapture(static_cast<hipStream_t>(stream), &recorded), "recording a graph")) {
    return status;
  }
  hipGraphExec_t executable = nullptr;
#if defined(__HIP__)
  const hipError_t error = hipGraphInstantiate(&executable, recorded, nullptr, nullptr, 0);
#else
  const hipError_t error = hipGraphInstantiate(&executable, recorded);
#endif
  (void)hipGraphDestroy(recorded);
  *graph = executable;
  return report(error, "instantiating a graph");
}
int32_t launch_graph(Stream stream, Graph graph) {
  return report(
      hipGraphLaunch(static_cast<hipGraphExec_t>(graph), static_cast<hipStream_t>(stream)),
      "graph");
}
void destroy_graph(Graph graph) { (void)hipGraphExecDestroy(static_cast<hipGraphExec_t>(graph)); }

// ---- launches ----

#if defined(__CUDACC__)
int attribute_of_device(cudaDeviceAttr attribute) {
  int device = 0, value = 0;
  (void)cudaGetDevice(&device);
  (void)cudaDeviceGetAttribute(&value, attribute, device);
  return value;
}
#endif

/// Whether the current device has wgmma: compute capability 9.0.
bool is_hopper() {
#if defined(__CUDACC__)
  return attribute_of_device(cudaDevAttrComputeCapabilityMajor) == 9 &&
         attribute_of_device(cudaDevAttrComputeCapabilityMinor) == 0;
#else
  return false;
#endif
}

KernelLaunch decode_kernel(const LayerArgs& layer, int cache_dtype, int rows) {
  if (!is_fast(layer.dtype, cache_dtype)) return plain_kernel(layer, cache_dtype, rows);
  KernelLaunch launch{};
  switch (layer.head_size) {
#define BH_CASE(head)                                                     \
  case head:                                                              \
    launch = decode_##head(layer.dtype, cache_dtype, rows, columns_of()); \
    break;
    BH_FOR_EACH_HEAD_SIZE(BH_CASE)
#undef BH_CASE
  }
  return launch;
}

KernelLaunch prefill_kernel(const LayerArgs& layer, int cache_dtype) {
  KernelLaunch launch{};
  switch (layer.head_size) {
#define BH_CASE(head)                                               \
  case head:                                                        \
    launch = prefill_##head(layer.dtype, cache_dtype, is_hopper()); \
    break;
    BH_FOR_EACH_HEAD_SIZE(BH_CASE)
#undef BH_CASE
  }
  return launch;
}

int threads_of(const KernelLaunch& launch) {
  return launch.threads > 0 ? launch.threads : kWaves * wave_size();
}

/// More than 48 KiB of shared memory must be asked for.
int32_t allow_shared(const KernelLaunch& launch) {
#if defined(__CUDACC__)
  if (launch.shared_bytes <= 48 * 1024) return kOk;
  return report(cudaFuncSetAttribute(reinterpret_cast<const void*>(launch.kernel),
                                     cudaFuncAttributeMaxDynamicSharedMemorySize,
                                     static_cast<int>(launch.shared_bytes)),
                "shared memory");
#else
  (void)launch;
  return kOk;
#endif
}

int32_t run(const KernelLaunch& launch, Stream stream, dim3 grid, const LayerArgs& layer,
            const StepArgs* step) {
  if (const int32_t status = allow_shared(launch)) return status;
  return report(launch_kernel(launch.kernel, grid, threads_of(launch), launch.shared_bytes,
                              static_cast<hipStream_t>(stream), layer, step),
                "launch");
}

int32_t decode_slots(const LayerArgs* layer, int32_t cache_dtype, int32_t rows, int32_t* slots) {
  const KernelLaunch launch = decode_kernel(*layer, cache_dtype, rows);
  if (const int32_t status = allow_shared(launch)) return status;
  int blocks = 0, device = 0;
  hipDeviceProp_t properties;
  if (const int32_t status = report(hipOccupancyMaxActiveBlocksPerMultiprocessor(
                                        &blocks, reinterpret_cast<const void*>(launch.kernel),
                                        threads_of(launch), launch.shared_bytes),
                                    "occupancy")) {
    return status;
  }
  if (const int32_t status = report(hipGetDevice(&device), "device")) return status;
  if (const int32_t status = report(hipGetDeviceProperties(&properties, device), "device")) {
    return status;
  }
  *slots = blocks * properties.multiProcessorCount;
  return kOk;
}

int32_t prefill_rows_of(const LayerArgs* layer, [[maybe_unused]] int32_t cache_dtype) {
#if defined(__HIP__)
  // The host's pass is compiled for one architecture only.
  return prefill_rows(layer->head_size, wave_size() == 32);
#else
  return prefill_kernel(*layer, cache_dtype).rows;
#endif
}

int32_t update(Stream stream, const LayerArgs* layer, const UpdateArgs* update) {
  return report(launch_update(static_cast<hipStream_t>(stream), *layer, *update), "launch");
}

int32_t decode(Stream stream, const LayerArgs* layer, int32_t cache_dtype, const StepArgs* step,
               int32_t rows, int32_t blocks) {
  return run(decode_kernel(*layer, cache_dtype, rows), stream,
             dim3(static_cast<uint32_t>(blocks), static_cast<uint32_t>(layer->num_groups)), *layer,
             step);
}

int32_t prefill(Stream stream, const LayerArgs* layer, int32_t cache_dtype, const StepArgs* step,
                int32_t items) {
  const KernelLaunch launch = prefill_kernel(*layer, cache_dtype);
  // Items first, so that the large ones of all groups start before small ones.
  int blocks = items * layer->num_groups;
#if defined(__CUDACC__)
  if (launch.stays) {
    blocks = std::min(blocks, attribute_of_device(cudaDevAttrMultiProcessorCount));
  }
#endif
  return run(launch, stream, dim3(static_cast<uint32_t>(blocks)), *layer, step);
}

int32_t merge_results(Stream stream, const MergeArgs* merge) {
  return report(launch_merge_results(static_cast<hipStream_t>(stream), *merge), "launch");
}

int32_t read_block(Stream stream, const CacheView* cache, int64_t block, void* key, void* value) {
  return report(
      launch_move_block(static_cast<hipStream_t>(stream), false, *cache, block, key, value),
      "launch");
}
int32_t write_block(Stream stream, const CacheView* cache, int64_t block, const void* key,
                    const void* value) {
  return report(launch_move_block(static_cast<hipStream_t>(stream), true, *cache, block,
                                  const_cast<void*>(key), const_cast<void*>(value)),
                "launch");
}

int32_t read_blocks(Stream stream, const CacheView* cache, const int32_t* blocks, int64_t count,
                    void* sink) {
  return report(launch_read_blocks(static_cast<hipStream_t>(stream), *cache, blocks, count, sink),
                "launch");
}

}  // namespace

int wave_size() {
#if defined(__HIP__)
  static thread_local int wave = 0;
  if (wave == 0) {
    int device = 0;
    hipDeviceProp_t properties;
    wave = hipGetDevice(&device) == hipSuccess &&
                   hipGetDeviceProperties(&properties, device) == hipSuccess
               ? properties.warpSize
               : 64;
  }
  return wave;
#elif defined(BH_EMULATED)
  return emulator::wave();
#else
  return 32;
#endif
}

}  // namespace broadhead::gpu

extern "C" __attribute__((visibility("default"))) const broadhead::gpu::DeviceApi*
broadhead_device_api() {
  using namespace broadhead::gpu;
  static const DeviceApi kApi = {kDeviceApiVersion,
                                 sizeof(DeviceApi),
                                 message,
                                 count,
                                 describe,
                                 use,
                                 allocate,
                                 release,
                                 allocate_host,
                                 release_host,
                                 locate,
                                 copy,
                                 clear,
                                 create_stream,
                                 destroy_stream,
                                 synchronize,
                                 create_event,
                                 destroy_event,
                                 record,
                                 follow_event,
                                 wait_event,
                                 elapsed,
                                 begin_graph,
                                 end_graph,
                                 launch_graph,
                                 destroy_graph,
                                 decode_slots,
                                 prefill_rows_of,
                                 update,
                                 decode,
                                 prefill,
                                 merge_results,
                                 read_block,
                                 write_block,
                                 read_blocks};
  return &kApi;
}
