// CPU rasterizer: published semantics (REFERENCE.md section 3), threads and SIMD.
//
// One render goes through five phases, each a parallel loop over fixed blocks of work, so that the result is
// bit-identical whatever the number of threads:
//   1. project   every Gaussian: cull and count, 2-D covariance, tile rectangle, exact 1/255 support box
//   2. sort      the visible ones by (depth bits, index), a stable radix sort
//   3. count     tile-Gaussian pairs per (block of sorted Gaussians, tile), then prefix sums
//   4. scatter   Gaussian numbers into per-tile lists, already in depth order
//   5. blend     each tile front to back in registers, SIMD over pixels, stopping when the tile is saturated
#ifndef STREAMSPLAT_RASTER_CPU_H_
#define STREAMSPLAT_RASTER_CPU_H_

#include <cstdint>
#include <mutex>
#include <vector>

#include "raster_cpu_kernel.h"
#include "raster_cpu_pool.h"
#include "splat_project.h"

namespace streamsplat {

struct RenderTarget {
  float* rgb;             // [height][width][3]
  float* depth;           // [height][width] sum of depth * weight
  float* expected_depth;  // [height][width] depth / alpha, 0 where alpha is 0
  float* alpha;           // [height][width]
};

struct RasterStats {
  std::int64_t rendered = 0;
  std::int64_t culled_invalid = 0;      // an input is NaN or infinite, or the projection overflows
  std::int64_t culled_behind = 0;       // view depth <= 0
  std::int64_t culled_transparent = 0;  // opacity < 1/255
  std::int64_t culled_outside = 0;      // no tile (published) or no pixel (full) of the image is touched
  std::int64_t pairs = 0;               // tile-Gaussian pairs of the extent that was asked for
  std::int64_t binned_pairs = 0;        // those of them that can reach alpha 1/255, the work that was left
};

constexpr std::int64_t kProjectBlock = 1024;  // Gaussians per task of phase 1

class RasterizerCpu {
 public:
  // threads 0 = all cores. The level must be supported by this CPU (see simd_supported).
  RasterizerCpu(int height, int width, int threads, SimdLevel level);

  // view null = canonical. Serialised by a mutex; throws std::bad_alloc only. Buffers grow to the largest call seen.
  RasterStats render(const SplatInput& splats, const ViewInput* view, const float background[3], Extent extent,
                     const RenderTarget& target);

 private:
  struct Block {
    std::int64_t visible = 0;
    RasterStats stats;
  };

  void reserve(std::int64_t count);

  // The phases above, in order. Those from `scatter` on handle the tiles [first, last) of a band; `begin_band` ends it
  // where its lists would not fit the budget any more, returns `last`, and turns counts into write positions.
  void project(const SplatInput& splats, const ViewInput* view, Extent extent, RasterStats& stats);
  void sort();
  void count_tiles();
  int begin_band(int first);
  void scatter(int first, int last);
  void blend(int first, int last, bool canonical, const float background[3], const RenderTarget& target);

  int height_, width_, tiles_x_, tiles_y_;
  int threads_;
  const SimdKernels* kernels_;
  ThreadPool* pool_ = nullptr;  // looked up anew by every render: it differs in a forked child
  std::mutex mutex_;

  std::int64_t visible_ = 0;
  std::vector<Splat> splats_;                // [count], only the visible entries count
  std::vector<TileRect> rects_;              // [count], likewise
  std::vector<TileRect> sorted_rects_;       // in depth order
  std::vector<std::uint64_t> keys_, spare_;  // depth bits << 32 | index, [count]
  std::vector<Block> blocks_;
  std::vector<std::uint32_t> histograms_;   // [chunk][digit]
  std::vector<std::uint32_t> tile_counts_;  // [chunk][tile], counts and then write positions
  std::vector<std::uint32_t> tile_begin_;   // [tile + 1] of the current band
  std::vector<std::uint32_t> lists_;        // Gaussian indices, tile after tile
};

}  // namespace streamsplat

#endif  // STREAMSPLAT_RASTER_CPU_H_
