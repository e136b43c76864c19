// SPDX-License-Identifier: Apache-2.0
#include "cpu/thread_pool.h"

#include <algorithm>
#include <mutex>
#include <utility>

namespace broadhead::cpu {
namespace {

/// Looks at the next run that a worker takes before it sleeps: about 20 microseconds, which spans
/// the gap between the update and the attention of one step.
constexpr int kSpins = 2000;

void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#else
  std::this_thread::yield();
#endif
}

}  // namespace

std::shared_ptr<ThreadPool> ThreadPool::shared(int threads) {
  static std::mutex mutex;
  static std::weak_ptr<ThreadPool> process_pool;
  std::lock_guard<std::mutex> lock(mutex);
  std::shared_ptr<ThreadPool> pool = process_pool.lock();
  if (!pool || pool->process_ != getpid()) {
    process_pool = pool = std::shared_ptr<ThreadPool>(new ThreadPool);
  }
  pool->grow(threads - 1);
  return pool;
}

void ThreadPool::grow(int workers) {
  while (static_cast<int>(workers_.size()) < workers) {
    workers_.emplace_back([this] { work(); });
  }
}

ThreadPool::~ThreadPool() {
  if (process_ != getpid()) {
    new std::vector<std::thread>(std::move(workers_));  // there is nobody to wait for
    return;
  }
  stopping_.store(true);
  epoch_.fetch_add(1);
  epoch_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void ThreadPool::run(int threads, int64_t count, Task task, void* argument) {
  if (threads <= 1 || count <= 1 || busy_.exchange(true, std::memory_order_acquire)) {
    for (int64_t i = 0; i < count; ++i) task(argument, i, 0);
    return;
  }
  task_ = task;
  argument_ = argument;
  count_ = count;
  next_.store(0, std::memory_order_relaxed);
  left_.store(0, std::memory_order_relaxed);
  const auto helpers = static_cast<uint32_t>(std::min<int64_t>(threads - 1, count - 1));
  state_.store(helpers << kLimitShift, std::memory_order_release);
  epoch_.fetch_add(1, std::memory_order_release);
  epoch_.notify_all();
  drain(0);
  // Only workers that came are waited for: one that the system has not scheduled yet is not.
  const uint32_t entered = state_.fetch_or(kClosed) & kEnteredMask;
  while (left_.load(std::memory_order_acquire) != entered) pause();
  busy_.store(false, std::memory_order_release);
}

void ThreadPool::drain(int thread) {
  for (int64_t i; (i = next_.fetch_add(1, std::memory_order_relaxed)) < count_;) {
    task_(argument_, i, thread);
  }
}

void ThreadPool::work() {
  uint32_t seen = 0;
  while (!stopping_.load()) {
    uint32_t state = state_.load(std::memory_order_acquire);
    while (!(state & kClosed) && (state & kEnteredMask) < (state >> kLimitShift)) {
      if (!state_.compare_exchange_weak(state, state + 1, std::memory_order_acq_rel)) continue;
      drain(static_cast<int>(state & kEnteredMask) + 1);
      left_.fetch_add(1, std::memory_order_release);
      break;
    }
    for (int spin = 0; spin < kSpins && epoch_.load(std::memory_order_acquire) == seen; ++spin) {
      pause();
    }
    epoch_.wait(seen, std::memory_order_acquire);
    seen = epoch_.load(std::memory_order_acquire);
  }
}

}  // namespace broadhead::cpu
