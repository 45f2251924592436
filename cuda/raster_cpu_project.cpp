#include "raster_cpu_project.h"

#include <math.h>

#include <algorithm>

namespace streamsplat {
namespace {

// Harmless values for a Gaussian that is culled already, because `place` computes the whole batch.
void neutralise(ProjectBatch& batch, int j, Fate fate) {
  batch.fate[j] = fate;
  batch.u[j] = batch.v[j] = batch.shear[j] = 0.0f;
  batch.depth[j] = batch.opacity[j] = batch.a[j] = batch.c[j] = batch.det[j] = 1.0f;
}

// Why a Gaussian of the batch is not rendered; one that is in front of the camera and opaque enough lies outside.
void count_culled(Fate fate, RasterStats* stats) {
  stats->culled_invalid += fate == Fate::kInvalid;
  stats->culled_behind += fate == Fate::kBehind;
  stats->culled_transparent += fate == Fate::kTransparent;
  stats->culled_outside += fate == Fate::kVisible;
}

void add(const RasterStats& part, RasterStats* sum) {
  sum->rendered += part.rendered;
  sum->culled_invalid += part.culled_invalid;
  sum->culled_behind += part.culled_behind;
  sum->culled_transparent += part.culled_transparent;
  sum->culled_outside += part.culled_outside;
  sum->pairs += part.pairs;
  sum->binned_pairs += part.binned_pairs;
}

void store(const ProjectBatch& batch, int j, const float* rgb, Splat* splat) {
  splat->x = batch.x[j];
  splat->y = batch.y[j];
  splat->half_inv_x = batch.half_inv_x[j];
  splat->half_inv_y = batch.half_inv_y[j];
  splat->shear = batch.shear[j];
  splat->opacity = batch.opacity[j];
  splat->r = rgb[0];
  splat->g = rgb[1];
  splat->b = rgb[2];
  splat->depth = batch.depth[j];
  splat->box_x0 = static_cast<std::int16_t>(batch.x0[j]);
  splat->box_x1 = static_cast<std::int16_t>(batch.x1[j]);
  splat->box_y0 = static_cast<std::int16_t>(batch.y0[j]);
  splat->box_y1 = static_cast<std::int16_t>(batch.y1[j]);
}

TileRect tiles_of(const Splat& splat) {
  const auto begin = [](int pixel) { return static_cast<std::int16_t>(pixel / kTile); };
  const auto end = [](int pixel) { return static_cast<std::int16_t>((pixel + kTile - 1) / kTile); };
  return {begin(splat.box_x0), begin(splat.box_y0), end(splat.box_x1), end(splat.box_y1)};
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
    const Fate fate = canonical_fate(in, i);
    if (fate != Fate::kVisible) neutralise(batch, j, fate);
  }
  const float focal_x = 0.5f * static_cast<float>(p.width), focal_y = 0.5f * static_cast<float>(p.height);
  for (int j = 0; j < kProjectBatch; ++j) {
    const CanonicalShape s = canonical_shape(batch.a[j], batch.c[j], focal_x, focal_y);
    batch.a[j] = s.a;
    batch.c[j] = s.c;
    batch.det[j] = s.a * s.c;
    batch.half_inv_x[j] = s.half_inv_x;
    batch.half_inv_y[j] = s.half_inv_y;
    batch.shear[j] = 0.0f;
  }
}

void shape_general(const Projection& p, const SplatInput& in, std::int64_t first, int count, ProjectBatch& batch) {
  for (int j = 0; j < count; ++j) {
    const std::int64_t i = first + j;
    SplatShape s;
    const Fate fate = general_shape(p.jacobian, p.view, in, i, &s);
    if (fate != Fate::kVisible) {
      neutralise(batch, j, fate);
      continue;
    }
    batch.fate[j] = fate;
    batch.u[j] = s.u;
    batch.v[j] = s.v;
    batch.depth[j] = s.depth;
    batch.opacity[j] = in.opacity[i];
    batch.half_inv_x[j] = s.half_inv_x;
    batch.half_inv_y[j] = s.half_inv_y;
    batch.shear[j] = s.shear;
    batch.a[j] = s.a;
    batch.c[j] = s.c;
    batch.det[j] = s.det;
  }
}

void place(const Projection& p, ProjectBatch& batch) {
  const float width = static_cast<float>(p.width), height = static_cast<float>(p.height);
  const int width_i = p.width, height_i = p.height, tiles_x = p.tiles_x, tiles_y = p.tiles_y;
  for (int j = 0; j < kProjectBatch; ++j) {
    const float opacity = batch.opacity[j] < kOpacityMax ? batch.opacity[j] : kOpacityMax;
    const float x = ndc_to_pixel(batch.u[j] * kHomogeneous, width_i);
    const float y = ndc_to_pixel(batch.v[j] * kHomogeneous, height_i);
    const PixelBox box = support_box(x, y, opacity, batch.a[j], batch.c[j], width, height);
    batch.opacity[j] = opacity;
    batch.x[j] = x;
    batch.y[j] = y;
    batch.x0[j] = box.x0;
    batch.x1[j] = box.x1;
    batch.y0[j] = box.y0;
    batch.y1[j] = box.y1;
  }
  if (p.extent == Extent::kPublished) {
    for (int j = 0; j < kProjectBatch; ++j) {
      PixelBox box{batch.x0[j], batch.x1[j], batch.y0[j], batch.y1[j]};
      batch.pairs[j] =
          limit_to_tiles(batch.x[j], batch.y[j], batch.a[j], batch.c[j], batch.det[j], tiles_x, tiles_y, &box);
      batch.x0[j] = box.x0;
      batch.x1[j] = box.x1;
      batch.y0[j] = box.y0;
      batch.y1[j] = box.y1;
    }
  } else {
    for (int j = 0; j < kProjectBatch; ++j)
      batch.pairs[j] = tiles_of_box({batch.x0[j], batch.x1[j], batch.y0[j], batch.y1[j]});
  }
}

// Phase 1 of `RasterizerCpu::render`. Each block of Gaussians writes its keys from its own beginning on, in index
// order; then those of all blocks are moved together.
void RasterizerCpu::project(const SplatInput& splats, const ViewInput* view, Extent extent, RasterStats& stats) {
  Projection p;
  p.width = width_;
  p.height = height_;
  p.tiles_x = tiles_x_;
  p.tiles_y = tiles_y_;
  p.extent = extent;
  const bool canonical = view == nullptr && splats.quats == nullptr;
  p.view = view != nullptr ? *view : ViewInput{{1, 0, 0, 0, 0, -1, 0, 1, 0}, {0, 0, 0}};
  view_jacobian(p.view.rotation, width_, height_, p.jacobian);

  const std::int64_t count = splats.count;
  const int tasks = static_cast<int>((count + kProjectBlock - 1) / kProjectBlock);
  pool_->parallel_for(tasks, [&](int task) {
    // Scenes hold two key frames one after the other, each row by row. Blocks of both halves in turn give a thread the
    // part of the picture whose tiles it blends, so that splats mostly stay in its cache.
    const int block = task % 2 * ((tasks + 1) / 2) + task / 2;
    const std::int64_t begin = std::int64_t{block} * kProjectBlock;
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
          count_culled(batch.fate[j], &local);
          continue;
        }
        ++local.rendered;
        local.pairs += batch.pairs[j];
        // In the extent's tiles, but no pixel reaches alpha 1/255.
        if (batch.x0[j] >= batch.x1[j] || batch.y0[j] >= batch.y1[j]) continue;
        const std::size_t i = static_cast<std::size_t>(first + j);
        store(batch, j, splats.rgb + 3 * i, &splats_[i]);
        const TileRect rect = rects_[i] = tiles_of(splats_[i]);
        local.binned_pairs += std::int64_t{rect.x1 - rect.x0} * (rect.y1 - rect.y0);
        *key++ = depth_key(splats_[i].depth, static_cast<std::uint32_t>(i));
      }
    }
    blocks_[static_cast<std::size_t>(block)] = {key - (keys_.data() + begin), local};
  });

  visible_ = 0;
  for (int task = 0; task < tasks; ++task) {
    const Block& block = blocks_[static_cast<std::size_t>(task)];
    std::uint64_t* const from = keys_.data() + std::int64_t{task} * kProjectBlock;
    if (keys_.data() + visible_ != from) std::copy(from, from + block.visible, keys_.data() + visible_);
    visible_ += block.visible;
    add(block.stats, &stats);
  }
}

}  // namespace streamsplat
