// Differentiable CPU rasterizer for training: the canonical, axis-aligned view only.
//
// The forward pass computes what REFERENCE.md section 3 describes (constants in splat_math.h): splats sorted by depth,
// ties by index, binned into 16x16 tiles, blended front to back. The backward pass is the exact derivative of that
// computation with the order, the culling, the 1/255 and the 1e-4 decisions held fixed; the 0.99 clamp passes nothing.
//
// Phases, each parallel over images (enough images for the threads) or over the tiles of all images (too few):
//   prepare   project, cull, depth sort, tile lists, one task per image
//   blend     forward_tile / backward_tile (raster_grad_tile.inc), 16 pixels of a row per vector
//   gather    backward only: per-tile sums are added per Gaussian in tile order, then chained to the inputs
// The order of every addition is fixed, so the results are bit-identical whatever the number of threads.
#ifndef STREAMSPLAT_RASTER_GRAD_H_
#define STREAMSPLAT_RASTER_GRAD_H_

#include <cstdint>
#include <vector>

namespace streamsplat {

// A visible Gaussian in pixel units, in the order of blending.
struct GradSplat {
  float u, v;                  // centre
  float inv_var_x, inv_var_y;  // inverse of the low-passed variance, 1/px^2
  float opacity, r, g, b, depth;
  std::int16_t x0, x1, y0, y1;  // half-open pixel box: tile rectangle, image and alpha >= 1/255 intersected
  std::int32_t index;           // row in the caller's arrays
};

// What the backward pass needs of one image. Pixels are stored tile by tile, 256 each.
struct GradImage {
  std::vector<GradSplat> splats;           // sorted by depth, then index
  std::vector<std::int32_t> tile_begin;    // tiles + 1 offsets into `list`
  std::vector<std::int32_t> list;          // positions in `splats`
  std::vector<std::int32_t> tile_blended;  // how many entries of its list a tile looked at before all pixels stopped
  std::vector<float> transmittance;        // after blending
  std::vector<std::int32_t> stop;          // list position at which a pixel stopped; INT32_MAX if it never did
};

struct GradState {
  int batch = 0, count = 0, height = 0, width = 0, tiles_x = 0, tiles_y = 0;
  std::vector<GradImage> images;
};

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

// Fills `state` (its sizes batch, count, height, width must be set) and `out`.
void raster_grad_forward(const GradInputs& in, int threads, GradState* state, const GradOutputs& out);

// `in` must hold the values the forward pass saw.
void raster_grad_backward(const GradState& state, const GradInputs& in, const GradUpstream& upstream, int threads,
                          const GradResults& out);

}  // namespace streamsplat

#endif  // STREAMSPLAT_RASTER_GRAD_H_
