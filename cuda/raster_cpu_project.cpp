#include "raster_cpu_project.h"

#include <math.h>

#include <algorithm>
#include <cmath>
#include <cstring>

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

// Harmless values for a Gaussian that is culled already, because `place` computes the whole batch.
void neutralise(ProjectBatch& batch, int j, Fate fate) {
  batch.fate[j] = fate;
  batch.u[j] = batch.v[j] = batch.shear[j] = 0.0f;
  batch.depth[j] = batch.opacity[j] = batch.a[j] = batch.c[j] = batch.det[j] = 1.0f;
}

}  // namespace

void shape_canonical(const Projection& p, const SplatInput& in, std::int64_t first, int count, ProjectBatch& batch) {
  for (int j = 0; j < count; ++j) {
    const std::int64_t i = first + j;
    const float* mean = in.means + 3 * i;
    const float opacity = in.opacity[i];
    batch.u[j] = mean[0];
    batch.v[j] = -mean[2];
    batch.depth[j] = mean[1];
    batch.opacity[j] = opacity;
    batch.a[j] = in.scales[3 * i];
    batch.c[j] = in.scales[3 * i + 2];
    batch.fate[j] = Fate::kVisible;
    if (!all_finite(in, i))
      neutralise(batch, j, Fate::kInvalid);
    else if (mean[1] <= 0.0f)
      neutralise(batch, j, Fate::kBehind);
    else if (opacity < kAlphaMin)
      neutralise(batch, j, Fate::kTransparent);
  }
  const float focal_x = 0.5f * static_cast<float>(p.width), focal_y = 0.5f * static_cast<float>(p.height);
  for (int j = 0; j < kProjectBatch; ++j) {
    float sigma_x = fabsf(batch.a[j] * focal_x), sigma_y = fabsf(batch.c[j] * focal_y);
    sigma_x = sigma_x < kSigmaMax ? sigma_x : kSigmaMax;
    sigma_y = sigma_y < kSigmaMax ? sigma_y : kSigmaMax;
    const float a = sigma_x * sigma_x + kLowPass, c = sigma_y * sigma_y + kLowPass;
    batch.a[j] = a;
    batch.c[j] = c;
    batch.det[j] = a * c;
    batch.half_inv_x[j] = 0.5f / a;
    batch.half_inv_y[j] = 0.5f / c;
    batch.shear[j] = 0.0f;
  }
}

void shape_general(const Projection& p, const SplatInput& in, std::int64_t first, int count, ProjectBatch& batch) {
  const float* turn = p.view.rotation;
  for (int j = 0; j < count; ++j) {
    const std::int64_t i = first + j;
    if (!all_finite(in, i)) {
      neutralise(batch, j, Fate::kInvalid);
      continue;
    }
    const float* mean = in.means + 3 * i;
    double position[3];
    for (int r = 0; r < 3; ++r)
      position[r] = static_cast<double>(turn[3 * r]) * mean[0] + static_cast<double>(turn[3 * r + 1]) * mean[1] +
                    static_cast<double>(turn[3 * r + 2]) * mean[2] + p.view.translation[r];
    const float depth = static_cast<float>(position[2]);
    double rows[2][3], scale[3];
    std::copy(&p.jacobian[0][0], &p.jacobian[0][0] + 6, &rows[0][0]);
    if (in.quats != nullptr) {
      double r[3][3];
      rotation_of(in.quats + 4 * i, r);
      for (int n = 0; n < 2; ++n)
        for (int k = 0; k < 3; ++k)
          rows[n][k] = p.jacobian[n][0] * r[0][k] + p.jacobian[n][1] * r[1][k] + p.jacobian[n][2] * r[2][k];
    }
    for (int k = 0; k < 3; ++k) scale[k] = in.scales[3 * i + k];
    const Covariance2d cov = covariance(rows, scale);
    if (!std::isfinite(depth) || !std::isfinite(cov.det)) {
      neutralise(batch, j, Fate::kInvalid);  // quaternion or view beyond what float64 holds
      continue;
    }
    if (depth <= 0.0f || in.opacity[i] < kAlphaMin) {
      neutralise(batch, j, depth <= 0.0f ? Fate::kBehind : Fate::kTransparent);
      continue;
    }
    constexpr double kVarianceMax = static_cast<double>(kSigmaMax) * static_cast<double>(kSigmaMax);
    batch.fate[j] = Fate::kVisible;
    batch.u[j] = static_cast<float>(position[0]);
    batch.v[j] = static_cast<float>(position[1]);
    batch.depth[j] = depth;
    batch.opacity[j] = in.opacity[i];
    batch.half_inv_x[j] = static_cast<float>(0.5 * cov.c / cov.det);
    batch.half_inv_y[j] = static_cast<float>(0.5 / cov.c);
    batch.shear[j] = static_cast<float>(-cov.b / cov.c);
    batch.a[j] = static_cast<float>(std::min(cov.a, kVarianceMax));
    batch.c[j] = static_cast<float>(std::min(cov.c, kVarianceMax));
    const double det_max = static_cast<double>(batch.a[j]) * static_cast<double>(batch.c[j]);
    batch.det[j] = static_cast<float>(std::min(cov.det, det_max));
  }
}

