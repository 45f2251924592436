// Kernels of the lifecycle, and rows of the ring as input of `project`; see lifecycle_cuda.h.
#ifndef STREAMSPLAT_LIFECYCLE_CUDA_CUH_
#define STREAMSPLAT_LIFECYCLE_CUDA_CUH_

#include "lifecycle_cuda.h"
#include "raster_cuda_blend.cuh"
#include "raster_cuda_project.cuh"

namespace streamsplat {

// Where the numbers of a row are.
struct RingRow {
  const float* gaussian;  // [kGaussianColumns]
  const float* motion;    // [3]; null: stands still
  const float* fade;      // [2]; null likewise
  int which;              // 0: of the earlier key frame, 1: of the later
  int index;              // within its key frame
};
SS_HD int living_rows(const RingParams& ring, const RingState& state) {
  return state.earlier < 0 ? ring.per_frame : 2 * ring.per_frame;
}
SS_HD RingRow ring_row(const RingParams& ring, const RingState& state, int row) {
  const int64_t per_frame = ring.per_frame;
  const bool alone = state.earlier < 0;
  RingRow at;
  at.which = alone || row >= per_frame ? 1 : 0;
  at.index = alone ? row : row - at.which * ring.per_frame;
  const int slot = at.which == 0 ? state.earlier : state.later;
  at.gaussian = ring.gaussians + (slot * per_frame + at.index) * kGaussianColumns;
  const int64_t moving = (state.pair * 2 + at.which) * per_frame + at.index;
  at.motion = alone ? nullptr : ring.motion + 3 * moving;
  at.fade = alone ? nullptr : ring.fade + 2 * moving;
  return at;
}

SS_HD float limited_exp(float v) {
  v = v > -kFadeExponentMax ? v : -kFadeExponentMax;
  return expf(v < kFadeExponentMax ? v : kFadeExponentMax);
}

// The row at a time; writes mean, scale and opacity.
SS_HD void evaluate_row(const RingParams& ring, const RingRow& at, float dt, float* mean, float* scale,
                        float* opacity) {
  float motion[3] = {0.0f, 0.0f, 0.0f}, fade[2] = {0.0f, 0.0f};
  if (at.motion != nullptr) {
    for (int k = 0; k < 3; ++k) motion[k] = at.motion[k];
    for (int k = 0; k < 2; ++k) fade[k] = at.fade[k];
  }
  const float power[2] = {limited_exp(fade_exponent(fade, 0.0f)), limited_exp(fade_exponent(fade, fabsf(dt)))};
  gaussian_at(at.gaussian, motion, fade, power, at.motion != nullptr ? dt : 0.0f,
              static_cast<DepthMapping>(ring.mapping), mean, scale, opacity);
}

// Opacity is largest at one end of the interval, because the fade is monotonic in the age. The margin covers rounding.
SS_HD Fate judge_row(const RingRow& at) {
  float sum = 0.0f;
  for (int k = 0; k < kGaussianColumns; ++k) sum += at.gaussian[k] * 0.0f;
  float largest = 1.0f;
  if (at.motion != nullptr) {
    for (int k = 0; k < 3; ++k) sum += at.motion[k] * 0.0f;
    for (int k = 0; k < 2; ++k) sum += at.fade[k] * 0.0f;
    const float end =
        (1.0f + limited_exp(fade_exponent(at.fade, 0.0f))) / (1.0f + limited_exp(fade_exponent(at.fade, 1.0f)));
    largest = end > 1.0f ? end : 1.0f;
  }
  if (!(sum == 0.0f)) return Fate::kInvalid;
  return at.gaussian[kOpacity] * largest * 1.0001f < kAlphaMin ? Fate::kTransparent : Fate::kVisible;
}

__device__ inline void judge_rows(const RingParams& ring) {
  const RingState state = *ring.state;
  const int row = static_cast<int>(blockIdx.x) * kThreads + static_cast<int>(threadIdx.x);
  const bool present = row < living_rows(ring, state);
  const Fate fate = present ? judge_row(ring_row(ring, state, row)) : Fate::kVisible;
  if (present) ring.fates[row] = static_cast<uint8_t>(fate);
  BlockCounts counts;
  counts.listed = __syncthreads_count(present && fate == Fate::kVisible);
  counts.culled_invalid = __syncthreads_count(fate == Fate::kInvalid);
  counts.culled_transparent = __syncthreads_count(fate == Fate::kTransparent);
  if (threadIdx.x == 0) ring.counts[blockIdx.x] = counts;
}

struct CompactShared {
  int32_t before;                     // rows listed by the blocks before
  int32_t all[3];                     // sums over all blocks, in the first one
  int32_t in_warp[kThreads / kWarp];  // rows listed by each warp
};

// The blocks are few (288 for two key frames of 36,864): each adds up the counts of those before it by itself.
__device__ inline void compact_rows(const RingParams& ring, int blocks, CompactShared* shared) {
  const RingState state = *ring.state;
  const int thread = static_cast<int>(threadIdx.x), block = static_cast<int>(blockIdx.x);
  const int row = block * kThreads + thread, living = living_rows(ring, state);
  if (thread == 0) shared->before = 0;
  if (thread < 3) shared->all[thread] = 0;
  const bool listed = row < living && ring.fates[row] == static_cast<uint8_t>(Fate::kVisible);
  const unsigned mask = __ballot_sync(kAllLanes, listed);
  const int warp = thread / kWarp, lane = thread % kWarp;
  if (lane == 0) shared->in_warp[warp] = __popc(mask);
  __syncthreads();
  int32_t before = 0;
  for (int b = thread; b < block; b += kThreads) before += ring.counts[b].listed;
  atomicAdd(&shared->before, before);
  if (block == 0) {
    for (int b = thread; b < blocks; b += kThreads) {
      atomicAdd(&shared->all[0], ring.counts[b].listed);
      atomicAdd(&shared->all[1], ring.counts[b].culled_invalid);
      atomicAdd(&shared->all[2], ring.counts[b].culled_transparent);
    }
  }
  __syncthreads();
  int to = shared->before + __popc(mask & ((1u << lane) - 1u));
  for (int w = 0; w < warp; ++w) to += shared->in_warp[w];
  if (listed) ring.rows[to] = row;
  if (row < living) {
    const RingRow at = ring_row(ring, state, row);
    ring.ids[row] = (at.which == 0 ? state.first_id[0] : state.first_id[1]) + at.index;
  }
  if (block == 0 && thread == 0) *ring.totals = {living, shared->all[0], shared->all[1], shared->all[2]};
}

// Rows of the ring at the times of the frames.
template <bool kCanonical>
__device__ inline void project_ring(const RasterParams& p, const RingParams& ring, uint32_t* block_tally) {
  const int i = static_cast<int>(blockIdx.x) * kThreads + static_cast<int>(threadIdx.x);
  const int time = static_cast<int>(blockIdx.z);
  const RasterFrame& frame = p.frames[time];
  const RingTotals& totals = *ring.totals;
  const bool present = i < totals.listed;
  const int row = present ? ring.rows[i] : 0;
  float mean[3], scale[3], opacity = 0.0f;
  SplatInput in{mean, scale, &opacity, nullptr, nullptr, 1};
  if (present) {
    const RingRow at = ring_row(ring, *ring.state, row);
    evaluate_row(ring, at, frame.dt[at.which], mean, scale, &opacity);
    in.rgb = at.gaussian + kRed;
  }
  project_and_append<kCanonical>(p, frame, time, in, 0, row, present, block_tally);
  if (i == 0) {
    atomicAdd(&p.tally[time * kTallies + kCulledInvalid], static_cast<Word>(totals.culled_invalid));
    atomicAdd(&p.tally[time * kTallies + kCulledTransparent], static_cast<Word>(totals.culled_transparent));
  }
}

template <bool kCanonical>
__device__ inline void blend_ring(const RasterParams& p, const RingParams& ring, BlendShared* shared) {
  blend_tile<kCanonical>(p, ring.rows, ring.totals->listed, shared);
}

}  // namespace streamsplat

#endif  // STREAMSPLAT_LIFECYCLE_CUDA_CUH_
