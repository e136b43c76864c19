// SPDX-License-Identifier: Apache-2.0
#include "emulator.h"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <vector>

// ---- fibers: a thread of a block each, switched by hand ----

// Saves what a call must keep, stores the stack's place in *from and goes on where `to` was.
extern "C" void emulator_switch(void** from, void* to);
asm(R"(
.text
.globl emulator_switch
.hidden emulator_switch
.type emulator_switch, @function
emulator_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size emulator_switch, .-emulator_switch
)");

namespace emulator {
namespace {

constexpr size_t kStack = 256 * 1024;
constexpr size_t kMostLanes = 64;
constexpr size_t kMostBytes = 128;

struct Fiber {
  std::unique_ptr<char[]> stack{new char[kStack]};
  void* at = nullptr;
  Position position;
  bool done = false;
};

struct Wave {
  int arrived = 0;
  int64_t generation = 0;
  alignas(16) char bytes[2][kMostLanes * kMostBytes];
};

/// What one system thread runs: a block at a time.
struct Machine {
  std::vector<Fiber> fibers;
  std::vector<Wave> waves;
  std::vector<char> shared;
  int count = 0;
  int current = 0;
  int waiting = 0;
  int64_t generation = 0;
  void* scheduler = nullptr;
  const std::function<void()>* kernel = nullptr;
};

Machine& machine() {
  static thread_local Machine machine;
  return machine;
}

void yield(Machine& m) {
  emulator_switch(&m.fibers[static_cast<size_t>(m.current)].at, m.scheduler);
}

void enter() {
  Machine& m = machine();
  (*m.kernel)();
  m.fibers[static_cast<size_t>(m.current)].done = true;
  yield(m);
  std::abort();
}

void prepare(Fiber& fiber) {
  auto top = reinterpret_cast<uintptr_t>(fiber.stack.get() + kStack) & ~uintptr_t{63};
  auto* stack = reinterpret_cast<void**>(top);
  *--stack = nullptr;  // where enter would return to
  *--stack = reinterpret_cast<void*>(&enter);
  for (int i = 0; i < 6; ++i) *--stack = nullptr;
  fiber.at = stack;
  fiber.done = false;
}

void run_block(Machine& m) {
  for (int i = 0; i < m.count; ++i) prepare(m.fibers[static_cast<size_t>(i)]);
  for (Wave& wave : m.waves) wave.arrived = 0;
  m.waiting = 0;
  std::fill(m.shared.begin(), m.shared.end(), static_cast<char>(0xff));
  for (int left = m.count; left > 0;) {
    left = 0;
    for (m.current = 0; m.current < m.count; ++m.current) {
      Fiber& fiber = m.fibers[static_cast<size_t>(m.current)];
      if (fiber.done) continue;
      emulator_switch(&m.scheduler, fiber.at);
      left += !fiber.done;
    }
  }
}

// ---- memory ----

constexpr int kDevices = 2;
thread_local int current_device = 0;

constexpr int kHost = -1;
struct Allocation {
  size_t bytes;
  hipMemoryType type;
  int device;
};
std::mutex allocations_mutex;
std::map<const char*, Allocation>& allocations() {
  static std::map<const char*, Allocation> all;
  return all;
}

hipError_t allocate(void** memory, size_t bytes, hipMemoryType type) {
  if (bytes > size_t{1} << 32) return hipErrorMemoryAllocation;
  *memory = std::aligned_alloc(256, (bytes + 255) / 256 * 256 + 256);
  if (!*memory) return hipErrorMemoryAllocation;
  std::memset(*memory, 0xff, bytes);  // NaN of every type
  const std::lock_guard lock(allocations_mutex);
  allocations()[static_cast<const char*>(*memory)] = {
      bytes, type, type == hipMemoryTypeDevice ? current_device : kHost};
  return hipSuccess;
}

// ---- streams ----

using Time = std::chrono::steady_clock::time_point;

struct Stream {
  std::deque<std::function<void()>> waiting;
  int64_t submitted = 0;
  int64_t done = 0;
};

/// The place in a stream where it was recorded last.
struct Event {
  std::shared_ptr<Stream> stream;
  int64_t place = 0;
  Time time;
};

/// One thread at a time submits and runs; work that waits for another stream runs that one's.
std::recursive_mutex streams_mutex;
std::set<std::shared_ptr<Stream>>& streams() {
  static std::set<std::shared_ptr<Stream>> all;
  return all;
}

std::shared_ptr<Stream>& stream_of(hipStream_t handle) {
  return *static_cast<std::shared_ptr<Stream>*>(handle);
}

std::shared_ptr<Event>& event_of(hipEvent_t handle) {
  return *static_cast<std::shared_ptr<Event>*>(handle);
}

void run_until(Stream& stream, int64_t place) {
  const std::lock_guard lock(streams_mutex);
  while (stream.done < place) {
    const std::function<void()> work = std::move(stream.waiting.front());
    stream.waiting.pop_front();
    work();
    ++stream.done;
  }
}

/// What freeing memory does on a GPU: nothing may be using it.
void run_all() {
  const std::lock_guard lock(streams_mutex);
  for (const auto& stream : streams()) run_until(*stream, stream->submitted);
}

hipError_t release(void* memory) {
  if (!memory) return hipSuccess;
  run_all();
  const std::lock_guard lock(allocations_mutex);
  if (allocations().erase(static_cast<const char*>(memory)) == 0) return hipErrorInvalidValue;
  std::free(memory);
  return hipSuccess;
}

/// What becomes of work that somebody waited for: removes a file `fails` from the folder of the
/// library, and fails if there was one.
hipError_t outcome() {
  const char* folder = std::getenv("BROADHEAD_LIBRARY_PATH");
  const bool fails = folder && unlink((std::string(folder) + "/fails").c_str()) == 0;
  return fails ? hipErrorLaunchFailure : hipSuccess;
}

using Graph = std::vector<std::function<void()>>;
thread_local std::unique_ptr<Graph> recording;

}  // namespace

const Position& position() {
  Machine& m = machine();
  return m.fibers[static_cast<size_t>(m.current)].position;
}

char* shared_memory() { return machine().shared.data(); }

void synchronize_block() {
  Machine& m = machine();
  const int64_t generation = m.generation;
  if (++m.waiting == m.count) {
    m.waiting = 0;
    ++m.generation;
  }
  while (m.generation == generation) yield(m);
}

const void* gather_bytes(const void* bytes, size_t size) {
  Machine& m = machine();
  const int thread = m.current;
  Wave& w = m.waves[static_cast<size_t>(thread / wave())];
  const int64_t generation = w.generation;
  char* buffer = w.bytes[generation % 2];
  if (size > kMostBytes) std::abort();
  std::memcpy(buffer + static_cast<size_t>(thread % wave()) * size, bytes, size);
  if (++w.arrived == wave()) {
    w.arrived = 0;
    ++w.generation;
  }
  while (w.generation == generation) yield(m);
  return buffer;
}

void submit(void* handle, std::function<void()> work) {
  if (recording) {
    recording->push_back(std::move(work));
    return;
  }
  const std::lock_guard lock(streams_mutex);
  Stream& stream = *stream_of(handle);
  stream.waiting.push_back(std::move(work));
  ++stream.submitted;
}

void run(dim3 grid, int threads, size_t shared_bytes, const std::function<void()>& kernel) {
  Machine& m = machine();
  m.count = threads;
  m.kernel = &kernel;
  if (m.fibers.size() < static_cast<size_t>(threads)) m.fibers.resize(static_cast<size_t>(threads));
  m.waves.resize(static_cast<size_t>((threads + wave() - 1) / wave()));
  m.shared.resize(shared_bytes + 128);
  for (int t = 0; t < threads; ++t) {
    Position& p = m.fibers[static_cast<size_t>(t)].position;
    p.thread = dim3(static_cast<unsigned>(t), 0, 0);
    p.threads = dim3(static_cast<unsigned>(threads));
    p.blocks = grid;
  }
  for (unsigned y = 0; y < grid.y; ++y) {
    for (unsigned x = 0; x < grid.x; ++x) {
      for (int t = 0; t < threads; ++t)
        m.fibers[static_cast<size_t>(t)].position.block = dim3(x, y, 0);
      run_block(m);
    }
  }
}

}  // namespace emulator

