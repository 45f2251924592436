// The running range of depth on the device: what runtime.preprocess.DepthRange does, so that the plane of the `depth`
// stage need not go to the host and back.
//
//   1. extent   a block per kDepthBlock values: the least, the greatest, and whether all are finite
//   2. scale    every block puts the parts together, widens or narrows the range and scales its values; the first one
//               stores the range for the next key frame
// The arithmetic of the range is that of Python's floats (double), that of the values is float: the same bits as on the
// host, but for `exp`.
#ifndef STREAMSPLAT_DEPTH_RANGE_CUDA_CUH_
#define STREAMSPLAT_DEPTH_RANGE_CUDA_CUH_

#include "raster_cuda.h"

namespace streamsplat {

constexpr int kDepthEach = 4;  // values per thread
constexpr int kDepthBlock = kDepthEach * kThreads;
constexpr double kRelaxSeconds = 2.0;  // DepthRange.RELAX_SECONDS
constexpr float kLargest = 3.402823466e38f;

// Of the key frame that is being made, written by the host.
struct DepthMoment {
  double time;    // seconds
  int32_t fresh;  // a scene begins: its own range counts alone
  int32_t unused;
};
static_assert(sizeof(DepthMoment) == 16, "layout known to the caller");

struct DepthState {
  double low, high, time;
  int32_t known;  // 0: no frame of the scene was finite
  int32_t unused;
};
static_assert(sizeof(DepthState) == 32, "layout known to the caller");

// Of a block of `extent`.
struct DepthPart {
  float low, high;
  int32_t finite;
};
static_assert(sizeof(DepthPart) == 12, "layout known to the caller");

// Arguments by value. A key frame that fails leaves `before` as it was.
struct DepthParams {
  int32_t count, blocks;
  float* depth;               // [count], scaled in place
  DepthPart* parts;           // [blocks]
  const DepthMoment* moment;  // [1]
  const DepthState* before;   // [1] after the key frame before
  DepthState* after;          // [1]
};
static_assert(sizeof(DepthParams) == 8 + 5 * 8, "layout known to the caller");

struct DepthShared {
  float low[kThreads], high[kThreads];
  float offset, span;  // of the whole plane's scale
  int32_t scales;
};

// Leaves the least and the greatest value of the threads in low[0] and high[0].
__device__ inline void reduce_extent(float low, float high, DepthShared* shared) {
  const int thread = static_cast<int>(threadIdx.x);
  shared->low[thread] = low;
  shared->high[thread] = high;
  for (int half = kThreads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (thread >= half) continue;
    const float other_low = shared->low[thread + half], other_high = shared->high[thread + half];
    if (other_low < shared->low[thread]) shared->low[thread] = other_low;
    if (other_high > shared->high[thread]) shared->high[thread] = other_high;
  }
  __syncthreads();
}

__device__ inline void depth_extent_of(const DepthParams& p, DepthShared* shared) {
  const int thread = static_cast<int>(threadIdx.x), first = static_cast<int>(blockIdx.x) * kDepthBlock;
  float low = kLargest, high = -kLargest;
  bool broken = false;
  for (int k = 0; k < kDepthEach; ++k) {
    const int i = first + k * kThreads + thread;
    if (i >= p.count) break;
    const float value = p.depth[i];
    broken = broken || !(value * 0.0f == 0.0f);  // NaN and infinity
    if (value < low) low = value;
    if (value > high) high = value;
  }
  const bool finite = __syncthreads_count(broken) == 0;
  reduce_extent(low, high, shared);
  if (thread == 0) p.parts[blockIdx.x] = {shared->low[0], shared->high[0], finite ? 1 : 0};
}

// The range after a frame of these extremes, as DepthRange.normalise gives it.
__device__ inline DepthState next_range(const DepthState& before, const DepthMoment& moment, float low, float high,
                                        bool finite) {
  const bool known = before.known != 0 && moment.fresh == 0;
  if (!finite) return known ? before : DepthState{0.0, 0.0, 0.0, 0, 0};
  DepthState after{low, high, moment.time, 1, 0};
  if (known) {
    const double keep = exp((before.time - moment.time) / kRelaxSeconds);
    const double kept_low = after.low + keep * (before.low - after.low);
    const double kept_high = after.high + keep * (before.high - after.high);
    if (kept_low < after.low) after.low = kept_low;
    if (kept_high > after.high) after.high = kept_high;
  }
  return after;
}

__device__ inline void depth_scale_by_range(const DepthParams& p, DepthShared* shared) {
  const int thread = static_cast<int>(threadIdx.x), first = static_cast<int>(blockIdx.x) * kDepthBlock;
  float low = kLargest, high = -kLargest;
  bool broken = false;
  for (int b = thread; b < p.blocks; b += kThreads) {
    const DepthPart part = p.parts[b];
    broken = broken || part.finite == 0;
    if (part.low < low) low = part.low;
    if (part.high > high) high = part.high;
  }
  const bool finite = __syncthreads_count(broken) == 0;
  reduce_extent(low, high, shared);
  if (thread == 0) {
    const DepthState after = next_range(*p.before, *p.moment, shared->low[0], shared->high[0], finite);
    shared->offset = static_cast<float>(after.low);
    shared->span = after.high > after.low ? static_cast<float>(after.high - after.low) : 1.0f;
    shared->scales = finite ? 1 : 0;  // a bad frame stays as it is, and the next ones are none the worse
    if (blockIdx.x == 0) *p.after = after;
  }
  __syncthreads();
  if (shared->scales == 0) return;
  const float offset = shared->offset, span = shared->span;
  for (int k = 0; k < kDepthEach; ++k) {
    const int i = first + k * kThreads + thread;
    if (i < p.count) p.depth[i] = (p.depth[i] - offset) / span;
  }
}

}  // namespace streamsplat

#endif  // STREAMSPLAT_DEPTH_RANGE_CUDA_CUH_
