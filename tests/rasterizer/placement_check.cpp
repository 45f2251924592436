// Which cores the pool leaves to a worker that it wakes. Exit codes: 0 as it should be, 77 there is one core only or
// affinity is forbidden, else the number of the step that failed.
#include <pthread.h>
#include <sched.h>

#include <atomic>
#include <chrono>
#include <thread>

#include "raster_cpu_pool.h"

namespace {

cpu_set_t cores_of_this_thread() {
  cpu_set_t cores;
  sched_getaffinity(0, sizeof cores, &cores);
  return cores;
}

cpu_set_t only(std::size_t core) {
  cpu_set_t cores;
  CPU_ZERO(&cores);
  CPU_SET(core, &cores);
  return cores;
}

// Runs `body` on the pool's one worker, while the caller is busy with the other task.
template <class Body>
void on_worker(streamsplat::ThreadPool* pool, Body&& body) {
  const std::thread::id caller = std::this_thread::get_id();
  std::atomic<int> begun{0};
  pool->parallel_for(2, [&](int) {
    ++begun;
    while (begun < 2) std::this_thread::yield();
    if (std::this_thread::get_id() != caller) body();
  });
}

// Whether a worker that has fallen asleep is woken with these cores; it may take a while to fall asleep.
bool woken_with(streamsplat::ThreadPool* pool, const cpu_set_t& wanted) {
  cpu_set_t found = {};
  for (int i = 0; i < 500; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    on_worker(pool, [&] { found = cores_of_this_thread(); });
    if (CPU_EQUAL(&found, &wanted)) return true;
  }
  return false;
}

}  // namespace

int main() {
  const cpu_set_t all = cores_of_this_thread();
  if (CPU_COUNT(&all) < 2) return 77;
  std::size_t first = 0, second;
  while (!CPU_ISSET(first, &all)) ++first;
  for (second = first + 1; !CPU_ISSET(second, &all);) ++second;
  streamsplat::ThreadPool pool(2);

  int step = 0;
  for (const std::size_t core : {first, second}) {  // it follows a caller that moves
    ++step;
    const cpu_set_t here = only(core);
    if (sched_setaffinity(0, sizeof here, &here) != 0) return 77;
    cpu_set_t others = all;
    CPU_CLR(core, &others);
    if (!woken_with(&pool, others)) return step;
  }
  // What somebody else has given the worker stays, wherever the caller goes.
  const cpu_set_t chosen = only(second);
  on_worker(&pool, [&] { sched_setaffinity(0, sizeof chosen, &chosen); });
  for (const std::size_t core : {first, second}) {
    ++step;
    const cpu_set_t here = only(core);
    sched_setaffinity(0, sizeof here, &here);
    if (!woken_with(&pool, chosen)) return step;
  }
  return 0;
}