using namespace emulator;

const char* hipGetErrorString(hipError_t error) {
  if (error == hipErrorLaunchFailure) return "launch failure";
  return error == hipErrorMemoryAllocation ? "out of memory" : "invalid value";
}
hipError_t hipGetDeviceCount(int* count) { return *count = kDevices, hipSuccess; }
hipError_t hipGetDevice(int* device) { return *device = current_device, hipSuccess; }
hipError_t hipSetDevice(int device) { return current_device = device, hipSuccess; }
hipError_t hipGetDeviceProperties(hipDeviceProp_t* properties, int) {
  std::snprintf(properties->name, sizeof properties->name, "emulated %s", architecture());
  std::snprintf(properties->gcnArchName, sizeof properties->gcnArchName, "%s", architecture());
  properties->warpSize = wave();
  properties->multiProcessorCount = 3;
  return hipSuccess;
}
hipError_t hipMemGetInfo(size_t* free, size_t* total) {
  *free = *total = size_t{4} << 30;
  const std::lock_guard lock(allocations_mutex);
  for (const auto& [memory, allocation] : allocations()) {
    if (allocation.device == current_device) *free -= std::min(*free, allocation.bytes);
  }
  return hipSuccess;
}
hipError_t hipMalloc(void** memory, size_t bytes) {
  return allocate(memory, bytes, hipMemoryTypeDevice);
}
hipError_t hipFree(void* memory) { return release(memory); }
hipError_t hipHostMalloc(void** memory, size_t bytes, unsigned) {
  return allocate(memory, bytes, hipMemoryTypeHost);
}
hipError_t hipHostFree(void* memory) { return release(memory); }
hipError_t hipPointerGetAttributes(hipPointerAttribute_t* attributes, const void* memory) {
  const auto* at = static_cast<const char*>(memory);
  const std::lock_guard lock(allocations_mutex);
  auto next = allocations().upper_bound(at);
  if (next == allocations().begin()) return hipErrorInvalidValue;
  --next;
  if (at >= next->first + next->second.bytes) return hipErrorInvalidValue;
  *attributes = {next->second.type, const_cast<char*>(at)};
  return hipSuccess;
}
hipError_t hipMemcpyAsync(void* to, const void* from, size_t bytes, int, hipStream_t stream) {
  submit(stream, [=] { std::memcpy(to, from, bytes); });
  return hipSuccess;
}
hipError_t hipMemsetAsync(void* memory, int value, size_t bytes, hipStream_t stream) {
  submit(stream, [=] { std::memset(memory, value, bytes); });
  return hipSuccess;
}
hipError_t hipStreamCreateWithFlags(hipStream_t* stream, unsigned) {
  const std::lock_guard lock(streams_mutex);
  *stream = new std::shared_ptr<Stream>(*streams().insert(std::make_shared<Stream>()).first);
  return hipSuccess;
}
hipError_t hipStreamDestroy(hipStream_t stream) {
  hipStreamSynchronize(stream);
  const std::lock_guard lock(streams_mutex);
  streams().erase(stream_of(stream));
  delete &stream_of(stream);
  return hipSuccess;
}
hipError_t hipStreamSynchronize(hipStream_t stream) {
  const std::lock_guard lock(streams_mutex);
  run_until(*stream_of(stream), stream_of(stream)->submitted);
  return outcome();
}
hipError_t hipStreamWaitEvent(hipStream_t stream, hipEvent_t event, unsigned) {
  const std::lock_guard lock(streams_mutex);
  const Event recorded = *event_of(event);
  if (!recorded.stream) return hipSuccess;
  submit(stream, [recorded] { run_until(*recorded.stream, recorded.place); });
  return hipSuccess;
}

