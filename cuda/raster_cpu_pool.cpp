#include "raster_cpu_pool.h"

#if defined(__linux__)
#include <sched.h>
#endif
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <map>
#include <utility>

namespace streamsplat {
namespace {

constexpr std::uint64_t kClosed = 0xFFFFFFFFu;         // "no task left" in the low half of `next`
constexpr auto kSpin = std::chrono::microseconds(60);  // longer than the serial parts between two loops
constexpr int kMaxThreads = 256;

std::uint64_t pack(std::uint32_t generation, std::uint64_t task) { return (std::uint64_t{generation} << 32) | task; }
std::uint32_t generation_of(std::uint64_t state) { return static_cast<std::uint32_t>(state >> 32); }

inline void relax() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Cores this process may run on: of 64 cores, a container or `taskset` may leave it two.
int usable_cores() {
#if defined(__linux__)
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) return CPU_COUNT(&set);
#endif  // more than 1024 cores do not fit cpu_set_t
  return static_cast<int>(std::thread::hardware_concurrency());
}

// Spins for at most kSpin; true as soon as `ready()` holds.
template <class Ready>
bool spin_until(Ready&& ready) {
  const auto deadline = std::chrono::steady_clock::now() + kSpin;
  do {
    for (int i = 0; i < 32; ++i) {
      if (ready()) return true;
      relax();
    }
  } while (std::chrono::steady_clock::now() < deadline);
  return ready();
}

}  // namespace

ThreadPool::ThreadPool(int threads)
    : shares_(static_cast<std::size_t>(std::max(threads, 1))), placement_(shares_.size()) {
  for (Share& share : shares_) share.next.store(pack(0, kClosed));
  try {
    for (int i = 1; i < threads; ++i) workers_.emplace_back([this, i] { worker_main(i); });
  } catch (...) {  // std::system_error: a limit on threads or memory; a thread left running would end the process
    join();
    throw;
  }
}

ThreadPool::~ThreadPool() { join(); }

void ThreadPool::join() {
  {
    std::lock_guard<std::mutex> lock(sleep_mutex_);
    stop_.store(true);
  }
  wake_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void ThreadPool::run(int tasks, Function function, void* context) {
  if (tasks <= 0) return;
  if (workers_.empty() || tasks == 1) {
    for (int task = 0; task < tasks; ++task) function(context, task);
    return;
  }
  std::lock_guard<std::mutex> run_lock(run_mutex_);
  // All shares are closed here, so a late worker of the previous loop cannot act on the fields being rewritten.
  const std::uint32_t generation = generation_.load() + 1;
  finished_.store(0, std::memory_order_relaxed);
  function_.store(function, std::memory_order_relaxed);
  context_.store(context, std::memory_order_relaxed);
  const std::uint64_t threads = shares_.size();
  for (std::uint64_t i = 0; i < threads; ++i) {
    const std::uint64_t begin = static_cast<std::uint64_t>(tasks) * i / threads;
    const std::uint64_t end = static_cast<std::uint64_t>(tasks) * (i + 1) / threads;
    shares_[i].end.store(static_cast<std::uint32_t>(end), std::memory_order_relaxed);
    shares_[i].next.store(pack(generation, begin), std::memory_order_release);
  }
  {
    std::lock_guard<std::mutex> lock(sleep_mutex_);
    generation_.store(generation);
  }
  if (sleepers_.load() > 0) {
    placement_.keep_off_this_core(workers_);
    wake_.notify_all();
  }
  work(generation, 0);
  const auto done = [&] { return finished_.load(std::memory_order_acquire) == tasks; };
  while (!spin_until(done)) std::this_thread::yield();
  for (Share& share : shares_) share.next.store(pack(generation, kClosed));
}

// Runs what is left of a share; false if the loop is over.
bool ThreadPool::work_off(std::uint32_t generation, Share* share) {
  std::uint64_t next = share->next.load(std::memory_order_acquire);
  while (generation_of(next) == generation) {
    const std::uint32_t task = static_cast<std::uint32_t>(next & kClosed);
    const Function function = function_.load(std::memory_order_relaxed);
    void* const context = context_.load(std::memory_order_relaxed);
    if (task >= share->end.load(std::memory_order_relaxed)) return task != kClosed;
    if (!share->next.compare_exchange_weak(next, next + 1, std::memory_order_acq_rel, std::memory_order_acquire))
      continue;
    function(context, static_cast<int>(task));
    finished_.fetch_add(1, std::memory_order_release);
    next = share->next.load(std::memory_order_acquire);
  }
  return false;
}

void ThreadPool::work(std::uint32_t generation, int thread) {
  const std::size_t threads = shares_.size();
  for (std::size_t i = 0; i < threads; ++i)
    if (!work_off(generation, &shares_[(static_cast<std::size_t>(thread) + i) % threads])) return;
}

void ThreadPool::worker_main(int thread) {
  std::uint32_t seen = 0;
  const auto changed = [&] { return stop_.load() || generation_.load(std::memory_order_acquire) != seen; };
  for (;;) {
    if (!spin_until(changed)) {
      std::unique_lock<std::mutex> lock(sleep_mutex_);
      sleepers_.fetch_add(1);
      wake_.wait(lock, changed);
      sleepers_.fetch_sub(1);
    }
    if (stop_.load()) return;
    seen = generation_.load(std::memory_order_acquire);
    work(seen, thread);
  }
}

ThreadPool& ThreadPool::shared(int threads) {
  if (threads <= 0) threads = usable_cores();
  threads = std::clamp(threads, 1, kMaxThreads);
  // Never destroyed: joining threads from static destructors deadlocks when a library is unloaded at exit, and in a
  // forked child there is nothing to join.
  static std::mutex* mutex = new std::mutex;
  static auto* pools = new std::map<std::pair<pid_t, int>, ThreadPool*>;
  std::lock_guard<std::mutex> lock(*mutex);
  ThreadPool*& pool = (*pools)[{getpid(), threads}];
  if (pool == nullptr) pool = new ThreadPool(threads);
  return *pool;
}

}  // namespace streamsplat
