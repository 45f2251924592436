// Interface between the rasterizer and its SIMD kernels; each instruction set has a source file that implements it.
#ifndef STREAMSPLAT_RASTER_CPU_KERNEL_H_
#define STREAMSPLAT_RASTER_CPU_KERNEL_H_

#include <cstdint>

#include "splat_math.h"

namespace streamsplat {

enum class SimdLevel { kAuto = 0, kPlain = 1, kAvx2 = 2, kAvx512 = 3 };

// A projected Gaussian, one cache line. With the covariance [a b; b c] in pixels the exponent is written as
//   -(dx + shear * dy)^2 * half_inv_x - dy^2 * half_inv_y
//   shear = -b / c, half_inv_x = c / (2 det), half_inv_y = 1 / (2 c)
// a sum of squares: it cannot become positive by rounding, and shear = 0 is the separable case.
struct alignas(64) Splat {
  float x, y;  // centre in pixels
  float half_inv_x, half_inv_y, shear;
  float opacity;
  float r, g, b, depth;
  std::int16_t box_x0, box_y0, box_x1, box_y1;  // pixels that can reach alpha 1/255, half-open, inside the image
};
static_assert(sizeof(Splat) == 64, "one cache line per Gaussian");

// Tiles of the support box, half-open.
struct TileRect {
  std::int16_t x0, y0, x1, y1;
};

struct TileJob {
  const Splat* splats;
  const std::uint32_t* list;  // Gaussian indices of this tile, front to back
  std::uint32_t count;
  int x0, y0;         // first pixel of the tile
  int width, height;  // of the image
  float background[3];
  float* rgb;
  float* depth;
  float* expected_depth;
  float* alpha;
};

struct SimdKernels {
  void (*blend_canonical)(const TileJob& job);
  void (*blend_general)(const TileJob& job);
  // exp of arguments clamped to +-kFadeExponentMax; count % 16 == 0.
  void (*exponential)(const float* in, float* out, int count);
};

bool simd_supported(SimdLevel level);
SimdLevel simd_best();
const SimdKernels& simd_kernels(SimdLevel level);  // the level must be supported
const char* simd_name(SimdLevel level);

const SimdKernels& plain_kernels();
#if defined(__x86_64__)
const SimdKernels& avx2_kernels();
const SimdKernels& avx512_kernels();
#endif

}  // namespace streamsplat

#endif  // STREAMSPLAT_RASTER_CPU_KERNEL_H_
