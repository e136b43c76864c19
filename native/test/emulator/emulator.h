// SPDX-License-Identifier: Apache-2.0
// A GPU for tests: compiles the kernels as C++ and runs the threads of a block in turns, so that
// conformance, sanitizers and the register layouts of machines that nobody has here can be tested
// on any processor. BH_EMULATED says whose matrix tiles; see hip/tile.h.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  dim3() = default;
  explicit dim3(unsigned a, unsigned b = 1, unsigned c = 1) : x(a), y(b), z(c) {}
};

namespace emulator {

constexpr int wave() { return BH_EMULATED == 2 ? 64 : 32; }
constexpr int columns() { return BH_EMULATED == 1 ? 8 : 16; }
constexpr const char* architecture() {
  constexpr const char* kNames[] = {"", "mma", "mfma", "wmma11", "wmma12"};
  return kNames[BH_EMULATED];
}

struct Position {
  dim3 thread, block, threads, blocks;
};
const Position& position();
char* shared_memory();
void synchronize_block();

/// What every lane of the wave gives, in the order of lanes; valid until the wave's next but one.
const void* gather_bytes(const void* bytes, size_t size);

template <class V>
const V* gather(const V& value) {
  return static_cast<const V*>(gather_bytes(&value, sizeof value));
}
template <class V>
V shuffle(V value, int lane) {
  return gather(value)[lane % wave()];
}
inline bool any(bool predicate) {
  const bool* all = gather(predicate);
  bool result = false;
  for (int i = 0; i < wave(); ++i) result |= all[i];
  return result;
}

/// Puts `work` on a stream or, while a graph is recorded, into the graph. It runs when somebody
/// waits for it and no sooner, so that what nobody waited for is seen not to be there.
void submit(void* stream, std::function<void()> work);
void run(dim3 grid, int threads, size_t shared_bytes, const std::function<void()>& kernel);

}  // namespace emulator

#define threadIdx (::emulator::position().thread)
#define blockIdx (::emulator::position().block)
#define blockDim (::emulator::position().threads)
#define gridDim (::emulator::position().blocks)

inline void __syncthreads() { emulator::synchronize_block(); }
inline void __syncwarp() { emulator::gather(0); }
inline void __threadfence() {}
inline int atomicAdd(int* at, int value) { return __atomic_fetch_add(at, value, __ATOMIC_SEQ_CST); }

// ---- the runtime's functions that device.hip calls ----

enum hipError_t {
  hipSuccess,
  hipErrorMemoryAllocation,
  hipErrorInvalidValue,
  hipErrorLaunchFailure
};
enum { hipHostMallocMapped = 1, hipHostMallocPortable = 2 };
enum { hipMemcpyDefault, hipStreamNonBlocking, hipStreamCaptureModeThreadLocal };
constexpr unsigned hipEventDefault = 0;
constexpr unsigned hipEventBlockingSync = 1;
constexpr unsigned hipEventDisableTiming = 2;
enum hipMemoryType { hipMemoryTypeHost, hipMemoryTypeDevice };
using hipStream_t = void*;
using hipEvent_t = void*;
using hipGraph_t = void*;
using hipGraphExec_t = void*;

struct hipDeviceProp_t {
  char name[64];
  char gcnArchName[32];
  int warpSize, multiProcessorCount;
};
struct hipPointerAttribute_t {
  hipMemoryType type;
  void* devicePointer;
};
struct hipFuncAttributes {};

const char* hipGetErrorString(hipError_t error);
inline hipError_t hipGetLastError() { return hipSuccess; }
hipError_t hipGetDeviceCount(int* count);
hipError_t hipGetDevice(int* device);
hipError_t hipSetDevice(int device);
hipError_t hipGetDeviceProperties(hipDeviceProp_t* properties, int device);
hipError_t hipMemGetInfo(size_t* free, size_t* total);
inline hipError_t hipFuncGetAttributes(hipFuncAttributes*, const void*) { return hipSuccess; }
hipError_t hipMalloc(void** memory, size_t bytes);
hipError_t hipFree(void* memory);
hipError_t hipHostMalloc(void** memory, size_t bytes, unsigned flags);
hipError_t hipHostFree(void* memory);
hipError_t hipPointerGetAttributes(hipPointerAttribute_t* attributes, const void* memory);
hipError_t hipMemcpyAsync(void* to, const void* from, size_t bytes, int kind, hipStream_t stream);
hipError_t hipMemsetAsync(void* memory, int value, size_t bytes, hipStream_t stream);
hipError_t hipStreamCreateWithFlags(hipStream_t* stream, unsigned flags);
hipError_t hipStreamDestroy(hipStream_t stream);
hipError_t hipStreamSynchronize(hipStream_t stream);
hipError_t hipStreamWaitEvent(hipStream_t stream, hipEvent_t event, unsigned flags);
hipError_t hipEventCreateWithFlags(hipEvent_t* event, unsigned flags);
hipError_t hipEventDestroy(hipEvent_t event);
hipError_t hipEventRecord(hipEvent_t event, hipStream_t stream);
hipError_t hipEventSynchronize(hipEvent_t event);
hipError_t hipEventElapsedTime(float* milliseconds, hipEvent_t start, hipEvent_t end);
hipError_t hipStreamBeginCapture(hipStream_t, int mode);
hipError_t hipStreamEndCapture(hipStream_t, hipGraph_t* graph);
hipError_t hipGraphInstantiate(hipGraphExec_t* executable, hipGraph_t graph);
inline hipError_t hipGraphDestroy(hipGraph_t) { return hipSuccess; }
hipError_t hipGraphExecDestroy(hipGraphExec_t executable);
hipError_t hipGraphLaunch(hipGraphExec_t executable, hipStream_t stream);
inline hipError_t hipOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void*, int,
                                                               size_t) {
  return *blocks = 2, hipSuccess;
}

template <class... Parameters>
hipError_t launch_kernel(void (*kernel)(Parameters...), dim3 grid, int threads, size_t shared_bytes,
                         hipStream_t stream, Parameters... parameters) {
  emulator::submit(
      stream, [=] { emulator::run(grid, threads, shared_bytes, [=] { kernel(parameters...); }); });
  return hipSuccess;
}
