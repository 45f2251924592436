// Gaussians of a key frame at a time of the pair (REFERENCE.md section 2).
#ifndef STREAMSPLAT_RASTER_CPU_TIME_H_
#define STREAMSPLAT_RASTER_CPU_TIME_H_

#include <cstdint>

#include "splat_project.h"

namespace streamsplat {

// gaussians [count][9] x, y, z, r, g, b, scale_x, scale_z, opacity; motion [count][3]; fade [count][2] gamma0, gamma1;
// dt = t - anchor. Writes means [count][3] (x, depth, z), scales [count][3], opacity [count] and rgb [count][3].
// A value that is NaN or infinite makes the Gaussian's opacity NaN, so that the rasterizer culls and counts it.
void evaluate_at(const float* gaussians, const float* motion, const float* fade, std::int64_t count, float dt,
                 DepthMapping mapping, int threads, float* means, float* scales, float* opacity, float* rgb);

}  // namespace streamsplat

#endif  // STREAMSPLAT_RASTER_CPU_TIME_H_
