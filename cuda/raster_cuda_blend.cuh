// Phase 2 of the CUDA rasterizer: the tile's keys in order, and its pixels front to back.
#ifndef STREAMSPLAT_RASTER_CUDA_BLEND_CUH_
#define STREAMSPLAT_RASTER_CUDA_BLEND_CUH_

#include "raster_cuda_sort.cuh"

namespace streamsplat {

// What the threads of a tile share about a Gaussian, in pixels of the tile. Canonical: alpha(column, row) = column[] *
// row[], so 32 exponentials per Gaussian and tile instead of 256. General: `conic` instead.
struct alignas(16) TabulatedSplat {
  float colour[4];  // r, g, b, depth
  union {
    struct {
      float column[kTile];  // opacity * exp(-dx^2 ..)
      float row[kTile];     // exp(-dy^2 ..)
    };
    float conic[6];  // x, y, half_inv_x, half_inv_y, shear, opacity
  };
};
static_assert(sizeof(TabulatedSplat) % 32 == 16, "consecutive Gaussians begin in different banks");

struct BatchShared {
  TabulatedSplat splats[kBatch];
  uint8_t patches[kBatch];  // bit w: the box touches the patch of warp w
};

struct BlendShared {
  SelectShared select;
  union {  // keys have been chosen before the first batch of them is tabulated
    SelectBins bins;
    BatchShared batch;
  };
};
static_assert(kBlendBlocksPerSm * (sizeof(BlendShared) + 1024) <= 100 * 1024,
              "fits as often into the smallest SM that has so many threads (8.6), which takes 1 KB per block itself");

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

constexpr float kFinished = 2.0f * kOpacityMax;  // above every alpha

struct PixelState {
  float t = 1.0f, r = 0.0f, g = 0.0f, b = 0.0f, depth = 0.0f;
  float alpha_min;  // what adds to it; kFinished where nothing does any more

