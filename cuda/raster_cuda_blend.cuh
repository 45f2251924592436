// Phase 2 of the CUDA rasterizer: the tile's keys in order, and its pixels front to back.
#ifndef STREAMSPLAT_RASTER_CUDA_BLEND_CUH_
#define STREAMSPLAT_RASTER_CUDA_BLEND_CUH_

#include "raster_cuda_sort.cuh"

namespace streamsplat {

// What the threads of a tile share about a batch of Gaussians, in pixels of the tile. Canonical: alpha(column, row) =
// column[] * row[], so 32 exponentials per Gaussian and tile instead of 256. General: `conic` instead.
struct BatchShared {
  union {
    struct {
      alignas(16) float column[kBatch][kTile];  // opacity * exp(-dx^2 ..)
      alignas(16) float row[kBatch][kTile];     // exp(-dy^2 ..)
    };
    alignas(16) float conic[kBatch][8];  // x, y, half_inv_x, half_inv_y, shear, opacity
  };
  alignas(16) float colour[kBatch][4];  // r, g, b, depth
  int16_t box[kBatch][4];               // x0, x1, y0, y1
};

struct BlendShared {
  SelectShared select;
  BatchShared batch;
};

// A thread's pixel and the patch of its warp, in the tile.
struct TilePixel {
  int column, row;
  int left, top;  // first pixel of the patch
};
__device__ inline TilePixel tile_pixel() {
  const int thread = static_cast<int>(threadIdx.x), warp = thread / kWarp, lane = thread % kWarp;
  constexpr int kPatches = kTile / kPatchWidth;
  TilePixel at;
  at.left = warp % kPatches * kPatchWidth;
  at.top = warp / kPatches * kPatchHeight;
  at.column = at.left + lane % kPatchWidth;
  at.row = at.top + lane / kPatchWidth;
  return at;
}

struct PixelState {
  float t = 1.0f, r = 0.0f, g = 0.0f, b = 0.0f, depth = 0.0f;
  bool open;  // takes further Gaussians
};

// kThreadsPerSplat threads fill in one Gaussian. expf and not __expf: its error of 2 ulp is that of the C++ version.
template <bool kCanonical>
__device__ inline void tabulate(const CudaSplat* splats, const Word* keys, int count, int x0, int y0,
                                BatchShared* batch) {
  const int thread = static_cast<int>(threadIdx.x);
  const int e = thread / kThreadsPerSplat, part = thread % kThreadsPerSplat;
  if (e >= count) return;
  const CudaSplat& s = splats[static_cast<uint32_t>(keys[e])];
  const float x = s.x - static_cast<float>(x0), y = s.y - static_cast<float>(y0);
  if (kCanonical) {
    constexpr int kEach = kTile / kThreadsPerSplat;
#pragma unroll
    for (int k = 0; k < kEach; ++k) {
      const int i = part * kEach + k;
      const float dx = x - static_cast<float>(i), dy = y - static_cast<float>(i);
      batch->column[e][i] = s.opacity * expf(-s.half_inv_x * dx * dx);
      batch->row[e][i] = expf(-s.half_inv_y * dy * dy);
    }
  } else if (part == 0) {
    batch->conic[e][0] = x;
    batch->conic[e][1] = y;
    batch->conic[e][2] = s.half_inv_x;
    batch->conic[e][3] = s.half_inv_y;
    batch->conic[e][4] = s.shear;
    batch->conic[e][5] = s.opacity;
  }
  if (part == 1) {
    batch->colour[e][0] = s.r;
    batch->colour[e][1] = s.g;
    batch->colour[e][2] = s.b;
    batch->colour[e][3] = s.depth;
  } else if (part == 2) {
    batch->box[e][0] = static_cast<int16_t>(s.box_x0 - x0);
    batch->box[e][1] = static_cast<int16_t>(s.box_x1 - x0);
    batch->box[e][2] = static_cast<int16_t>(s.box_y0 - y0);
    batch->box[e][3] = static_cast<int16_t>(s.box_y1 - y0);
  }
}
static_assert(kThreadsPerSplat >= 3, "parts 0 to 2 each have their share");

__device__ inline bool touches_patch(const int16_t* box, const TilePixel& at) {
  return box[0] < at.left + kPatchWidth && box[1] > at.left && box[2] < at.top + kPatchHeight && box[3] > at.top;
}

// Opacity times the Gaussian at the thread's pixel.
template <bool kCanonical>
__device__ inline float unclamped_alpha(const BatchShared& batch, int e, const TilePixel& at) {
  if (kCanonical) return batch.column[e][at.column] * batch.row[e][at.row];
  const float* conic = batch.conic[e];
  const float dx = conic[0] - static_cast<float>(at.column), dy = conic[1] - static_cast<float>(at.row);
  const float u = fmaf(conic[4], dy, dx);
  return conic[5] * expf(-fmaf(u * u, conic[2], dy * dy * conic[3]));
}

// Blends the batch into the thread's pixel; a warp walks the Gaussians that touch its patch.
template <bool kCanonical>
__device__ inline void blend_batch(const BatchShared& batch, int count, const TilePixel& at, PixelState* pixel) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
#pragma unroll 1
  for (int first = 0; first < count; first += kWarp) {
    const int mine = first + lane;
    const bool wanted = mine < count && touches_patch(batch.box[mine], at);
    unsigned mask = __ballot_sync(kAllLanes, wanted);
#pragma unroll 1  // spares registers; the warps of several blocks hide the latency
    for (; pixel->open && mask != 0; mask &= mask - 1) {
      const int e = first + __ffs(static_cast<int>(mask)) - 1;
      const float raw = unclamped_alpha<kCanonical>(batch, e, at);
      if (!(raw >= kAlphaMin)) continue;
      const float alpha = raw < kAlphaMax ? raw : kAlphaMax;
      const float next = fmaf(-pixel->t, alpha, pixel->t);
      if (next < kTransmittanceMin) {
        pixel->open = false;
        break;
      }
      const float weight = pixel->t * alpha;
      pixel->t = next;
      pixel->r = fmaf(weight, batch.colour[e][0], pixel->r);
      pixel->g = fmaf(weight, batch.colour[e][1], pixel->g);
      pixel->b = fmaf(weight, batch.colour[e][2], pixel->b);
      pixel->depth = fmaf(weight, batch.colour[e][3], pixel->depth);
    }
  }
}

