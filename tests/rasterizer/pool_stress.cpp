// Two threads give the pool short loops of many lengths, with pauses in which its workers fall asleep. Every task must
// run exactly once. Exits with the number of tasks for which that does not hold. Hangs where a thread that is stuck in
// a task is not relieved of its share by the other one.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <thread>
#include <vector>

#include "raster_cpu_pool.h"

namespace {

constexpr int kLoops = 2000, kTasksMax = 700;

int count_wrong(streamsplat::ThreadPool* pool, int seed) {
  std::vector<int> runs(kTasksMax);
  int wrong = 0;
  for (int loop = 0; loop < kLoops; ++loop) {
    const int tasks = (loop * 7919 + seed) % kTasksMax;
    pool->parallel_for(tasks, [&](int task) { ++runs[static_cast<std::size_t>(task)]; });
    for (int task = 0; task < kTasksMax; ++task) wrong += runs[static_cast<std::size_t>(task)] != (task < tasks);
    std::fill(runs.begin(), runs.end(), 0);
    if (loop % 200 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return wrong;
}

// The thread that begins `stuck` waits there for all other tasks.
void relieve(streamsplat::ThreadPool* pool, int stuck) {
  constexpr int kTasks = 40;
  std::atomic<int> others{0};
  pool->parallel_for(kTasks, [&](int task) {
    if (task != stuck) ++others;
    while (task == stuck && others < kTasks - 1) std::this_thread::yield();
  });
}

}  // namespace

int main() {
  streamsplat::ThreadPool pair(2);
  for (int loop = 0; loop < 400; ++loop) relieve(&pair, loop % 2 * 20);  // the first task of either share
  streamsplat::ThreadPool pool(4);
  int wrong[2] = {};
  std::thread other([&] { wrong[1] = count_wrong(&pool, 351); });
  wrong[0] = count_wrong(&pool, 0);
  other.join();
  return std::min(wrong[0] + wrong[1], 50);
}
