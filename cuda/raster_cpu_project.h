// Phase 1 of the CPU rasterizer: Gaussians from world space to a `Splat` each, or the reason why it is not rendered.
//
// Works on batches held as structure of arrays. The loops over a batch are plain C++ that compilers vectorise with the
// base instruction set: their results, and with them culling and tile rectangles, are the same at every SIMD level.
#ifndef STREAMSPLAT_RASTER_CPU_PROJECT_H_
#define STREAMSPLAT_RASTER_CPU_PROJECT_H_

#include <cstdint>

#include "raster_cpu.h"

namespace streamsplat {

// What is the same for all Gaussians of a render. `jacobian` holds rows 0 and 1 of the view rotation in pixels per
// world unit; it and `view` are unused in the canonical path.
struct Projection {
  int width, height, tiles_x, tiles_y;
  Extent extent;
  double jacobian[2][3];
  ViewInput view;
};

constexpr int kProjectBatch = 64;

struct ProjectBatch {
  // Filled by the path: position in normalised device coordinates, depth, opacity and shape.
  float u[kProjectBatch], v[kProjectBatch], depth[kProjectBatch], opacity[kProjectBatch];
  float a[kProjectBatch], c[kProjectBatch], det[kProjectBatch];  // covariance in pixels, low-pass added
  float half_inv_x[kProjectBatch], half_inv_y[kProjectBatch], shear[kProjectBatch];
  Fate fate[kProjectBatch];
  // Filled by `place`: centre in pixels, support box in pixels, pairs of the extent.
  float x[kProjectBatch], y[kProjectBatch];
  std::int32_t x0[kProjectBatch], x1[kProjectBatch], y0[kProjectBatch], y1[kProjectBatch];
  std::int32_t pairs[kProjectBatch];
};

// Axis-aligned Gaussians in the canonical view: view = (x, -z, depth), covariance diagonal.
void shape_canonical(const Projection& p, const SplatInput& in, std::int64_t first, int count, ProjectBatch& batch);

// Any rotation and view, in float64: three products of rotations and scales span too wide a range for float32.
void shape_general(const Projection& p, const SplatInput& in, std::int64_t first, int count, ProjectBatch& batch);

// Rectangle and support box of a whole batch; those outside the image get their fate here.
void place(const Projection& p, ProjectBatch& batch);

}  // namespace streamsplat

#endif  // STREAMSPLAT_RASTER_CPU_PROJECT_H_
