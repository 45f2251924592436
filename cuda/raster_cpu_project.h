// Phase 1 of the CPU rasterizer: one Gaussian from world space to a `Splat`, or the reason why it is not rendered.
#ifndef STREAMSPLAT_RASTER_CPU_PROJECT_H_
#define STREAMSPLAT_RASTER_CPU_PROJECT_H_

#include <math.h>

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "raster_cpu.h"

namespace streamsplat {

enum class Fate { kVisible, kUntouched, kInvalid, kBehind, kTransparent, kOutside };

// What is the same for all Gaussians of a render. `jacobian` holds rows 0 and 1 of the view rotation in pixels per
// world unit, `depth_row` its row 2; both unused in the canonical view.
struct Projection {
  int width, height, tiles_x, tiles_y;
  Extent extent;
  double jacobian[2][3];
  ViewInput view;
};

// Sigma is limited to 1e9 pixels, so that squares and determinants of extreme but valid scales stay finite in float32;
// at that size a Gaussian is constant over any image. Opacity is limited so that exp(-40) times it stays below 1/255.
constexpr float kSigmaMax = 1e9f;
constexpr float kOpacityMax = 1e6f;

// Upper bound of ln(255 v), at most 0.007 above it.
inline float log255_upper(float v) {
  const float scaled = 255.0f * v;
  std::uint32_t bits;
  std::memcpy(&bits, &scaled, sizeof bits);
  const float exponent = static_cast<float>(static_cast<int>(bits >> 23) - 127);
  bits = (bits & 0x007FFFFFu) | 0x3F800000u;
  float m;
  std::memcpy(&m, &bits, sizeof m);
  // Quadratic fit of log2 on [1, 2), error +-0.00494, raised by that much.
  const float log2_upper = exponent + (-0.34484843f * m + 2.02466578f) * m - 1.67487759f + 0.0050f;
  return 0.69314718f * log2_upper;
}

// Rectangle and support box from the centre and the covariance [a . ; . c] (low-pass added) of a Gaussian.
inline Fate place(const Projection& p, float a, float c, float radius, Splat& splat, TileRect& tiles,
                  std::int64_t& pairs) {
  // alpha >= 1/255 needs dx^2 / (2 a) <= ln(255 opacity); the margins cover float rounding, pixels are tested exactly.
  const float reach = 2.0f * log255_upper(splat.opacity);
  const float half_x = sqrtf(a * reach) * 1.00001f + 0.01f;
  const float half_y = sqrtf(c * reach) * 1.00001f + 0.01f;
  int x0 = clamp_to_int(splat.x - half_x, static_cast<float>(p.width)),
      x1 = clamp_to_int(splat.x + half_x + 1.0f, static_cast<float>(p.width));
  int y0 = clamp_to_int(splat.y - half_y, static_cast<float>(p.height)),
      y1 = clamp_to_int(splat.y + half_y + 1.0f, static_cast<float>(p.height));
  if (p.extent == Extent::kPublished) {
    const int rx0 = tile_begin(splat.x, radius, p.tiles_x), rx1 = tile_end(splat.x, radius, p.tiles_x);
    const int ry0 = tile_begin(splat.y, radius, p.tiles_y), ry1 = tile_end(splat.y, radius, p.tiles_y);
    if (rx0 >= rx1 || ry0 >= ry1) return Fate::kOutside;
    pairs = static_cast<std::int64_t>(rx1 - rx0) * (ry1 - ry0);
    x0 = std::max(x0, rx0 * kTile);
    x1 = std::min(x1, rx1 * kTile);
    y0 = std::max(y0, ry0 * kTile);
    y1 = std::min(y1, ry1 * kTile);
    if (x0 >= x1 || y0 >= y1) return Fate::kUntouched;
  } else if (x0 >= x1 || y0 >= y1) {
    return Fate::kOutside;
  }
  splat.box_x0 = static_cast<std::int16_t>(x0);
  splat.box_x1 = static_cast<std::int16_t>(x1);
  splat.box_y0 = static_cast<std::int16_t>(y0);
  splat.box_y1 = static_cast<std::int16_t>(y1);
  tiles = {static_cast<std::int16_t>(x0 / kTile), static_cast<std::int16_t>(y0 / kTile),
           static_cast<std::int16_t>((x1 + kTile - 1) / kTile), static_cast<std::int16_t>((y1 + kTile - 1) / kTile)};
  if (p.extent == Extent::kFull) pairs = static_cast<std::int64_t>(tiles.x1 - tiles.x0) * (tiles.y1 - tiles.y0);
  return Fate::kVisible;
}

// NaN and infinity are the only values v with v * 0 != 0; a sum of such products is 0 only if all are finite.
inline bool all_finite(const SplatInput& in, std::int64_t i) {
  const float* m = in.means + 3 * i;
  const float* s = in.scales + 3 * i;
  const float* c = in.rgb + 3 * i;
  float sum = (m[0] * 0.0f + m[1] * 0.0f + m[2] * 0.0f) + (s[0] * 0.0f + s[1] * 0.0f + s[2] * 0.0f) +
              (c[0] * 0.0f + c[1] * 0.0f + c[2] * 0.0f) + in.opacity[i] * 0.0f;
  if (in.quats != nullptr)
    for (int k = 0; k < 4; ++k) sum += in.quats[4 * i + k] * 0.0f;
  return sum == 0.0f;
}

inline float clamp_sigma(float v) {
  v = fabsf(v);
  return v < kSigmaMax ? v : kSigmaMax;
}

// Axis-aligned Gaussian in the canonical view: view = (x, -z, depth), covariance diagonal.
inline Fate project_canonical(const Projection& p, const SplatInput& in, std::int64_t i, Splat& splat, TileRect& tiles,
                              std::int64_t& pairs) {
  const float* mean = in.means + 3 * i;
  const float sigma_x = clamp_sigma(in.scales[3 * i] * (0.5f * static_cast<float>(p.width)));
  const float sigma_y = clamp_sigma(in.scales[3 * i + 2] * (0.5f * static_cast<float>(p.height)));
  const float a = sigma_x * sigma_x + kLowPass;
  const float c = sigma_y * sigma_y + kLowPass;
  splat.x = ndc_to_pixel(mean[0] * kHomogeneous, p.width);
  splat.y = ndc_to_pixel(-mean[2] * kHomogeneous, p.height);
  splat.half_inv_x = 0.5f / a;
  splat.half_inv_y = 0.5f / c;
  splat.shear = 0.0f;
  splat.depth = mean[1];
  return place(p, a, c, splat_radius(a, c, a * c), splat, tiles, pairs);
}

// Any rotation and view, in float64: three products of rotations and scales span too wide a range for float32.
Fate project_general(const Projection& p, const SplatInput& in, std::int64_t i, Splat& splat, TileRect& tiles,
                     std::int64_t& pairs);

}  // namespace streamsplat

#endif  // STREAMSPLAT_RASTER_CPU_PROJECT_H_