hipError_t hipEventCreateWithFlags(hipEvent_t* event, unsigned) {
  *event = new std::shared_ptr<Event>(std::make_shared<Event>());
  return hipSuccess;
}
hipError_t hipEventDestroy(hipEvent_t event) {
  delete static_cast<std::shared_ptr<Event>*>(event);
  return hipSuccess;
}
hipError_t hipEventRecord(hipEvent_t event, hipStream_t stream) {
  const std::lock_guard lock(streams_mutex);
  const std::shared_ptr<Event> recorded = event_of(event);
  submit(stream, [recorded] { recorded->time = std::chrono::steady_clock::now(); });
  recorded->stream = stream_of(stream);
  recorded->place = recorded->stream->submitted;
  return hipSuccess;
}
hipError_t hipEventSynchronize(hipEvent_t event) {
  const std::lock_guard lock(streams_mutex);
  const std::shared_ptr<Event> recorded = event_of(event);
  if (recorded->stream) run_until(*recorded->stream, recorded->place);
  return hipSuccess;
}
hipError_t hipEventElapsedTime(float* milliseconds, hipEvent_t start, hipEvent_t end) {
  const std::chrono::duration<float, std::milli> passed =
      event_of(end)->time - event_of(start)->time;
  *milliseconds = passed.count();
  return hipSuccess;
}

hipError_t hipStreamBeginCapture(hipStream_t, int) {
  recording = std::make_unique<Graph>();
  return hipSuccess;
}
hipError_t hipStreamEndCapture(hipStream_t, hipGraph_t* graph) {
  *graph = recording.release();
  return hipSuccess;
}
hipError_t hipGraphInstantiate(hipGraphExec_t* executable, hipGraph_t graph) {
  *executable = graph;
  return hipSuccess;
}
hipError_t hipGraphExecDestroy(hipGraphExec_t executable) {
  delete static_cast<Graph*>(executable);
  return hipSuccess;
}
hipError_t hipGraphLaunch(hipGraphExec_t executable, hipStream_t stream) {
  submit(stream, [executable] {
    for (const auto& work : *static_cast<Graph*>(executable)) work();
  });
  return hipSuccess;
}
