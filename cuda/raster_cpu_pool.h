// Persistent thread pool for short parallel loops (tens of microseconds to milliseconds).
//
// The calling thread always takes part and never waits for a worker that is still asleep, only for tasks that a worker
// has already claimed: on a loaded machine the loop is then as fast as one thread, not as slow as the last wake-up.
#ifndef STREAMSPLAT_RASTER_CPU_POOL_H_
#define STREAMSPLAT_RASTER_CPU_POOL_H_

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <type_traits>
#include <vector>

#include "raster_cpu_placement.h"

namespace streamsplat {

class ThreadPool {
 public:
  explicit ThreadPool(int threads);  // total, the caller included; std::system_error if they cannot be started
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const { return static_cast<int>(workers_.size()) + 1; }

  // Calls body(task) once for every task in [0, tasks), in any order and on any thread; returns when all are done. Each
  // thread begins with a share of consecutive tasks, the same one in loops of the same length, and helps the others
  // afterwards: what a thread wrote in one loop it mostly finds in its own cache in the next.
  // Calls from several threads are served one after the other. `body` must not throw and must not call into the pool.
  template <class Body>
  void parallel_for(int tasks, Body&& body) {
    run(tasks, [](void* context, int task) { (*static_cast<std::remove_reference_t<Body>*>(context))(task); }, &body);
  }

  // The pool of this process with that many threads (0 = all cores it may run on). A forked child gets pools of its
  // own, because the parent's threads do not exist there.
  static ThreadPool& shared(int threads);

 private:
  using Function = void (*)(void*, int);

  // What is left of a thread's share of the tasks. Generation of the loop in the high half of `next`, next task in the
  // low half: a task is claimed by compare-and-swap on both, so a worker that wakes late can never claim a task of
  // another loop.
  struct alignas(64) Share {
    std::atomic<std::uint64_t> next{0};
    std::atomic<std::uint32_t> end{0};
  };

  void run(int tasks, Function function, void* context);
  void work(std::uint32_t generation, int thread);
  bool work_off(std::uint32_t generation, Share* share);
  void worker_main(int thread);
  void join();

  std::vector<Share> shares_;  // one per thread; 0 is the caller's
  std::atomic<std::uint32_t> generation_{0};
  std::atomic<int> finished_{0};
  std::atomic<Function> function_{nullptr};
  std::atomic<void*> context_{nullptr};
  std::atomic<bool> stop_{false};
  std::atomic<int> sleepers_{0};
  std::mutex run_mutex_;
  std::mutex sleep_mutex_;
  std::condition_variable wake_;
  Placement placement_;
  std::vector<std::thread> workers_;
};

}  // namespace streamsplat

#endif  // STREAMSPLAT_RASTER_CPU_POOL_H_
