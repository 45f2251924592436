// Placement on machines that this one is not: the calls that it makes go to the machine below. Exit codes: 0 as it
// should be, else the number of the step that failed.
#include <pthread.h>
#include <sched.h>

#include <cerrno>
#include <initializer_list>
#include <thread>
#include <vector>

#include "raster_cpu_placement.h"

namespace {

struct Machine {
  cpu_set_t caller, worker, allowed;  // allowed: by the kernel, as in a cgroup
  int core = 0;                       // where the caller runs
  bool answers = true;                // no: it has more cores than cpu_set_t can name
  int changes = 0;
} machine;

cpu_set_t cores(std::initializer_list<std::size_t> numbers) {
  cpu_set_t set;
  CPU_ZERO(&set);
  for (const std::size_t core : numbers) CPU_SET(core, &set);
  return set;
}

// The worker's cores after the caller was about to wake it from `core`.
bool leaves(streamsplat::Placement* placement, int core, std::initializer_list<std::size_t> wanted) {
  std::vector<std::thread> workers(1);  // not started: its handle is only passed on
  machine.core = core;
  placement->keep_off_this_core(workers);
  const cpu_set_t set = cores(wanted);
  return CPU_EQUAL(&machine.worker, &set);
}

void start(std::initializer_list<std::size_t> numbers) {
  machine = {};
  machine.caller = machine.worker = machine.allowed = cores(numbers);
}

}  // namespace

extern "C" {
int sched_getcpu() noexcept { return machine.core; }
int sched_getaffinity(pid_t, std::size_t, cpu_set_t* set) noexcept {
  *set = machine.caller;
  return machine.answers ? 0 : -1;
}
int pthread_getaffinity_np(pthread_t, std::size_t, cpu_set_t* set) noexcept {
  *set = machine.worker;
  return machine.answers ? 0 : EINVAL;
}
int pthread_setaffinity_np(pthread_t, std::size_t, const cpu_set_t* set) noexcept {
  cpu_set_t left;
  CPU_AND(&left, set, &machine.allowed);
  if (!machine.answers || CPU_COUNT(&left) == 0) return EINVAL;
  machine.worker = left;
  ++machine.changes;
  return 0;
}
}

int main() {
  int step = 0;
  {
    start({0, 1, 2, 3});
    streamsplat::Placement placement(1);
    if (++step; !leaves(&placement, 0, {1, 2, 3})) return step;
    if (++step; !leaves(&placement, 2, {0, 1, 3})) return step;
    if (++step; !leaves(&placement, 2, {0, 1, 3}) || machine.changes != 2) return step;
    // The caller binds itself to a core; what was taken comes back all the same.
    machine.caller = cores({1});
    if (++step; !leaves(&placement, 1, {0, 2, 3})) return step;
  }
  {
    // All threads are given the cores that the worker has already: the one that was taken does not come back.
    start({0, 1, 2, 3});
    streamsplat::Placement placement(1);
    if (++step; !leaves(&placement, 0, {1, 2, 3})) return step;
    machine.caller = machine.worker = cores({1, 2, 3});
    if (++step; !leaves(&placement, 1, {2, 3})) return step;
    if (++step; !leaves(&placement, 2, {1, 3})) return step;
    if (++step; !leaves(&placement, 3, {1, 2})) return step;
  }
  {
    // The same by the kernel, which would cut what it is asked for, and then not know again what it had given.
    start({0, 1, 2, 3});
    streamsplat::Placement placement(1);
    if (++step; !leaves(&placement, 0, {1, 2, 3})) return step;
    machine.caller = machine.worker = machine.allowed = cores({1, 2, 3});
    for (const int core : {1, 2, 3, 1}) leaves(&placement, core, {});
    if (++step; !leaves(&placement, 2, {1, 3})) return step;
  }
  {
    // Two cores, and a caller that binds itself to the one that the worker was left: it gets the other one.
    start({0, 1});
    streamsplat::Placement placement(1);
    if (++step; !leaves(&placement, 0, {1})) return step;
    machine.caller = cores({1});
    if (++step; !leaves(&placement, 1, {0})) return step;
  }
  {
    // A single core is never taken; nor is anything where cores cannot be named.
    start({5});
    streamsplat::Placement placement(1);
    if (++step; !leaves(&placement, 5, {5}) || machine.changes != 0) return step;
    start({0, 1});
    machine.answers = false;
    if (++step; !leaves(&placement, 0, {0, 1}) || !leaves(&placement, 5000, {0, 1}) || machine.changes != 0)
      return step;
  }
  return 0;
}
