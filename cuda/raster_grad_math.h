// What the C++ and the CUDA version of the differentiable rasterizer share: the arrays they work on, and the arithmetic
// per Gaussian before and after blending.
#ifndef STREAMSPLAT_RASTER_GRAD_MATH_H_
#define STREAMSPLAT_RASTER_GRAD_MATH_H_

#include <stdint.h>

#include "splat_math.h"

namespace streamsplat {

// All arrays are C-contiguous, batch first; xz and scale are [B,N,2] in ndc (z up), depth and opacity [B,N],
// rgb [B,N,3], background [B,3].
struct GradInputs {
  const float *xz, *depth, *scale, *opacity, *rgb, *background;
};
struct GradOutputs {
  float *rgb, *depth, *alpha;  // [B,H,W,3], [B,H,W] = sum of depth * weight, [B,H,W]
};
struct GradUpstream {
  const float *rgb, *depth, *alpha;  // dL/d(outputs), same shapes
};
struct GradResults {
  float *xz, *depth, *scale, *opacity, *rgb, *background;  // dL/d(inputs), same shapes; culled Gaussians get zeros
};

// Sums over the pixels of a Gaussian: q, q dx, q dx^2, q dy, q dy^2, then dL/d(r, g, b, depth); q = dL/dpower.
constexpr int kGradSums = 9;

// NaN and infinity are the only values v with v * 0 != 0.
SS_HD bool all_finite(const GradInputs& in, int64_t row) {
  const float *xz = in.xz + 2 * row, *scale = in.scale + 2 * row, *rgb = in.rgb + 3 * row;
  return (xz[0] * 0.0f + xz[1] * 0.0f) + (scale[0] * 0.0f + scale[1] * 0.0f) +
             (rgb[0] * 0.0f + rgb[1] * 0.0f + rgb[2] * 0.0f) + (in.depth[row] * 0.0f + in.opacity[row] * 0.0f) ==
         0.0f;
}

// What is looked at further. Culled: not finite, behind the camera, or alpha below 1/255 even in the centre.
SS_HD bool can_be_seen(const GradInputs& in, int64_t row) {
  return in.depth[row] > 0.0f && in.opacity[row] >= kAlphaMin && all_finite(in, row);
}

// Standard deviation in ndc to pixels, along an axis of `size` pixels; keeps the sign.
SS_HD float sigma_pixels(float scale, int size) { return scale * (0.5f * static_cast<float>(size)); }

// Diagonal entry of the projected covariance in px^2, low-pass added.
SS_HD float pixel_variance(float scale, int size) {
  float sigma = fabsf(sigma_pixels(scale, size));
  sigma = sigma < kSigmaMax ? sigma : kSigmaMax;
  return sigma * sigma + kLowPass;
}

// Chains the sums of a visible Gaussian to its inputs. half_inv = 1 / (2 variance), opacity as blended.
// power = -(dx^2 / A + dy^2 / C) / 2 with dx = u - x, u = fx x_ndc + const, v = -fy z_ndc + const and
// A = (fx s)^2 + 0.3. Where sigma is limited 1 / A^2 leaves nothing of the derivative.
SS_HD void chain_sums(const float* sums, float half_inv_x, float half_inv_y, float opacity, const GradInputs& in,
                      int64_t row, int width, int height, const GradResults& out) {
  const float fx = 0.5f * static_cast<float>(width), fy = 0.5f * static_cast<float>(height);
  const float inv_x = 2.0f * half_inv_x, inv_y = 2.0f * half_inv_y;
  out.xz[2 * row] = -inv_x * sums[1] * fx * kHomogeneous;
  out.xz[2 * row + 1] = inv_y * sums[3] * fy * kHomogeneous;
  out.scale[2 * row] = inv_x * sums[2] * fx * (inv_x * sigma_pixels(in.scale[2 * row], width));
  out.scale[2 * row + 1] = inv_y * sums[4] * fy * (inv_y * sigma_pixels(in.scale[2 * row + 1], height));
  out.opacity[row] = sums[0] / opacity;
  for (int c = 0; c < 3; ++c) out.rgb[3 * row + c] = sums[5 + c];
  out.depth[row] = sums[8];
}

// The gradients of a culled Gaussian.
SS_HD void chain_nothing(int64_t row, const GradResults& out) {
  for (int c = 0; c < 2; ++c) out.xz[2 * row + c] = out.scale[2 * row + c] = 0.0f;
  for (int c = 0; c < 3; ++c) out.rgb[3 * row + c] = 0.0f;
  out.opacity[row] = out.depth[row] = 0.0f;
}

}  // namespace streamsplat

#endif  // STREAMSPLAT_RASTER_GRAD_MATH_H_
