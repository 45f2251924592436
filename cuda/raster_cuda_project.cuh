// Phase 1 of the CUDA rasterizer: Gaussians to splats, and their keys into the slots of tiles.
#ifndef STREAMSPLAT_RASTER_CUDA_PROJECT_CUH_
#define STREAMSPLAT_RASTER_CUDA_PROJECT_CUH_

#include "raster_cuda.h"

namespace streamsplat {

// One Gaussian of `in`; `pairs` are the tile-Gaussian pairs of the extent. The splat's box is empty unless some pixel
// can reach alpha 1/255.
template <bool kCanonical>
SS_HD Fate project_one(const RasterParams& p, const RasterFrame& frame, const SplatInput& in, int64_t i, CudaSplat* s,
                       int* pairs) {
  SplatShape shape;
  Fate fate;
  if (kCanonical) {
    fate = canonical_fate(in, i);
    const CanonicalShape own = canonical_shape(in.scales[3 * i], in.scales[3 * i + 2],
                                               0.5f * static_cast<float>(p.width), 0.5f * static_cast<float>(p.height));
    shape = {in.means[3 * i], -in.means[3 * i + 2], in.means[3 * i + 1], own.a, own.c,
             own.a * own.c,   own.half_inv_x,       own.half_inv_y,      0.0f};
  } else {
    double jacobian[2][3];
    view_jacobian(frame.view.rotation, p.width, p.height, jacobian);
    fate = general_shape(jacobian, frame.view, in, i, &shape);
  }
  *pairs = 0;
  if (fate != Fate::kVisible) return fate;
  s->x = ndc_to_pixel(shape.u * kHomogeneous, p.width);
  s->y = ndc_to_pixel(shape.v * kHomogeneous, p.height);
  s->half_inv_x = shape.half_inv_x;
  s->half_inv_y = shape.half_inv_y;
  s->shear = shape.shear;
  s->opacity = in.opacity[i] < kOpacityMax ? in.opacity[i] : kOpacityMax;
  s->r = in.rgb[3 * i];
  s->g = in.rgb[3 * i + 1];
  s->b = in.rgb[3 * i + 2];
  s->depth = shape.depth;
  PixelBox box =
      support_box(s->x, s->y, s->opacity, shape.a, shape.c, static_cast<float>(p.width), static_cast<float>(p.height));
  if (p.extent == static_cast<int>(Extent::kPublished))
    *pairs = limit_to_tiles(s->x, s->y, shape.a, shape.c, shape.det, tiles_across(p), tiles_down(p), &box);
  else
    *pairs = tiles_of_box(box);
  if (*pairs == 0) return Fate::kOutside;
  if (box.x0 < box.x1 && box.y0 < box.y1) {
    s->box_x0 = static_cast<int16_t>(box.x0);
    s->box_x1 = static_cast<int16_t>(box.x1);
    s->box_y0 = static_cast<int16_t>(box.y0);
    s->box_y1 = static_cast<int16_t>(box.y1);
  }
  return Fate::kVisible;
}

// Appends the keys of a warp to the tiles of their boxes; returns how many tiles the thread's box touches.
// `overflowing` counts the tiles whose slots were full for the first time. All threads of the warp call it.
//
// Neighbouring rows are neighbours in the image, so most lanes of a warp append to a few tiles: those of one tile take
// their slots by one atomic. A round starts all its atomics before it needs the answer of one.
__device__ inline int append(const RasterParams& p, int time, const CudaSplat& s, uint32_t row, int* overflowing) {
  constexpr int kRound = 4;  // most small Gaussians touch 2x2 tiles at most
  const unsigned lane = threadIdx.x % kWarp;
  const bool any = s.box_x0 < s.box_x1;
  const int x0 = s.box_x0 / kTile, y0 = s.box_y0 / kTile;
  const int columns = any ? (s.box_x1 - 1) / kTile + 1 - x0 : 0, rows = any ? (s.box_y1 - 1) / kTile + 1 - y0 : 0;
  const int tiles = columns * rows, across = tiles_across(p);
  const int64_t first = int64_t{time} * across * tiles_down(p);
  const Word key = sort_key(s.depth, row);
  const uint32_t slots = static_cast<uint32_t>(p.slots);
  int column = 0, next = y0 * across + x0;  // tile of the image
#pragma unroll 1
  for (int done = 0; __any_sync(kAllLanes, done < tiles); done += kRound) {
    int tile[kRound];
    unsigned sharing[kRound];
    uint32_t begin[kRound];
#pragma unroll
    for (int k = 0; k < kRound; ++k) {
      tile[k] = done + k < tiles ? next : -1;
      const bool wraps = ++column == columns;
      next += wraps ? across - columns + 1 : 1;
      column = wraps ? 0 : column;
      sharing[k] = __match_any_sync(kAllLanes, tile[k]);
      begin[k] = 0;
      if (tile[k] >= 0 && (sharing[k] & ((1u << lane) - 1u)) == 0)
        begin[k] = atomicAdd(&p.filled[first + tile[k]], static_cast<uint32_t>(__popc(sharing[k])));
    }
#pragma unroll
    for (int k = 0; k < kRound; ++k) {
      const uint32_t before = static_cast<uint32_t>(__popc(sharing[k] & ((1u << lane) - 1u)));
      const uint32_t at = __shfl_sync(kAllLanes, begin[k], __ffs(static_cast<int>(sharing[k])) - 1) + before;
      if (tile[k] < 0) continue;
      if (at < slots) p.keys[(first + tile[k]) * slots + at] = key;
      *overflowing += at == slots;
    }
  }
  return tiles;
}

// Counts of a block, then of the time stamp. Sums of integers: their order does not matter.
__device__ inline void tally_one(uint32_t* block, bool present, Fate fate, int pairs, int binned, int overflowing) {
  if (!present) return;
  atomicAdd(&block[fate == Fate::kVisible ? kRendered : static_cast<int>(fate) - 1 + kCulledInvalid], 1u);
  if (pairs > 0) atomicAdd(&block[kPairs], static_cast<uint32_t>(pairs));
  if (binned > 0) atomicAdd(&block[kBinnedPairs], static_cast<uint32_t>(binned));
  if (overflowing > 0) atomicAdd(&block[kOverflowingTiles], static_cast<uint32_t>(overflowing));
}
static_assert(static_cast<int>(Fate::kInvalid) == 1 && static_cast<int>(Fate::kOutside) == 4 &&
                  kCulledOutside == kCulledInvalid + 3,
              "reasons in the same order");

// What a thread of project does once it has its Gaussian; all threads of the block call it.
template <bool kCanonical>
__device__ inline void project_and_append(const RasterParams& p, const RasterFrame& frame, int time,
                                          const SplatInput& in, int64_t i, int64_t row, bool present,
                                          uint32_t* block_tally) {
  const int thread = static_cast<int>(threadIdx.x);
  if (thread < kTallies) block_tally[thread] = 0;
  __syncthreads();
  Fate fate = Fate::kInvalid;
  int pairs = 0, binned = 0, overflowing = 0;
  CudaSplat s{};
  if (present) {
    fate = project_one<kCanonical>(p, frame, in, i, &s, &pairs);
    p.splats[int64_t{time} * p.count + row] = s;
  }
  binned = append(p, time, s, static_cast<uint32_t>(row), &overflowing);
  tally_one(block_tally, present, fate, pairs, binned, overflowing);
  __syncthreads();
  if (thread < kTallies && block_tally[thread] != 0)
    atomicAdd(&p.tally[time * kTallies + thread], static_cast<Word>(block_tally[thread]));
}

// Gaussians that the caller gave, the same at every time stamp.
template <bool kCanonical>
__device__ inline void project_given(const RasterParams& p, uint32_t* block_tally) {
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  const int time = static_cast<int>(blockIdx.z);
  const SplatInput in{p.means, p.scales, p.opacity, p.rgb, p.quats, p.count};
  project_and_append<kCanonical>(p, p.frames[time], time, in, i, i, i < p.count, block_tally);
}

}  // namespace streamsplat

#endif  // STREAMSPLAT_RASTER_CUDA_PROJECT_CUH_
