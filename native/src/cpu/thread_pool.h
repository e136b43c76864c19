// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <unistd.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>
#include <vector>

namespace broadhead::cpu {

/// The workers of the process, shared by all engines. A run is served by the calling thread and by
/// workers that are free; a caller that finds another run in progress does its work alone, so that
/// several operators never oversubscribe the processor. A run allocates nothing and takes no lock.
/// In a forked child runs of the parent's pool are the caller's alone.
class ThreadPool {
 public:
  using Task = void (*)(void* argument, int64_t task, int thread);

  /// Of one run.
  static constexpr int kMostThreads = 1 << 15;

  /// The pool of the process with at least `threads` - 1 workers; it ends with its last owner.
  static std::shared_ptr<ThreadPool> shared(int threads);

  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  /// Calls task(argument, i, thread) for each i below `count`, on at most `threads` threads, and
  /// returns when all are done; 0 <= thread < threads.
  void run(int threads, int64_t count, Task task, void* argument);

 private:
  ThreadPool() = default;
  void grow(int workers);
  void work();
  void drain(int thread);

  // A run's state word: workers that entered, how many may, and whether it is closed to more.
  static constexpr uint32_t kClosed = 1u << 31;
  static constexpr int kLimitShift = 16;
  static constexpr uint32_t kEnteredMask = (1u << kLimitShift) - 1;
  static_assert((uint32_t{kMostThreads} - 1) << kLimitShift < kClosed);

  const pid_t process_ = getpid();    ///< whose workers these are: fork() copies none
  std::vector<std::thread> workers_;  ///< grows under the mutex of shared()
  std::atomic<bool> busy_{false};
  std::atomic<bool> stopping_{false};
  std::atomic<uint32_t> epoch_{0};
  std::atomic<uint32_t> state_{kClosed};
  std::atomic<uint32_t> left_{0};
  std::atomic<int64_t> next_{0};
  int64_t count_ = 0;
  Task task_ = nullptr;
  void* argument_ = nullptr;
};

}  // namespace broadhead::cpu