  SS_HD bool open() const { return alpha_min < kFinished; }
};

// Which patches of a tile are touched by a box that touches the tile, given in pixels of the tile: bit w is warp w's.
SS_HD uint8_t touched_patches(int x0, int x1, int y0, int y1) {
  constexpr int kAcross = kTile / kPatchWidth, kDown = kTile / kPatchHeight;
  static_assert(kAcross * kDown <= 8, "a bit each");
  const int left = larger(x0, 0) / kPatchWidth, right = (smaller(x1, kTile) - 1) / kPatchWidth;
  const int top = larger(y0, 0) / kPatchHeight, bottom = (smaller(y1, kTile) - 1) / kPatchHeight;
  const unsigned row = (2u << right) - (1u << left);
  unsigned rows = 0;
#pragma unroll
  for (int y = 0; y < kDown; ++y) rows |= y >= top && y <= bottom ? row << y * kAcross : 0u;
  return static_cast<uint8_t>(rows);
}

// kThreadsPerSplat threads fill in one Gaussian. expf and not __expf: its error of 2 ulp is that of the C++ version.
template <bool kCanonical>
__device__ inline void tabulate(const CudaSplat* splats, const Word* keys, int count, int x0, int y0,
                                BatchShared* batch) {
  const int thread = static_cast<int>(threadIdx.x);
  const int e = thread / kThreadsPerSplat, part = thread % kThreadsPerSplat;
  if (e >= count) return;
  const CudaSplat s = splats[static_cast<uint32_t>(keys[e])];  // all at once: one wait instead of one per part
  const float x = s.x - static_cast<float>(x0), y = s.y - static_cast<float>(y0);
  TabulatedSplat* const to = &batch->splats[e];
  if (kCanonical) {
    constexpr int kEach = kTile / kThreadsPerSplat;
    const float begin = static_cast<float>(part * kEach);
#pragma unroll
    for (int k = 0; k < kEach; ++k) {
      const float at = begin + static_cast<float>(k);  // exact, and cheaper than converting each
      const float dx = x - at, dy = y - at;
      to->column[part * kEach + k] = s.opacity * expf(-s.half_inv_x * dx * dx);
      to->row[part * kEach + k] = expf(-s.half_inv_y * dy * dy);
    }
  } else if (part == 0) {
    to->conic[0] = x;
    to->conic[1] = y;
    to->conic[2] = s.half_inv_x;
    to->conic[3] = s.half_inv_y;
    to->conic[4] = s.shear;
    to->conic[5] = s.opacity;
  }
  if (part == 1) {
    to->colour[0] = s.r;
    to->colour[1] = s.g;
    to->colour[2] = s.b;
    to->colour[3] = s.depth;
  } else if (part == 2) {
    batch->patches[e] = touched_patches(s.box_x0 - x0, s.box_x1 - x0, s.box_y0 - y0, s.box_y1 - y0);
  }
}
static_assert(kThreadsPerSplat >= 3, "parts 0 to 2 each have their share");

// Opacity times the Gaussian at the thread's pixel.
template <bool kCanonical>
__device__ inline float unclamped_alpha(const TabulatedSplat& splat, const TilePixel& at) {
  if (kCanonical) return splat.column[at.column] * splat.row[at.row];
  const float* conic = splat.conic;
  const float dx = conic[0] - static_cast<float>(at.column), dy = conic[1] - static_cast<float>(at.row);
  const float u = fmaf(conic[4], dy, dx);
  return conic[5] * expf(-fmaf(u * u, conic[2], dy * dy * conic[3]));
}

// Blends the batch into the thread's pixel; a warp walks the Gaussians that touch its patch. Its lanes stay together:
// the loop holds no branch, and what does not reach a pixel, or comes after it is finished, has weight 0 there.
template <bool kCanonical>
__device__ inline void blend_batch(const BatchShared& batch, int count, const TilePixel& at, PixelState* pixel) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
#pragma unroll 1
  for (int first = 0; first < count && __any_sync(kAllLanes, pixel->open()); first += kWarp) {
    const int mine = first + lane;
    unsigned left = __ballot_sync(kAllLanes, mine < count && (batch.patches[mine] >> warp & 1) != 0);
#pragma unroll 1  // spares registers; the warps of several blocks hide the latency
    while (left != 0) {
      const unsigned lowest = left & (0u - left);  // its number is found faster when it stands alone
      left ^= lowest;
      const TabulatedSplat& splat = batch.splats[first + kWarp - 1 - __clz(static_cast<int>(lowest))];
      const float raw = unclamped_alpha<kCanonical>(splat, at);
      const float alpha = raw < kAlphaMax ? raw : kAlphaMax;
      const float behind = fmaf(-pixel->t, alpha, pixel->t);
      const bool reached = raw >= pixel->alpha_min, taken = reached && behind >= kTransmittanceMin;
      const float weight = taken ? pixel->t * alpha : 0.0f;
      if (reached && !taken) pixel->alpha_min = kFinished;
      pixel->t = taken ? behind : pixel->t;
      pixel->r = fmaf(weight, splat.colour[0], pixel->r);
      pixel->g = fmaf(weight, splat.colour[1], pixel->g);
      pixel->b = fmaf(weight, splat.colour[2], pixel->b);
      pixel->depth = fmaf(weight, splat.colour[3], pixel->depth);
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
    if (__syncthreads_count(pixel->open()) == 0) return false;  // also: all are done with the last batch
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
  pixel.alpha_min = inside ? kAlphaMin : kFinished;

  KeySource source{nullptr, splats, rows, row_count, tile_x * kTile, tile_y * kTile};
  if (total <= p.slots) {
    source.slots = p.keys + tile * p.slots;
    source.count = total;
  }
  Word from = 0;
  for (int left = total; left > 0;) {
    int count = left;
    Word bound = kNoKey;
    if (left > kSortCapacity) bound = choose_bound(source, from, &shared->select, &shared->bins, &count);
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