// Rounds to nearest as the C++ chain does, after clamping.
SS_HD uint8_t to_byte(float v) {
  const float scaled = rintf(v * 255.0f);
  return static_cast<uint8_t>(scaled > 0.0f ? (scaled < 255.0f ? scaled : 255.0f) : 0.0f);
}

// alpha = sum of weights = 1 - transmittance (the sum telescopes). Depth is 0 where alpha is.
__device__ inline void write_pixel(const RasterParams& p, const RasterFrame& frame, int64_t to,
                                   const PixelState& pixel) {
  const float colour[3] = {pixel.r + pixel.t * frame.background[0], pixel.g + pixel.t * frame.background[1],
                           pixel.b + pixel.t * frame.background[2]};
  const float alpha = 1.0f - pixel.t;
#pragma unroll
  for (int c = 0; c < 3; ++c) {
    if (p.rgb_out != nullptr) p.rgb_out[3 * to + c] = colour[c];
    if (p.bytes_out != nullptr) p.bytes_out[3 * to + c] = to_byte(colour[c]);
  }
  if (p.depth_out != nullptr) p.depth_out[to] = pixel.depth;
  if (p.expected_out != nullptr) p.expected_out[to] = pixel.depth / (alpha > 0.0f ? alpha : 1.0f);
  if (p.alpha_out != nullptr) p.alpha_out[to] = alpha;
}

// Sorts and blends `count` keys of shared memory; false when all pixels are finished.
template <bool kCanonical>
__device__ inline bool blend_keys(const CudaSplat* splats, int count, int x0, int y0, const TilePixel& at,
                                  BlendShared* shared, PixelState* pixel) {
  sort_some(shared->select.keys, count);
#pragma unroll 1
  for (int first = 0; first < count; first += kBatch) {
    if (__syncthreads_count(pixel->open) == 0) return false;  // also: all are done with the last batch
    const int batch = smaller(kBatch, count - first);
    tabulate<kCanonical>(splats, shared->select.keys + first, batch, x0, y0, &shared->batch);
    __syncthreads();
    blend_batch<kCanonical>(shared->batch, batch, at, pixel);
  }
  return true;
}

// A tile of a time stamp. `rows` and `row_count`: what was projected, for tiles with more keys than slots.
template <bool kCanonical>
__device__ inline void blend_tile(const RasterParams& p, const int32_t* rows, int row_count, BlendShared* shared) {
  const int thread = static_cast<int>(threadIdx.x), time = static_cast<int>(blockIdx.z);
  const int tile_x = static_cast<int>(blockIdx.x) % tiles_across(p);
  const int tile_y = static_cast<int>(blockIdx.x) / tiles_across(p);
  const int64_t tile = int64_t{time} * tiles_across(p) * tiles_down(p) + blockIdx.x;
  const TilePixel at = tile_pixel();
  const int x = tile_x * kTile + at.column, y = tile_y * kTile + at.row;
  const bool inside = x < p.width && y < p.height;
  const CudaSplat* const splats = p.splats + int64_t{time} * p.count;
  const int total = static_cast<int>(p.filled[tile]);
  PixelState pixel;
  pixel.open = inside;

  KeySource source{nullptr, splats, rows, row_count, tile_x * kTile, tile_y * kTile};
  if (total <= p.slots) {
    source.slots = p.keys + tile * p.slots;
    source.count = total;
  }
  Word from = 0;
  for (int left = total; left > 0;) {
    int count = left;
    Word bound = kNoKey;
    if (left > kSortCapacity) bound = choose_bound(source, from, &shared->select, &count);
    collect(source, from, bound, source.slots != nullptr && total <= kSortCapacity, &shared->select);
    if (!blend_keys<kCanonical>(splats, count, source.x0, source.y0, at, shared, &pixel)) break;
    left -= count;
    from = bound;
  }
  if (inside) write_pixel(p, p.frames[time], (int64_t{time} * p.height + y) * p.width + x, pixel);

  // Everyone has read the counter: threads have met at a barrier since, where it is not 0 already. It is read again,
  // as `total` would cost a register through all of the above.
  if (thread == 0 && p.filled[tile] != 0) p.filled[tile] = 0;
  if (blockIdx.x == 0 && thread < kTallies) {
    const int k = time * kTallies + thread;
    p.stats[k] = p.tally[k];
    p.tally[k] = 0;
  }
}

}  // namespace streamsplat

#endif  // STREAMSPLAT_RASTER_CUDA_BLEND_CUH_
