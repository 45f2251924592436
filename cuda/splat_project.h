// From a Gaussian in world space to what a rasterizer needs of it, one Gaussian at a time: its place at a time of the
// pair, its shape in pixels, and the pixels and tiles that it can reach.
//
// Defined once for host and device code. The C++ rasterizer calls these functions in loops over batches, which
// compilers vectorise; a CUDA kernel calls them once per thread. Compiled without contraction in both, so that both
// cull the same Gaussians and cut them at the same tiles.
#ifndef STREAMSPLAT_SPLAT_PROJECT_H_
#define STREAMSPLAT_SPLAT_PROJECT_H_

#include "splat_math.h"

namespace streamsplat {

// Inputs of one render. Arrays are C-contiguous; world axes: x right, y depth, z up.
struct SplatInput {
  const float* means;    // [count][3] x, depth, z
  const float* scales;   // [count][3] standard deviations in world units
  const float* opacity;  // [count]
  const float* rgb;      // [count][3]
  const float* quats;    // [count][4] w, x, y, z, not normalised; null = identity
  int64_t count;
};

// View transform p_view = rotation * p_world + translation; view axes: x right, y down, z depth.
struct ViewInput {
  float rotation[9];  // row-major
  float translation[3];
};

enum class Extent { kPublished = 0, kFull = 1 };

// What becomes of a Gaussian. kVisible is provisional until its box is known: where that is empty it is kOutside.
enum class Fate : uint8_t { kVisible, kInvalid, kBehind, kTransparent, kOutside };

enum class DepthMapping { kPublished = 0, kPaper = 1 };

// Columns of a key frame's Gaussians as `encode` gives them. y is normalised inverse depth; the missing scale along it
// is the mean of the others.
enum GaussianColumn { kX, kY, kZ, kRed, kGreen, kBlue, kScaleX, kScaleZ, kOpacity, kGaussianColumns };

// NaN and infinity are the only values v with v * 0 != 0; a sum of such products is 0 only if all are finite.
SS_HD bool all_finite(const SplatInput& in, int64_t i) {
  const float* m = in.means + 3 * i;
  const float* s = in.scales + 3 * i;
  const float* c = in.rgb + 3 * i;
  float sum = (m[0] * 0.0f + m[1] * 0.0f + m[2] * 0.0f) + (s[0] * 0.0f + s[1] * 0.0f + s[2] * 0.0f) +
              (c[0] * 0.0f + c[1] * 0.0f + c[2] * 0.0f) + in.opacity[i] * 0.0f;
  if (in.quats != nullptr)
    for (int k = 0; k < 4; ++k) sum += in.quats[4 * i + k] * 0.0f;
  return sum == 0.0f;
}

// A Gaussian in view space. Covariance [a b; b c] in px^2 with the low-pass; the exponent is written as in
// raster_cpu_kernel.h: half_inv_x = c / (2 det), half_inv_y = 1 / (2 c), shear = -b / c.
struct SplatShape {
  float u, v, depth;  // normalised device coordinates and view depth
  float a, c, det;
  float half_inv_x, half_inv_y, shear;
};

// Axis-aligned in the canonical view: the covariance is diagonal and the exponent separates into x and y.
struct CanonicalShape {
  float a, c, half_inv_x, half_inv_y;
};
SS_HD CanonicalShape canonical_shape(float scale_x, float scale_z, float focal_x, float focal_y) {
  float sigma_x = fabsf(scale_x * focal_x), sigma_y = fabsf(scale_z * focal_y);
  sigma_x = sigma_x < kSigmaMax ? sigma_x : kSigmaMax;
  sigma_y = sigma_y < kSigmaMax ? sigma_y : kSigmaMax;
  CanonicalShape s;
  s.a = sigma_x * sigma_x + kLowPass;
  s.c = sigma_y * sigma_y + kLowPass;
  s.half_inv_x = 0.5f / s.a;
  s.half_inv_y = 0.5f / s.c;
  return s;
}

// The fate of a Gaussian in the canonical view, up to its place.
SS_HD Fate canonical_fate(const SplatInput& in, int64_t i) {
  if (!all_finite(in, i)) return Fate::kInvalid;
  if (in.means[3 * i + 1] <= 0.0f) return Fate::kBehind;
  return in.opacity[i] < kAlphaMin ? Fate::kTransparent : Fate::kVisible;
}

// Rows 0 and 1 of the view rotation in pixels per world unit.
SS_HD void view_jacobian(const float* rotation, int width, int height, double jacobian[2][3]) {
  for (int k = 0; k < 3; ++k) {
    jacobian[0][k] = 0.5 * width * static_cast<double>(rotation[k]);
    jacobian[1][k] = 0.5 * height * static_cast<double>(rotation[3 + k]);
  }
}

struct Covariance2d {
  double a, b, c, det;
};

// J W R S (2x3, columns scaled by s) times its transpose plus the low-pass. The determinant is the sum of the squared
// 2x2 minors (Cauchy-Binet) plus the low-pass terms: positive by construction, where a*c - b*b would cancel to noise
// for needle-shaped Gaussians.
SS_HD Covariance2d covariance(const double rows[2][3], const double scale[3]) {
  const double low_pass = static_cast<double>(kLowPass);
  double aa = 0.0, bb = 0.0, cc = 0.0, minors = 0.0;
  for (int k = 0; k < 3; ++k) {
    const double s2 = scale[k] * scale[k];
    aa += rows[0][k] * rows[0][k] * s2;
    bb += rows[0][k] * rows[1][k] * s2;
    cc += rows[1][k] * rows[1][k] * s2;
    const int j = (k + 1) % 3;
    const double minor = (rows[0][k] * rows[1][j] - rows[0][j] * rows[1][k]) * scale[k] * scale[j];
    minors += minor * minor;
  }
  return {aa + low_pass, bb, cc + low_pass, minors + low_pass * (aa + cc) + low_pass * low_pass};
}

// Rotation matrix of a quaternion (w, x, y, z) taken as it is: the published rasterizer does not normalise it.
SS_HD void rotation_of(const float* quat, double r[3][3]) {
  const double w = quat[0], x = quat[1], y = quat[2], z = quat[3];
  r[0][0] = 1.0 - 2.0 * (y * y + z * z);
  r[0][1] = 2.0 * (x * y - w * z);
  r[0][2] = 2.0 * (x * z + w * y);
  r[1][0] = 2.0 * (x * y + w * z);
  r[1][1] = 1.0 - 2.0 * (x * x + z * z);
  r[1][2] = 2.0 * (y * z - w * x);
  r[2][0] = 2.0 * (x * z - w * y);
  r[2][1] = 2.0 * (y * z + w * x);
  r[2][2] = 1.0 - 2.0 * (x * x + y * y);
}

// Any rotation and view, in float64: three products of rotations and scales span too wide a range for float32. Writes
// the shape where the fate is kVisible.
SS_HD Fate general_shape(const double jacobian[2][3], const ViewInput& view, const SplatInput& in, int64_t i,
                         SplatShape* shape) {
  if (!all_finite(in, i)) return Fate::kInvalid;
  const float* mean = in.means + 3 * i;
  const float* turn = view.rotation;
  double position[3];
  for (int r = 0; r < 3; ++r)
    position[r] = static_cast<double>(turn[3 * r]) * mean[0] + static_cast<double>(turn[3 * r + 1]) * mean[1] +
                  static_cast<double>(turn[3 * r + 2]) * mean[2] + view.translation[r];
  const float depth = static_cast<float>(position[2]);
  double rows[2][3], scale[3];
  for (int n = 0; n < 2; ++n)
    for (int k = 0; k < 3; ++k) rows[n][k] = jacobian[n][k];
  if (in.quats != nullptr) {
    double r[3][3];
    rotation_of(in.quats + 4 * i, r);
    for (int n = 0; n < 2; ++n)
      for (int k = 0; k < 3; ++k)
        rows[n][k] = jacobian[n][0] * r[0][k] + jacobian[n][1] * r[1][k] + jacobian[n][2] * r[2][k];
  }
  for (int k = 0; k < 3; ++k) scale[k] = in.scales[3 * i + k];
  const Covariance2d cov = covariance(rows, scale);
  // Not finite: quaternion or view beyond what float64 holds.
  if (!(depth * 0.0f == 0.0f) || !(cov.det * 0.0 == 0.0)) return Fate::kInvalid;
  if (depth <= 0.0f) return Fate::kBehind;
  if (in.opacity[i] < kAlphaMin) return Fate::kTransparent;
  constexpr double kVarianceMax = static_cast<double>(kSigmaMax) * static_cast<double>(kSigmaMax);
  shape->u = static_cast<float>(position[0]);
  shape->v = static_cast<float>(position[1]);
  shape->depth = depth;
  shape->half_inv_x = static_cast<float>(0.5 * cov.c / cov.det);
  shape->half_inv_y = static_cast<float>(0.5 / cov.c);
  shape->shear = static_cast<float>(-cov.b / cov.c);
  shape->a = static_cast<float>(cov.a < kVarianceMax ? cov.a : kVarianceMax);
  shape->c = static_cast<float>(cov.c < kVarianceMax ? cov.c : kVarianceMax);
  const double det_max = static_cast<double>(shape->a) * static_cast<double>(shape->c);
  shape->det = static_cast<float>(cov.det < det_max ? cov.det : det_max);
  return Fate::kVisible;
}

// Pixels that can reach alpha 1/255, half-open, inside the image; empty where a begin is not below its end.
struct PixelBox {
  int x0, x1, y0, y1;
};

// `opacity` limited to kOpacityMax; x, y is the centre in pixels.
SS_HD PixelBox support_box(float x, float y, float opacity, float a, float c, float width, float height) {
  const float reach = 2.0f * log255_upper(opacity);
  const float half_x = support_half(a, reach);
  const float half_y = support_half(c, reach);
  PixelBox box;
  box.x0 = clamp_to_int(x - half_x, width);
  box.x1 = clamp_to_int(x + half_x + 1.0f, width);
  box.y0 = clamp_to_int(y - half_y, height);
  box.y1 = clamp_to_int(y + half_y + 1.0f, height);
  return box;
}

// Published extent: limits the box to the tiles that 3 sigma touch and returns how many those are.
SS_HD int limit_to_tiles(float x, float y, float a, float c, float det, int tiles_x, int tiles_y, PixelBox* box) {
  const float radius = splat_radius(a, c, det);
  const int x0 = tile_begin(x, radius, tiles_x), x1 = tile_end(x, radius, tiles_x);
  const int y0 = tile_begin(y, radius, tiles_y), y1 = tile_end(y, radius, tiles_y);
  box->x0 = larger(box->x0, x0 * kTile);
  box->x1 = smaller(box->x1, x1 * kTile);
  box->y0 = larger(box->y0, y0 * kTile);
  box->y1 = smaller(box->y1, y1 * kTile);
  return larger(x1 - x0, 0) * larger(y1 - y0, 0);
}

// Full extent: the tiles of the box.
SS_HD int tiles_of_box(const PixelBox& box) {
  const int columns = (box.x1 + kTile - 1) / kTile - box.x0 / kTile;
  const int rows = (box.y1 + kTile - 1) / kTile - box.y0 / kTile;
  return box.x0 >= box.x1 || box.y0 >= box.y1 ? 0 : columns * rows;
}

// A Gaussian of a key frame at a time of the pair (REFERENCE.md section 2): gaussian by `GaussianColumn`; motion x, y,
// z; dt = t - anchor. Writes mean (x, depth, z), scale and opacity.
//
// The fade is sigmoid(-g0 (|dt| - g1)) / sigmoid(g0 g1) = (1 + power[0]) / (1 + power[1]), so exactly 1 at dt = 0, with
// `power` = exp(-g0 g1) and exp(g0 (|dt| - g1)), arguments limited by kFadeExponentMax. The limit hides a NaN or
// infinite gamma; 0 * gamma brings it back.
SS_HD void gaussian_at(const float* gaussian, const float* motion, const float* gamma, const float power[2], float dt,
                       DepthMapping mapping, float* mean, float* scale, float* opacity) {
  const float y = gaussian[kY] + motion[1] * dt;
  mean[0] = gaussian[kX] + motion[0] * dt;
  mean[1] = mapping == DepthMapping::kPublished ? published_depth(y) : paper_depth(y);
  mean[2] = gaussian[kZ] + motion[2] * dt;
  scale[0] = gaussian[kScaleX];
  scale[1] = 0.5f * (gaussian[kScaleX] + gaussian[kScaleZ]);
  scale[2] = gaussian[kScaleZ];
  *opacity = gaussian[kOpacity] * ((1.0f + power[0]) / (1.0f + power[1])) + 0.0f * gamma[0] + 0.0f * gamma[1];
}

// The exponents that `power` above is taken of; |dt| is the age.
SS_HD float fade_exponent(const float* gamma, float age) { return gamma[0] * (age - gamma[1]); }

}  // namespace streamsplat

#endif  // STREAMSPLAT_SPLAT_PROJECT_H_
