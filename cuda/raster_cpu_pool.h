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

namespace streamsplat {

class ThreadPool {
 public:
  explicit ThreadPool(int threads);  // total, the caller included; std::system_error if they cannot be started
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const { return static_cast<int>(workers_.size()) + 1; }

  // Calls body(task) once for every task in [0, tasks), in any order and on any thread; returns when all are done.
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
  void run(int tasks, Function function, void* context);
  void work(std::uint32_t generation);
  void worker_main();
  void join();

  // Generation in the high half, next task in the low half: a task is claimed by compare-and-swap on both, so a worker
  // that wakes late can never claim a task of another loop.
  std::atomic<std::uint64_t> state_;
  std::atomic<int> tasks_{0};
  std::atomic<int> finished_{0};
  std::atomic<Function> function_{nullptr};
  std::atomic<void*> context_{nullptr};
  std::atomic<bool> stop_{false};
  std::atomic<int> sleepers_{0};
  std::mutex run_mutex_;
  std::mutex sleep_mutex_;
  std::condition_variable wake_;
  std::vector<std::thread> workers_;
};

}  // namespace streamsplat

#endif  // STREAMSPLAT_RASTER_CPU_POOL_H_
