// Keeps sleeping threads from being woken on the core of the thread that wakes them.
#ifndef STREAMSPLAT_RASTER_CPU_PLACEMENT_H_
#define STREAMSPLAT_RASTER_CPU_PLACEMENT_H_

#include <cstddef>
#include <memory>
#include <thread>
#include <vector>

namespace streamsplat {

// Where all of a machine sleeps between two frames, Linux may wake a worker on the core that its caller is busy on, and
// leave it there for milliseconds while another core is idle: the loop is then as slow as on one thread. So workers may
// run anywhere but there. A set of cores that somebody else gave them meanwhile (taskset) is respected, and so is one
// that leaves them no other core. Nothing happens on other systems, or where the kernel refuses.
class Placement {
 public:
  explicit Placement(std::size_t workers);
  ~Placement();
  Placement(const Placement&) = delete;
  Placement& operator=(const Placement&) = delete;

  // Called by the thread that is about to wake `workers`, always the same ones.
  void keep_off_this_core(std::vector<std::thread>& workers);

 private:
  struct Given;  // what a worker was given last
  std::unique_ptr<Given[]> given_;
  int core_ = -1;  // that they were last kept off
};

}  // namespace streamsplat

#endif  // STREAMSPLAT_RASTER_CPU_PLACEMENT_H_
