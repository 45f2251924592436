// The kernels of the runtime: preparing pictures, the inference rasterizer, the Gaussian lifecycle and the range of
// depth. Compiled by nvcc into a fatbin, or by NVRTC where the package was installed without nvcc; found by their names
// (runtime/cuda/).
#include "depth_range_cuda.cuh"
#include "lifecycle_cuda.cuh"
#include "prepare_cuda.cuh"
#include "raster_cuda_blend.cuh"
#include "raster_cuda_project.cuh"

using streamsplat::DepthParams;
using streamsplat::PrepareParams;
using streamsplat::RasterParams;
using streamsplat::RingParams;

#define SS_KERNEL __global__ void __launch_bounds__(streamsplat::kThreads, streamsplat::kBlocksPerSm)
#define SS_BLEND_KERNEL __global__ void __launch_bounds__(streamsplat::kThreads, streamsplat::kBlendBlocksPerSm)

extern "C" {

SS_KERNEL project_given_canonical(RasterParams p) {
  __shared__ uint32_t tally[streamsplat::kTallies];
  streamsplat::project_given<true>(p, tally);
}

SS_KERNEL project_given_general(RasterParams p) {
  __shared__ uint32_t tally[streamsplat::kTallies];
  streamsplat::project_given<false>(p, tally);
}

SS_BLEND_KERNEL blend_given_canonical(RasterParams p) {
  __shared__ streamsplat::BlendShared shared;
  streamsplat::blend_tile<true>(p, nullptr, p.count, &shared);
}

SS_BLEND_KERNEL blend_given_general(RasterParams p) {
  __shared__ streamsplat::BlendShared shared;
  streamsplat::blend_tile<false>(p, nullptr, p.count, &shared);
}

SS_KERNEL depth_extent(DepthParams p) {
  __shared__ streamsplat::DepthShared shared;
  streamsplat::depth_extent_of(p, &shared);
}

SS_KERNEL depth_scale(DepthParams p) {
  __shared__ streamsplat::DepthShared shared;
  streamsplat::depth_scale_by_range(p, &shared);
}

SS_KERNEL lifecycle_judge(RingParams ring) { streamsplat::judge_rows(ring); }

SS_KERNEL lifecycle_compact(RingParams ring) {
  __shared__ streamsplat::CompactShared shared;
  const int blocks = (2 * ring.per_frame + streamsplat::kThreads - 1) / streamsplat::kThreads;
  streamsplat::compact_rows(ring, blocks, &shared);
}

SS_KERNEL prepare_rgb(PrepareParams p) { streamsplat::prepare_pixel<streamsplat::PackedRgb>(p); }

SS_KERNEL prepare_nv12(PrepareParams p) { streamsplat::prepare_pixel<streamsplat::Nv12>(p); }

SS_KERNEL prepare_smooth8(PrepareParams p) { streamsplat::prepare_pixel<streamsplat::SmoothYuv<uint8_t>>(p); }

SS_KERNEL prepare_smooth16(PrepareParams p) { streamsplat::prepare_pixel<streamsplat::SmoothYuv<uint16_t>>(p); }

SS_KERNEL project_ring_canonical(RasterParams p, RingParams ring) {
  __shared__ uint32_t tally[streamsplat::kTallies];
  streamsplat::project_ring<true>(p, ring, tally);
}

SS_KERNEL project_ring_general(RasterParams p, RingParams ring) {
  __shared__ uint32_t tally[streamsplat::kTallies];
  streamsplat::project_ring<false>(p, ring, tally);
}

SS_BLEND_KERNEL blend_ring_canonical(RasterParams p, RingParams ring) {
  __shared__ streamsplat::BlendShared shared;
  streamsplat::blend_ring<true>(p, ring, &shared);
}

SS_BLEND_KERNEL blend_ring_general(RasterParams p, RingParams ring) {
  __shared__ streamsplat::BlendShared shared;
  streamsplat::blend_ring<false>(p, ring, &shared);
}

}  // extern "C"
