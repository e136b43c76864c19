// SPDX-License-Identifier: Apache-2.0
#include "cpu/thread_pool.h"

#include <gtest/gtest.h>

#include <atomic>
#include <thread>
#include <vector>

namespace broadhead::cpu {
namespace {

/// What threads of a run saw.
struct Seen {
  Seen(int threads, int tasks)
      : done(static_cast<size_t>(tasks)), busy(static_cast<size_t>(threads)) {}

  void task(int64_t i, int thread) {
    if (thread < 0 || thread >= std::ssize(busy)) {
      ++strangers;
      return;
    }
    std::atomic<bool>& mine = busy[static_cast<size_t>(thread)];
    doubles += mine.exchange(true);
    ++done[static_cast<size_t>(i)];
    std::this_thread::yield();
    mine = false;
  }

  std::vector<std::atomic<int>> done;
  std::vector<std::atomic<bool>> busy;  ///< threads of the run, by number
  std::atomic<int> strangers{0};        ///< numbers beyond the run's
  std::atomic<int> doubles{0};          ///< numbers that two threads had at once
};

void run(ThreadPool& pool, int threads, int tasks) {
  Seen seen(threads, tasks);
  pool.run(
      threads, tasks,
      [](void* self, int64_t i, int thread) { static_cast<Seen*>(self)->task(i, thread); }, &seen);
  for (const std::atomic<int>& times : seen.done) ASSERT_EQ(times, 1);
  ASSERT_EQ(seen.strangers, 0) << threads << " threads";
  ASSERT_EQ(seen.doubles, 0) << threads << " threads";
}

/// Scratch memory is found by a thread's number.
TEST(ThreadPool, GivesEachTaskOnceToAThreadOfTheRun) {
  const auto pool = ThreadPool::shared(8);  // more than most of the runs may have
  for (const int threads : {1, 2, 3, 8}) {
    for (const int tasks : {0, 1, 2, 100}) {
      for (int again = 0; again < 10; ++again) run(*pool, threads, tasks);
    }
  }
}

TEST(ThreadPool, ServesSeveralCallersAtOnce) {
  const auto pool = ThreadPool::shared(4);
  std::vector<std::thread> callers;
  for (int caller = 0; caller < 3; ++caller) {
    callers.emplace_back([&pool] {
      for (int again = 0; again < 30; ++again) run(*pool, 4, 50);
    });
  }
  for (std::thread& caller : callers) caller.join();
}

}  // namespace
}  // namespace broadhead::cpu
