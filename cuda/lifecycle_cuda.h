// The Gaussian lifecycle on the device: which Gaussians of the ring can be seen in the current interval.
//
// Key frames lie in a ring of preallocated slots that the engines write into; the host says which two are alive (docs
// in runtime/lifecycle.py). When an interval begins, two kernels fill the list of rows that `project` works on:
//   1. judge     a thread per row: whether it is finite and can reach alpha 1/255 at some time; counts per block
//   2. compact   the rows that can, in order, behind those of the blocks before; the totals; the identity of every row
// The order of rows is that of the C++ version, without atomics: the same in every run.
//
// Fading never needs a pass of its own: `project` evaluates a Gaussian at its time in registers.
#ifndef STREAMSPLAT_LIFECYCLE_CUDA_H_
#define STREAMSPLAT_LIFECYCLE_CUDA_H_

#include "raster_cuda.h"

namespace streamsplat {

// Which key frames are alive, written by the host before an interval begins. Rows [0, G) are those of the earlier key
// frame and [G, 2G) those of the later; a lone key frame has rows [0, G) only and stands still.
struct RingState {
  int32_t earlier, later;  // slots; earlier = -1: `later` is alone
  int32_t pair;            // which motion and fade
  int32_t unused;
  int64_t first_id[2];  // identity of the first Gaussian of `earlier` and of `later`
};
static_assert(sizeof(RingState) == 32, "layout known to the caller");

// What became of the rows of an interval. Those that can be seen at no time of it are counted here once and taken into
// the counts of every image: as transparent even where they are behind the camera as well.
struct RingTotals {
  int32_t living, listed;
  int32_t culled_invalid, culled_transparent;
};
static_assert(sizeof(RingTotals) == 16, "layout known to the caller");

// Counts of a block of `judge`.
struct BlockCounts {
  int32_t listed, culled_invalid, culled_transparent;
};

// Arguments by value, constant over the life of a lifecycle. G = per_frame.
struct RingParams {
  int32_t per_frame;
  int32_t mapping;         // DepthMapping
  const RingState* state;  // [1]
  const float* gaussians;  // [slots, G, kGaussianColumns]
  const float* motion;     // [2 pairs, 2, G, 3]
  const float* fade;       // [2 pairs, 2, G, 2]
  uint8_t* fates;          // [2G]
  BlockCounts* counts;     // [blocks of 2G threads]
  int32_t* rows;           // [2G], the first `listed` count
  int64_t* ids;            // [2G], the first `living` count
  RingTotals* totals;      // [1]
};
static_assert(sizeof(RingParams) == 8 + 9 * 8, "layout known to the caller");

}  // namespace streamsplat

#endif  // STREAMSPLAT_LIFECYCLE_CUDA_H_
