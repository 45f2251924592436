#include "raster_cpu_project.h"

#include <algorithm>
#include <cmath>

namespace streamsplat {
namespace {

struct Covariance2d {
  double a, b, c, det;
};

// J W R S (2x3, columns scaled by s) times its transpose plus the low-pass. The determinant is the sum of the squared
// 2x2 minors (Cauchy-Binet) plus the low-pass terms: positive by construction, where a*c - b*b would cancel to noise
// for needle-shaped Gaussians.
Covariance2d covariance(const double rows[2][3], const double scale[3]) {
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
void rotation_of(const float* quat, double r[3][3]) {
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

}  // namespace

Fate project_general(const Projection& p, const SplatInput& in, std::int64_t i, Splat& splat, TileRect& tiles,
                     std::int64_t& pairs) {
  const float* mean = in.means + 3 * i;
  const float* turn = p.view.rotation;
  double position[3];
  for (int r = 0; r < 3; ++r)
    position[r] = static_cast<double>(turn[3 * r]) * mean[0] + static_cast<double>(turn[3 * r + 1]) * mean[1] +
                  static_cast<double>(turn[3 * r + 2]) * mean[2] + p.view.translation[r];
  splat.depth = static_cast<float>(position[2]);
  if (!std::isfinite(splat.depth)) return Fate::kInvalid;
  if (splat.depth <= 0.0f) return Fate::kBehind;

  double rows[2][3], scale[3];
  std::copy(&p.jacobian[0][0], &p.jacobian[0][0] + 6, &rows[0][0]);
  if (in.quats != nullptr) {
    double r[3][3];
    rotation_of(in.quats + 4 * i, r);
    for (int j = 0; j < 2; ++j)
      for (int k = 0; k < 3; ++k)
        rows[j][k] = p.jacobian[j][0] * r[0][k] + p.jacobian[j][1] * r[1][k] + p.jacobian[j][2] * r[2][k];
  }
  for (int k = 0; k < 3; ++k) scale[k] = in.scales[3 * i + k];
  const Covariance2d cov = covariance(rows, scale);
  if (!std::isfinite(cov.det)) return Fate::kInvalid;  // quaternion or view beyond what float64 holds

  splat.x = ndc_to_pixel(static_cast<float>(position[0]) * kHomogeneous, p.width);
  splat.y = ndc_to_pixel(static_cast<float>(position[1]) * kHomogeneous, p.height);
  splat.half_inv_x = static_cast<float>(0.5 * cov.c / cov.det);
  splat.half_inv_y = static_cast<float>(0.5 / cov.c);
  splat.shear = static_cast<float>(-cov.b / cov.c);
  constexpr double kVarianceMax = static_cast<double>(kSigmaMax) * static_cast<double>(kSigmaMax);
  const float a = static_cast<float>(std::min(cov.a, kVarianceMax));
  const float c = static_cast<float>(std::min(cov.c, kVarianceMax));
  const double det = std::min(cov.det, static_cast<double>(a) * static_cast<double>(c));
  return place(p, a, c, splat_radius(a, c, static_cast<float>(det)), splat, tiles, pairs);
}

void RasterizerCpu::project(const SplatInput& splats, const ViewInput* view, Extent extent, RasterStats& stats) {
  Projection p;
  p.width = width_;
  p.height = height_;
  p.tiles_x = tiles_x_;
  p.tiles_y = tiles_y_;
  p.extent = extent;
  const bool canonical = view == nullptr && splats.quats == nullptr;
  p.view = view != nullptr ? *view : ViewInput{{1, 0, 0, 0, 0, -1, 0, 1, 0}, {0, 0, 0}};
  for (int k = 0; k < 3; ++k) {
    p.jacobian[0][k] = 0.5 * width_ * static_cast<double>(p.view.rotation[k]);
    p.jacobian[1][k] = 0.5 * height_ * static_cast<double>(p.view.rotation[3 + k]);
  }

  const std::int64_t count = splats.count;
  const int tasks = static_cast<int>((count + kProjectBlock - 1) / kProjectBlock);
  pool_->parallel_for(tasks, [&](int task) {
    const std::int64_t begin = std::int64_t{task} * kProjectBlock;
    const std::int64_t end = std::min(begin + kProjectBlock, count);
    RasterStats local;
    std::uint64_t* key = keys_.data() + begin;
    for (std::int64_t i = begin; i < end; ++i) {
      if (!all_finite(splats, i)) {
        ++local.culled_invalid;
        continue;
      }
      if (canonical && splats.means[3 * i + 1] <= 0.0f) {
        ++local.culled_behind;
        continue;
      }
      Splat& splat = splats_[static_cast<std::size_t>(i)];  // scratch unless the Gaussian turns out visible
      TileRect& tiles = rects_[static_cast<std::size_t>(i)];
      std::int64_t pairs = 0;
      splat.opacity = std::min(splats.opacity[i], kOpacityMax);
      const bool transparent = splat.opacity < kAlphaMin;
      if (canonical && transparent) {
        ++local.culled_transparent;
        continue;
      }
      const Fate fate = canonical ? project_canonical(p, splats, i, splat, tiles, pairs)
                                  : project_general(p, splats, i, splat, tiles, pairs);
      if (fate == Fate::kInvalid) {
        ++local.culled_invalid;
      } else if (fate == Fate::kBehind) {
        ++local.culled_behind;
      } else if (transparent) {
        ++local.culled_transparent;
      } else if (fate == Fate::kOutside) {
        ++local.culled_outside;
      } else {
        ++local.rendered;
        local.pairs += pairs;
        if (fate == Fate::kUntouched) continue;  // inside the rectangle, but no pixel reaches alpha 1/255
        local.binned_pairs += std::int64_t{tiles.x1 - tiles.x0} * (tiles.y1 - tiles.y0);
        std::memcpy(&splat.r, splats.rgb + 3 * i, 3 * sizeof(float));
        std::uint32_t depth_bits;  // positive floats order like their bits
        std::memcpy(&depth_bits, &splat.depth, sizeof depth_bits);
        *key++ = (std::uint64_t{depth_bits} << 32) | static_cast<std::uint64_t>(i);
      }
    }
    blocks_[static_cast<std::size_t>(task)] = {key - (keys_.data() + begin), local};
  });

  visible_ = 0;
  for (int task = 0; task < tasks; ++task) {
    const Block& block = blocks_[static_cast<std::size_t>(task)];
    std::uint64_t* const from = keys_.data() + std::int64_t{task} * kProjectBlock;
    if (keys_.data() + visible_ != from) std::copy(from, from + block.visible, keys_.data() + visible_);
    visible_ += block.visible;
    stats.rendered += block.stats.rendered;
    stats.culled_invalid += block.stats.culled_invalid;
    stats.culled_behind += block.stats.culled_behind;
    stats.culled_transparent += block.stats.culled_transparent;
    stats.culled_outside += block.stats.culled_outside;
    stats.pairs += block.stats.pairs;
    stats.binned_pairs += block.stats.binned_pairs;
  }
}

}  // namespace streamsplat
