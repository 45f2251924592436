#include "raster_cpu_placement.h"

#if defined(__linux__)
#include <pthread.h>
#include <sched.h>
#endif

namespace streamsplat {

#if defined(__linux__)

struct Placement::Given {
  cpu_set_t cores;
  int without = -1;  // core that was taken from the set; -1: none
};

Placement::Placement(std::size_t workers) : given_(new Given[workers]) {}

void Placement::keep_off_this_core(std::vector<std::thread>& workers) {
  const int core = sched_getcpu();
  if (core == core_ || core < 0 || core >= CPU_SETSIZE) return;
  core_ = core;
  cpu_set_t callers;
  if (sched_getaffinity(0, sizeof callers, &callers) != 0) return;
  for (std::size_t i = 0; i < workers.size(); ++i) {
    Given& given = given_[i];
    cpu_set_t cores;
    if (pthread_getaffinity_np(workers[i].native_handle(), sizeof cores, &cores) != 0) continue;
    // A caller with the same cores: somebody gave them to all threads (`taskset -a`, a cgroup). With a single one it is
    // rather a caller that was bound to the core that the worker was left.
    const bool everyones = CPU_EQUAL(&cores, &callers) && CPU_COUNT(&cores) > 1;
    const bool ours = given.without >= 0 && CPU_EQUAL(&cores, &given.cores) && !everyones;
    if (ours) CPU_SET(static_cast<std::size_t>(given.without), &cores);
    const bool takes = CPU_ISSET(static_cast<std::size_t>(core), &cores) && CPU_COUNT(&cores) > 1;
    if (takes) CPU_CLR(static_cast<std::size_t>(core), &cores);
    if (!takes && !ours) continue;
    if (pthread_setaffinity_np(workers[i].native_handle(), sizeof cores, &cores) != 0) continue;
    given.cores = cores;
    given.without = takes ? core : -1;
  }
}

#else

struct Placement::Given {};
Placement::Placement(std::size_t) {}
void Placement::keep_off_this_core(std::vector<std::thread>&) {}

#endif

Placement::~Placement() = default;

}  // namespace streamsplat
