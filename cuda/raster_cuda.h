// CUDA rasterizer for inference: published semantics (REFERENCE.md section 3), several time stamps in one launch.
//
// A frame is two kernels, and blockIdx.z is the time stamp in both:
//   1. project   a thread per Gaussian: evaluate it at its time, cull and count, 2-D covariance, support box; its key
//                (depth bits << 32 | row) goes to the slots of every tile that its box touches, by an atomic counter,
//                which those of a warp that touch the same tile share
//   2. blend     a block per tile, a thread per pixel: sort the tile's keys in registers and shared memory, then front
//                to back through batches of Gaussians whose exponentials are tabulated per column and row, stopping
//                when the tile is saturated; reset the counter; the first tile publishes the counts of its time stamp
//
// Keys are unique, so the order in which they were appended cannot show: results are the same bits in every run.
//
// Nothing is ever dropped. A list longer than what is sorted at a time is taken in rounds, each the next nearest part,
// chosen by a radix select. A tile with more keys than slots has counted them all the same; its rounds then choose from
// all projected Gaussians instead of from the slots: slower, but complete, and decided on the device.
//
// Nothing is allocated and nothing is read back: what changes from frame to frame (times, background, view) lies in
// device memory, so that both kernels can be captured into a graph once and replayed.
//
// Compiled without contraction (-fmad=false), like the C++ version, so that both cull the same Gaussians and cut them
// at the same tiles; fused operations are written out.
#ifndef STREAMSPLAT_RASTER_CUDA_H_
#define STREAMSPLAT_RASTER_CUDA_H_

#include "splat_project.h"

namespace streamsplat {

typedef unsigned long long Word;  // the type of 64-bit atomics and shuffles
static_assert(sizeof(Word) == 8, "keys and counts are 64 bits");

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xFFFFFFFFu;

// Threads of a block: in blend one per pixel of a tile, in project one per Gaussian.
constexpr int kThreads = kTile * kTile;
static_assert(kThreads % kWarp == 0 && kThreads <= 1024, "whole warps, within the limit of every GPU");

// Blocks per multiprocessor that the compiler keeps registers free for: 64 per thread, and 48 in blend. Five blocks
// take the 576 tiles of 512x288 at once on 132 multiprocessors; with four, 48 tiles would run after the others, alone.
constexpr int kBlocksPerSm = 4;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
constexpr int kBlendBlocksPerSm = 4;  // SM 7.5 has room for 1024 threads
#else
constexpr int kBlendBlocksPerSm = 5;
#endif
static_assert(kBlocksPerSm * kThreads <= 1024, "SM 7.5 has room for 1024 threads");

// A warp takes a patch of 8x4 pixels: a small Gaussian then misses more warps of its tile than it would miss strips.
constexpr int kPatchWidth = 8;
constexpr int kPatchHeight = 4;
static_assert(kPatchWidth * kPatchHeight == kWarp && kTile % kPatchWidth == 0 && kTile % kPatchHeight == 0,
              "patches of a warp tile the tile");

// Keys that are sorted at a time: up to 4 per thread in registers, 8 KB of shared memory. With the tables below a block
// takes 17.1 KB, so that shared memory leaves room for the blocks that registers allow, where an SM has 100 KB (8.6,
// 8.9) or more; the 64 KB of SM 7.5 hold three.
constexpr int kSortCapacity = 1024;
static_assert(kSortCapacity >= kThreads && kSortCapacity % kThreads == 0 && (kSortCapacity & (kSortCapacity - 1)) == 0,
              "a power of two of whole rounds of threads");

// Bins of the radix select: one per thread.
constexpr int kDigitBits = 8;
static_assert(1 << kDigitBits == kThreads, "every thread owns a bin");

// Gaussians blended between two barriers: four threads tabulate one, and a warp finds those that touch its patch by one
// vote per 32.
constexpr int kBatch = 64;
constexpr int kThreadsPerSplat = kThreads / kBatch;
static_assert(kBatch % kWarp == 0 && kTile % kThreadsPerSplat == 0, "whole votes; columns divide among the threads");

// A projected Gaussian; read as three 16-byte words. Where the box is empty it is culled.
struct alignas(16) CudaSplat {
  float x, y;  // centre in pixels
  float half_inv_x, half_inv_y;
  float shear, opacity, r, g;
  float b, depth;
  int16_t box_x0, box_x1, box_y0, box_y1;  // pixels that can reach alpha 1/255, half-open, inside the image
};
static_assert(sizeof(CudaSplat) == 48, "three loads, and what the caller allocates");

// What changes from frame to frame, one per time stamp, in device memory.
struct RasterFrame {
  ViewInput view;       // used by the general kernels only
  float background[3];  // not clamped
  float dt[2];          // t - anchor of the earlier and of the later key frame; used where Gaussians come from the ring
};
static_assert(sizeof(RasterFrame) == 17 * sizeof(float), "layout known to the caller");

// Counts of one time stamp, in the order of RenderStats; then the tiles that had more keys than slots.
enum Tally {
  kRendered,
  kCulledInvalid,
  kCulledBehind,
  kCulledTransparent,
  kCulledOutside,
  kPairs,
  kBinnedPairs,
  kOverflowingTiles,
  kTallies
};
static_assert(kTallies == 8, "layout known to the caller");

// Arguments of both kernels, passed by value: constant over the life of a rasterizer. [T] = times.
struct RasterParams {
  int32_t width, height;
  int32_t times;
  int32_t count;   // capacity in rows of `splats`, and rows given where they do not come from the ring
  int32_t slots;   // keys per tile
  int32_t extent;  // Extent
  const float *means, *scales, *opacity, *rgb, *quats;  // as SplatInput; null where Gaussians come from the ring
  const RasterFrame* frames;                            // [T]
  CudaSplat* splats;                                    // [T, count]
  uint32_t* filled;                                     // [T, tiles] keys appended; zeros between frames
  Word* keys;                                           // [T, tiles, slots]
  Word* tally;                                          // [T, kTallies]; zeros between frames
  Word* stats;                                          // [T, kTallies] of the last frame
  float* rgb_out;                                       // [T, H, W, 3]; this and the others may be null: not wanted
  uint8_t* bytes_out;                                   // [T, H, W, 3] rounded to nearest, clamped
  float *depth_out, *expected_out, *alpha_out;          // [T, H, W]
};
static_assert(sizeof(RasterParams) == 24 + 16 * 8, "layout known to the caller");

SS_HD int tiles_across(const RasterParams& p) { return (p.width + kTile - 1) / kTile; }
SS_HD int tiles_down(const RasterParams& p) { return (p.height + kTile - 1) / kTile; }

SS_HD Word sort_key(float depth, uint32_t row) {
  uint32_t bits;  // positive floats order like their bits
  memcpy(&bits, &depth, sizeof bits);
  return static_cast<Word>(bits) << 32 | row;
}

}  // namespace streamsplat

#endif  // STREAMSPLAT_RASTER_CUDA_H_
