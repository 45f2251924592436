// Kernels of the CUDA version of the differentiable rasterizer: the semantics of raster_grad.h, tiles of 16x16 pixels.
//
//   project   a thread per Gaussian: its splat, and how many tiles it touches (then summed up: where its pairs go)
//   list      a thread per Gaussian: one pair (tile and depth, row) per tile (then sorted: stable, so ties go by row)
//   range     a thread per pair: where the list of a tile begins and ends
//   blend     a block per tile, a thread per pixel: front to back
//   unblend   the same, back to front: nine sums over the pixels of a tile for every pair
//   finish    a thread per Gaussian: adds up its pairs and chains the sums to the inputs
//
// There are no atomics: the pairs of a Gaussian have consecutive places (pair_begin), which depend on nothing but the
// inputs, and every sum has one order. Results are the same bits in every run on the same device.
//
// Compiled without contraction (-fmad=false) like the C++ version, so that both cull the same Gaussians and cut them at
// the same tiles; fused operations are written out.
#ifndef STREAMSPLAT_RASTER_GRAD_KERNELS_CUH_
#define STREAMSPLAT_RASTER_GRAD_KERNELS_CUH_

#include "raster_grad_cuda.h"
#include "raster_grad_math.h"

namespace streamsplat {

// A projected Gaussian; read as three 16-byte words. Where the box is empty it is culled.
struct alignas(16) GradSplat {
  float x, y;  // centre in pixels
  float half_inv_x, half_inv_y;
  float opacity, r, g, b;
  float depth;
  int16_t box_x0, box_x1, box_y0, box_y1;  // pixels that can reach alpha 1/255, half-open, inside the image
  uint32_t pair_begin;                     // place of its first pair; the others follow row by row of tiles
};
static_assert(sizeof(GradSplat) == kGradSplatBytes, "the caller allocates splats");

constexpr int kWarp = 32;
constexpr int kBlock = kTile * kTile;
constexpr int kWarps = kBlock / kWarp;
constexpr unsigned kAllLanes = 0xFFFFFFFFu;

// A warp takes a patch of 8x4 pixels: a small Gaussian then misses more warps of its tile than it would miss strips.
constexpr int kPatchWidth = 8;
constexpr int kPatchHeight = 4;
static_assert(kPatchWidth * kPatchHeight == kWarp && kTile % kPatchWidth == 0 && kTile % kPatchHeight == 0,
              "patches of a warp tile the tile");

// Entries taken at a time by unblend: 32 * 8 warps * 9 sums = 9 KB of shared memory, which leaves room for several
// blocks on every multiprocessor.
constexpr int kUnblendBatch = 32;

SS_HD int tiles_x(const GradShape& shape) { return (shape.width + kTile - 1) / kTile; }
SS_HD int tiles_y(const GradShape& shape) { return (shape.height + kTile - 1) / kTile; }

// Tiles that a box touches.
struct TileBox {
  int x0, y0, columns, rows;
};
SS_HD TileBox tile_box(const GradSplat& s) {
  if (s.box_x0 == s.box_x1) return {0, 0, 0, 0};
  const int x0 = s.box_x0 / kTile, y0 = s.box_y0 / kTile;
  return {x0, y0, (s.box_x1 - 1) / kTile + 1 - x0, (s.box_y1 - 1) / kTile + 1 - y0};
}

// The arithmetic of `place` in raster_cpu_project.cpp for one Gaussian.
SS_HD GradSplat project_one(const GradShape& shape, const GradInputs& in, int64_t row) {
  GradSplat s{};
  if (!can_be_seen(in, row)) return s;
  const float a = pixel_variance(in.scale[2 * row], shape.width);
  const float c = pixel_variance(in.scale[2 * row + 1], shape.height);
  const float width = static_cast<float>(shape.width), height = static_cast<float>(shape.height);
  s.x = ndc_to_pixel(in.xz[2 * row] * kHomogeneous, shape.width);
  s.y = ndc_to_pixel(-in.xz[2 * row + 1] * kHomogeneous, shape.height);
  s.half_inv_x = 0.5f / a;
  s.half_inv_y = 0.5f / c;
  s.opacity = in.opacity[row] < kOpacityMax ? in.opacity[row] : kOpacityMax;
  s.r = in.rgb[3 * row];
  s.g = in.rgb[3 * row + 1];
  s.b = in.rgb[3 * row + 2];
  s.depth = in.depth[row];
  const float reach = 2.0f * log255_upper(s.opacity), radius = splat_radius(a, c, a * c);
  const float half_x = support_half(a, reach), half_y = support_half(c, reach);
  const int columns = tiles_x(shape), rows = tiles_y(shape);
  const int x0 = larger(clamp_to_int(s.x - half_x, width), tile_begin(s.x, radius, columns) * kTile);
  const int x1 = smaller(clamp_to_int(s.x + half_x + 1.0f, width), tile_end(s.x, radius, columns) * kTile);
  const int y0 = larger(clamp_to_int(s.y - half_y, height), tile_begin(s.y, radius, rows) * kTile);
  const int y1 = smaller(clamp_to_int(s.y + half_y + 1.0f, height), tile_end(s.y, radius, rows) * kTile);
  if (x0 >= x1 || y0 >= y1) return s;
  s.box_x0 = static_cast<int16_t>(x0);
  s.box_x1 = static_cast<int16_t>(x1);
  s.box_y0 = static_cast<int16_t>(y0);
  s.box_y1 = static_cast<int16_t>(y1);
  return s;
}

// The last entry of `pairs` becomes 0: after the exclusive sum it holds the number of all pairs.
__global__ void __launch_bounds__(kBlock)
    project_kernel(GradShape shape, GradInputs in, GradSplat* splats, int64_t* pairs) {
  const int64_t row = int64_t{blockIdx.x} * kBlock + threadIdx.x, rows = int64_t{shape.batch} * shape.count;
  if (row > rows) return;
  if (row == rows) {
    pairs[row] = 0;
    return;
  }
  const GradSplat s = project_one(shape, in, row);
  const TileBox box = tile_box(s);
  splats[row] = s;
  pairs[row] = int64_t{box.columns} * box.rows;
}

__global__ void __launch_bounds__(kBlock)
    list_kernel(GradShape shape, const int64_t* pair_begin, GradSplat* splats, uint64_t* keys, int32_t* list) {
  const int64_t row = int64_t{blockIdx.x} * kBlock + threadIdx.x;
  if (row >= int64_t{shape.batch} * shape.count) return;
  const TileBox box = tile_box(splats[row]);
  const float depth = splats[row].depth;
  uint32_t depth_bits;  // positive floats order like their bits
  memcpy(&depth_bits, &depth, sizeof depth_bits);
  int64_t to = pair_begin[row];
  splats[row].pair_begin = static_cast<uint32_t>(to);
  const int64_t first_tile = row / shape.count * tiles_y(shape) * tiles_x(shape);
  for (int y = box.y0; y < box.y0 + box.rows; ++y) {
    for (int x = box.x0; x < box.x0 + box.columns; ++x, ++to) {
      const int64_t tile = first_tile + y * tiles_x(shape) + x;
      keys[to] = static_cast<uint64_t>(tile) << 32 | depth_bits;
      list[to] = static_cast<int32_t>(row);
    }
  }
}

__global__ void __launch_bounds__(kBlock) range_kernel(int64_t count, const uint64_t* keys, TileRange* ranges) {
  const int64_t i = int64_t{blockIdx.x} * kBlock + threadIdx.x;
  if (i >= count) return;
  const uint64_t tile = keys[i] >> 32;
  if (i == 0 || keys[i - 1] >> 32 != tile) ranges[tile].begin = static_cast<int32_t>(i);
  if (i == count - 1 || keys[i + 1] >> 32 != tile) ranges[tile].end = static_cast<int32_t>(i + 1);
}

// A thread's pixel, and the patch of its warp.
struct PixelPlace {
  int image, tile_x, tile_y;
  int x, y, patch_x, patch_y;
  bool inside;
  int64_t at;  // into [batch, height, width]
};

__device__ inline PixelPlace place_thread(const GradShape& shape) {
  const int columns = tiles_x(shape), tiles = columns * tiles_y(shape);
  const int tile = static_cast<int>(blockIdx.x), thread = static_cast<int>(threadIdx.x);
  const int warp = thread / kWarp, lane = thread % kWarp;
  constexpr int kPatches = kTile / kPatchWidth;  // side by side
  PixelPlace p;
  p.image = tile / tiles;
  p.tile_x = tile % tiles % columns;
  p.tile_y = tile % tiles / columns;
  p.patch_x = p.tile_x * kTile + warp % kPatches * kPatchWidth;
  p.patch_y = p.tile_y * kTile + warp / kPatches * kPatchHeight;
  p.x = p.patch_x + lane % kPatchWidth;
  p.y = p.patch_y + lane / kPatchWidth;
  p.inside = p.x < shape.width && p.y < shape.height;
  p.at = (int64_t{p.image} * shape.height + p.y) * shape.width + p.x;
  return p;
}

// The same for all threads of a warp.
SS_HD bool touches_patch(const GradSplat& s, const PixelPlace& p) {
  return s.box_x0 < p.patch_x + kPatchWidth && s.box_x1 > p.patch_x && s.box_y0 < p.patch_y + kPatchHeight &&
         s.box_y1 > p.patch_y;
}

// Opacity times the Gaussian at a distance. expf and not __expf: its error of 2 ulp is that of the C++ version.
SS_HD float unclamped_alpha(const GradSplat& s, float dx, float dy) {
  return s.opacity * expf(-fmaf(s.half_inv_x * dx, dx, s.half_inv_y * dy * dy));
}

__global__ void __launch_bounds__(kBlock)
    blend_kernel(GradShape shape, const float* background, GradSaved saved, GradOutputs out) {
  __shared__ GradSplat splats[kBlock];
  const PixelPlace p = place_thread(shape);
  const TileRange range = saved.ranges[blockIdx.x];
  const int thread = static_cast<int>(threadIdx.x);
  float t = 1.0f, r = 0.0f, g = 0.0f, b = 0.0f, d = 0.0f;
  int stop = range.end - range.begin;
  bool open = p.inside;
  for (int begin = range.begin; begin < range.end; begin += kBlock) {
    if (__syncthreads_count(open) == 0) break;  // also: all are done with the splats of the last round
    if (begin + thread < range.end) splats[thread] = saved.splats[saved.rows[begin + thread]];
    __syncthreads();
    const int count = smaller(kBlock, range.end - begin);
    for (int i = 0; open && i < count; ++i) {
      const GradSplat& s = splats[i];
      if (!touches_patch(s, p)) continue;
      const float raw = unclamped_alpha(s, s.x - static_cast<float>(p.x), s.y - static_cast<float>(p.y));
      if (!(raw >= kAlphaMin)) continue;
      const float weight = t * (raw < kAlphaMax ? raw : kAlphaMax);
      const float next = t - weight;
      if (next < kTransmittanceMin) {
        open = false;
        stop = begin - range.begin + i;
        break;
      }
      t = next;
      r = fmaf(weight, s.r, r);
      g = fmaf(weight, s.g, g);
      b = fmaf(weight, s.b, b);
      d = fmaf(weight, s.depth, d);
    }
  }
  if (!p.inside) return;
  const float* const behind = background + 3 * p.image;
  saved.transmittance[p.at] = t;
  saved.stop[p.at] = stop;
  out.rgb[3 * p.at] = r + t * behind[0];
  out.rgb[3 * p.at + 1] = g + t * behind[1];
  out.rgb[3 * p.at + 2] = b + t * behind[2];
  out.depth[p.at] = d;
  out.alpha[p.at] = 1.0f - t;  // the weights add up to 1 - T
}

// One step of sum_lanes: lanes with `Bit` set keep the upper half of v, the others the lower half, each plus what its
// partner had there.
template <int Half, int Bit>
__device__ inline void fold_lanes(float* v, int lane) {
  const bool upper = (lane & Bit) != 0;
#pragma unroll
  for (int k = 0; k < Half; ++k) {
    const float kept = upper ? v[k + Half] : v[k], given = upper ? v[k] : v[k + Half];
    v[k] = kept + __shfl_xor_sync(kAllLanes, given, Bit);
  }
}

// Sums nine values over a warp with 14 exchanges instead of 45, and stores them: after three folds every lane holds one
// of the first eight, number lane / 4.
__device__ inline void sum_lanes(float* v, int lane, float* to) {
  fold_lanes<4, 16>(v, lane);
  fold_lanes<2, 8>(v, lane);
  fold_lanes<1, 4>(v, lane);
  v[0] += __shfl_xor_sync(kAllLanes, v[0], 2);
  v[0] += __shfl_xor_sync(kAllLanes, v[0], 1);
#pragma unroll
  for (int bit = 16; bit > 0; bit /= 2) v[8] += __shfl_xor_sync(kAllLanes, v[8], bit);
  if (lane % 4 == 0) to[lane / 4] = v[0];
  if (lane == 1) to[8] = v[8];
}

// State of a pixel on the way back.
struct PixelBack {
  float t;           // transmittance behind the Gaussian that is looked at
  float rest;        // loss carried by everything behind it
  float r, g, b, d;  // upstream gradients of the blended planes
  int stop;
};

__device__ inline PixelBack begin_pixel(const PixelPlace& p, const float* background, const GradSaved& saved,
                                        const GradUpstream& upstream) {
  PixelBack at{};
  if (!p.inside) return at;
  const float* const behind = background + 3 * p.image;
  at.t = saved.transmittance[p.at];
  at.stop = saved.stop[p.at];
  at.r = upstream.rgb[3 * p.at];
  at.g = upstream.rgb[3 * p.at + 1];
  at.b = upstream.rgb[3 * p.at + 2];
  at.d = upstream.depth[p.at];
  // The final transmittance T carries the background, and alpha = 1 - T.
  at.rest = at.t * (at.r * behind[0] + at.g * behind[1] + at.b * behind[2] - upstream.alpha[p.at]);
  return at;
}

// Takes one blended Gaussian off a pixel and writes its nine terms. T_i = T_{i+1} / (1 - alpha_i).
__device__ inline void take_off(const GradSplat& s, float raw, float dx, float dy, PixelBack* at, float* v) {
  const float alpha = raw < kAlphaMax ? raw : kAlphaMax;
  const float inverse = 1.0f / (1.0f - alpha);
  at->t *= inverse;
  const float weight = at->t * alpha;
  const float value = fmaf(at->r, s.r, fmaf(at->g, s.g, fmaf(at->b, s.b, at->d * s.depth)));
  // dL/dalpha = T * value - rest / (1 - alpha); q = dL/dpower = alpha * dL/dalpha, nothing where alpha is clamped.
  const float grad = fmaf(-at->rest, inverse, at->t * value);
  const float q = raw < kAlphaMax ? alpha * grad : 0.0f;
  at->rest = fmaf(weight, value, at->rest);
  v[0] = q;
  v[1] = q * dx;
  v[2] = q * dx * dx;
  v[3] = q * dy;
  v[4] = q * dy * dy;
  v[5] = weight * at->r;
  v[6] = weight * at->g;
  v[7] = weight * at->b;
  v[8] = weight * at->d;
}

// Writes the sums of every pair of the tile, zeros where it adds nothing.
__global__ void __launch_bounds__(kBlock)
    unblend_kernel(GradShape shape, const float* background, GradSaved saved, GradUpstream upstream, float* sums) {
  __shared__ GradSplat splats[kUnblendBatch];
  __shared__ int64_t slots[kUnblendBatch];  // where the sums of an entry go
  __shared__ float parts[kUnblendBatch][kWarps][kGradSums];
  const PixelPlace p = place_thread(shape);
  const TileRange range = saved.ranges[blockIdx.x];
  const int thread = static_cast<int>(threadIdx.x), warp = thread / kWarp, lane = thread % kWarp;
  PixelBack at = begin_pixel(p, background, saved, upstream);
  int warp_stop = at.stop;
#pragma unroll
  for (int bit = kWarp / 2; bit > 0; bit /= 2)
    warp_stop = larger(warp_stop, __shfl_xor_sync(kAllLanes, warp_stop, bit));

  const int entries = range.end - range.begin;
  for (int end = entries; end > 0; end -= kUnblendBatch) {
    const int begin = larger(end - kUnblendBatch, 0), count = end - begin;
    if (thread < count) {
      const GradSplat s = saved.splats[saved.rows[range.begin + begin + thread]];
      const TileBox box = tile_box(s);
      splats[thread] = s;
      slots[thread] = int64_t{s.pair_begin} + (p.tile_y - box.y0) * box.columns + (p.tile_x - box.x0);
    }
    __syncthreads();
    for (int i = count - 1; i >= 0; --i) {
      const GradSplat& s = splats[i];
      float v[kGradSums] = {};
      bool blended = false;
      if (begin + i < warp_stop && touches_patch(s, p)) {  // the same for all lanes
        const float dx = s.x - static_cast<float>(p.x), dy = s.y - static_cast<float>(p.y);
        const float raw = unclamped_alpha(s, dx, dy);
        blended = begin + i < at.stop && raw >= kAlphaMin;
        if (blended) take_off(s, raw, dx, dy, &at, v);
      }
      if (__any_sync(kAllLanes, blended))
        sum_lanes(v, lane, parts[i][warp]);
      else if (lane < kGradSums)
        parts[i][warp][lane] = 0.0f;
    }
    __syncthreads();
    for (int k = thread; k < count * kGradSums; k += kBlock) {
      const int i = k / kGradSums, which = k % kGradSums;
      float sum = 0.0f;
#pragma unroll
      for (int w = 0; w < kWarps; ++w) sum += parts[i][w][which];
      sums[slots[i] * kGradSums + which] = sum;
    }
    __syncthreads();  // before the next round overwrites splats, slots and parts
  }
}

__global__ void __launch_bounds__(kBlock)
    finish_kernel(GradShape shape, GradInputs in, const GradSplat* splats, const float* sums, GradResults out) {
  const int64_t row = int64_t{blockIdx.x} * kBlock + threadIdx.x;
  if (row >= int64_t{shape.batch} * shape.count) return;
  const GradSplat s = splats[row];
  const TileBox box = tile_box(s);
  if (box.columns == 0) {
    chain_nothing(row, out);
    return;
  }
  float total[kGradSums] = {};
  const float* from = sums + int64_t{s.pair_begin} * kGradSums;
  for (int i = 0; i < box.columns * box.rows; ++i, from += kGradSums) {
#pragma unroll
    for (int k = 0; k < kGradSums; ++k) total[k] += from[k];
  }
  chain_sums(total, s.half_inv_x, s.half_inv_y, s.opacity, in, row, shape.width, shape.height, out);
}

}  // namespace streamsplat

#endif  // STREAMSPLAT_RASTER_GRAD_KERNELS_CUH_
