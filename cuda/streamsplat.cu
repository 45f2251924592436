// The kernels of the runtime: the inference rasterizer and the Gaussian lifecycle. Compiled by nvcc into a fatbin, or
// by NVRTC where the package was installed without nvcc; found by their names (runtime/cuda/).
#include "raster_cuda_blend.cuh"
#include "raster_cuda_project.cuh"

extern "C" {

__global__ void __launch_bounds__(streamsplat::kThreads, streamsplat::kBlocksPerSm)
    project_given_canonical(streamsplat::RasterParams p) {
  __shared__ uint32_t tally[streamsplat::kTallies];
  streamsplat::project_given<true>(p, tally);
}

__global__ void __launch_bounds__(streamsplat::kThreads, streamsplat::kBlocksPerSm)
    project_given_general(streamsplat::RasterParams p) {
  __shared__ uint32_t tally[streamsplat::kTallies];
  streamsplat::project_given<false>(p, tally);
}

__global__ void __launch_bounds__(streamsplat::kThreads, streamsplat::kBlocksPerSm)
    blend_given_canonical(streamsplat::RasterParams p) {
  __shared__ streamsplat::BlendShared shared;
  streamsplat::blend_tile<true>(p, nullptr, p.count, &shared);
}

__global__ void __launch_bounds__(streamsplat::kThreads, streamsplat::kBlocksPerSm)
    blend_given_general(streamsplat::RasterParams p) {
  __shared__ streamsplat::BlendShared shared;
  streamsplat::blend_tile<false>(p, nullptr, p.count, &shared);
}

}  // extern "C"