void place(const Projection& p, ProjectBatch& batch) {
  const float width = static_cast<float>(p.width), height = static_cast<float>(p.height);
  const int width_i = p.width, height_i = p.height, tiles_x = p.tiles_x, tiles_y = p.tiles_y;
  for (int j = 0; j < kProjectBatch; ++j) {
    const float opacity = batch.opacity[j] < kOpacityMax ? batch.opacity[j] : kOpacityMax;
    const float x = ndc_to_pixel(batch.u[j] * kHomogeneous, width_i);
    const float y = ndc_to_pixel(batch.v[j] * kHomogeneous, height_i);
    const float reach = 2.0f * log255_upper(opacity);
    const float half_x = support_half(batch.a[j], reach);
    const float half_y = support_half(batch.c[j], reach);
    batch.opacity[j] = opacity;
    batch.x[j] = x;
    batch.y[j] = y;
    batch.x0[j] = clamp_to_int(x - half_x, width);
    batch.x1[j] = clamp_to_int(x + half_x + 1.0f, width);
    batch.y0[j] = clamp_to_int(y - half_y, height);
    batch.y1[j] = clamp_to_int(y + half_y + 1.0f, height);
  }
  if (p.extent == Extent::kPublished) {
    for (int j = 0; j < kProjectBatch; ++j) {
      const float radius = splat_radius(batch.a[j], batch.c[j], batch.det[j]);
      const int rx0 = tile_begin(batch.x[j], radius, tiles_x), rx1 = tile_end(batch.x[j], radius, tiles_x);
      const int ry0 = tile_begin(batch.y[j], radius, tiles_y), ry1 = tile_end(batch.y[j], radius, tiles_y);
      batch.pairs[j] = std::max(rx1 - rx0, 0) * std::max(ry1 - ry0, 0);
      batch.x0[j] = std::max(batch.x0[j], rx0 * kTile);
      batch.x1[j] = std::min(batch.x1[j], rx1 * kTile);
      batch.y0[j] = std::max(batch.y0[j], ry0 * kTile);
      batch.y1[j] = std::min(batch.y1[j], ry1 * kTile);
    }
  } else {
    for (int j = 0; j < kProjectBatch; ++j) {
      const int columns = (batch.x1[j] + kTile - 1) / kTile - batch.x0[j] / kTile;
      const int rows = (batch.y1[j] + kTile - 1) / kTile - batch.y0[j] / kTile;
      const bool empty = batch.x0[j] >= batch.x1[j] || batch.y0[j] >= batch.y1[j];
      batch.pairs[j] = empty ? 0 : columns * rows;
    }
  }
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
    ProjectBatch batch;
    for (std::int64_t first = begin; first < end; first += kProjectBatch) {
      const int members = static_cast<int>(std::min<std::int64_t>(kProjectBatch, end - first));
      for (int j = members; j < kProjectBatch; ++j) neutralise(batch, j, Fate::kInvalid);
      if (canonical)
        shape_canonical(p, splats, first, members, batch);
      else
        shape_general(p, splats, first, members, batch);
      place(p, batch);
      for (int j = 0; j < members; ++j) {
        if (batch.fate[j] != Fate::kVisible || batch.pairs[j] == 0) {
          local.culled_invalid += batch.fate[j] == Fate::kInvalid;
          local.culled_behind += batch.fate[j] == Fate::kBehind;
          local.culled_transparent += batch.fate[j] == Fate::kTransparent;
          local.culled_outside += batch.fate[j] == Fate::kVisible;
          continue;
        }
        ++local.rendered;
        local.pairs += batch.pairs[j];
        const int x0 = batch.x0[j], x1 = batch.x1[j], y0 = batch.y0[j], y1 = batch.y1[j];
        if (x0 >= x1 || y0 >= y1) continue;  // inside the rectangle, but no pixel reaches alpha 1/255
        const std::size_t i = static_cast<std::size_t>(first + j);
        Splat& splat = splats_[i];
        splat.x = batch.x[j];
        splat.y = batch.y[j];
        splat.half_inv_x = batch.half_inv_x[j];
        splat.half_inv_y = batch.half_inv_y[j];
        splat.shear = batch.shear[j];
        splat.opacity = batch.opacity[j];
        splat.depth = batch.depth[j];
        std::memcpy(&splat.r, splats.rgb + 3 * i, 3 * sizeof(float));
        splat.box_x0 = static_cast<std::int16_t>(x0);
        splat.box_x1 = static_cast<std::int16_t>(x1);
        splat.box_y0 = static_cast<std::int16_t>(y0);
        splat.box_y1 = static_cast<std::int16_t>(y1);
        const int tx0 = x0 / kTile, tx1 = (x1 + kTile - 1) / kTile, ty0 = y0 / kTile, ty1 = (y1 + kTile - 1) / kTile;
        rects_[i] = {static_cast<std::int16_t>(tx0), static_cast<std::int16_t>(ty0), static_cast<std::int16_t>(tx1),
                     static_cast<std::int16_t>(ty1)};
        local.binned_pairs += std::int64_t{tx1 - tx0} * (ty1 - ty0);
        std::uint32_t depth_bits;  // positive floats order like their bits
        std::memcpy(&depth_bits, &splat.depth, sizeof depth_bits);
        *key++ = (std::uint64_t{depth_bits} << 32) | i;
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
