// Interface between the differentiable rasterizer and its SIMD kernels; each instruction set implements it in a source
// file of its own.
#ifndef STREAMSPLAT_RASTER_GRAD_KERNEL_H_
#define STREAMSPLAT_RASTER_GRAD_KERNEL_H_

#include <cstdint>

#include "raster_cpu_kernel.h"
#include "raster_grad_math.h"

namespace streamsplat {

constexpr int kBlockWidth = 32;  // pixels of a block; a multiple of the widest vector
constexpr int kBlockHeight = 32;
constexpr int kBlockPixels = kBlockWidth * kBlockHeight;

// Pixels of one block, row-major. t is 0 where blending has stopped and outside the image.
struct alignas(64) BlockPlanes {
  float t[kBlockPixels], r[kBlockPixels], g[kBlockPixels], b[kBlockPixels], d[kBlockPixels];
  float rest[kBlockPixels];  // forward: transmittance of a stopped pixel. backward: loss carried by everything behind
  std::int32_t stop[kBlockPixels];
};

struct GradKernels {
  // Blends list[0..count) of the block whose first pixel is (x, y) into `planes` (t preset) and returns how many
  // entries were looked at.
  int (*forward)(const Splat* splats, const std::int32_t* list, int count, int x, int y, BlockPlanes* planes);
  // The derivative, back to front. On entry t = final transmittance, rest = t * dL/dt, and r, g, b, d hold the upstream
  // gradients of the four blended planes. Adds the sums of entry i to row i of `sums` if `by_entry`, else to row
  // list[i].
  void (*backward)(const Splat* splats, const std::int32_t* list, int count, int x, int y, BlockPlanes* planes,
                   bool by_entry, float* sums);
};

const GradKernels& grad_kernels_plain();
#if defined(__x86_64__)
const GradKernels& grad_kernels_avx2();
const GradKernels& grad_kernels_avx512();
#endif

}  // namespace streamsplat

#endif  // STREAMSPLAT_RASTER_GRAD_KERNEL_H_
