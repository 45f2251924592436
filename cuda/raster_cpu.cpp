#include "raster_cpu.h"

#include <algorithm>

namespace streamsplat {
namespace {

constexpr int kDigitBitsMax = 11;
constexpr std::int64_t kSortParallelFrom = 16384;             // below, starting threads costs more than sorting
constexpr std::uint64_t kBandPairs = std::uint64_t{1} << 25;  // list entries held at a time (128 MB at most)

constexpr std::int64_t kPrefetch = 24;  // Gaussians

int chunk_count(std::int64_t items, int threads) { return items < kSortParallelFrom ? 1 : std::min(2 * threads, 16); }

std::int64_t chunk_begin(std::int64_t items, int chunk, int chunks) { return items * chunk / chunks; }

int bit_width(std::uint32_t v) { return v == 0 ? 0 : 32 - __builtin_clz(v); }

template <class T>
void grow(std::vector<T>& v, std::size_t size) {
  if (v.size() < size) v.resize(size);
}

}  // namespace

RasterizerCpu::RasterizerCpu(int height, int width, int threads, SimdLevel level)
    : height_(height),
      width_(width),
      tiles_x_((width + kTile - 1) / kTile),
      tiles_y_((height + kTile - 1) / kTile),
      threads_(ThreadPool::shared(threads).threads()),
      level_(level == SimdLevel::kAuto ? simd_best() : level),
      kernels_(&simd_kernels(level)) {
  grow(tile_begin_, static_cast<std::size_t>(tiles_x_) * static_cast<std::size_t>(tiles_y_) + 1);
}

void RasterizerCpu::reserve(std::int64_t count) {
  const std::size_t n = static_cast<std::size_t>(count);
  grow(splats_, n);
  grow(rects_, n);
  grow(sorted_rects_, n);
  grow(keys_, n);
  grow(spare_, n);
  grow(blocks_, n / static_cast<std::size_t>(kProjectBlock) + 1);
  const std::size_t chunks = static_cast<std::size_t>(chunk_count(count, threads_));
  grow(histograms_, chunks << kDigitBitsMax);
  grow(tile_counts_, chunks * static_cast<std::size_t>(tiles_x_) * static_cast<std::size_t>(tiles_y_));
}

RasterStats RasterizerCpu::render(const SplatInput& splats, const ViewInput* view, const float background[3],
                                  Extent extent, const RenderTarget& target) {
  std::lock_guard<std::mutex> lock(mutex_);
  pool_ = &ThreadPool::shared(threads_);
  reserve(splats.count);
  RasterStats stats;
  project(splats, view, extent, stats);
  sort();
  bin_and_blend(view == nullptr && splats.quats == nullptr, background, target);
  return stats;
}

// Least-significant-digit radix sort on the depth bits. It is stable and the keys start in index order, so ties stay in
// index order; the number of chunks does not change the result.
void RasterizerCpu::sort() {
  const std::int64_t n = visible_;
  if (n < 2) return;
  std::uint32_t low = UINT32_MAX, high = 0;
  for (std::int64_t i = 0; i < n; ++i) {
    const std::uint32_t depth = static_cast<std::uint32_t>(keys_[static_cast<std::size_t>(i)] >> 32);
    low = std::min(low, depth);
    high = std::max(high, depth);
  }
  const int bits = bit_width(high - low);
  const int passes = (bits + kDigitBitsMax - 1) / kDigitBitsMax;
  if (passes == 0) return;
  const int digit_bits = (bits + passes - 1) / passes;
  const std::size_t digits = std::size_t{1} << digit_bits;
  const int chunks = chunk_count(n, threads_);
  for (int pass = 0; pass < passes; ++pass) {
    const int shift = pass * digit_bits;
    const auto digit_of = [&](std::uint64_t key) {
      return ((static_cast<std::uint32_t>(key >> 32) - low) >> shift) & (static_cast<std::uint32_t>(digits) - 1);
    };
    const std::uint64_t* const from = keys_.data();
    std::uint64_t* const to = spare_.data();
    pool_->parallel_for(chunks, [&](int chunk) {
      std::uint32_t* const histogram = histograms_.data() + static_cast<std::size_t>(chunk) * digits;
      std::fill(histogram, histogram + digits, 0u);
      const std::int64_t end = chunk_begin(n, chunk + 1, chunks);
      for (std::int64_t i = chunk_begin(n, chunk, chunks); i < end; ++i) ++histogram[digit_of(from[i])];
    });
    std::uint32_t position = 0;
    for (std::size_t digit = 0; digit < digits; ++digit)
      for (int chunk = 0; chunk < chunks; ++chunk) {
        std::uint32_t& entry = histograms_[static_cast<std::size_t>(chunk) * digits + digit];
        const std::uint32_t count = entry;
        entry = position;
        position += count;
      }
    pool_->parallel_for(chunks, [&](int chunk) {
      std::uint32_t* const write = histograms_.data() + static_cast<std::size_t>(chunk) * digits;
      const std::int64_t end = chunk_begin(n, chunk + 1, chunks);
      for (std::int64_t i = chunk_begin(n, chunk, chunks); i < end; ++i) to[write[digit_of(from[i])]++] = from[i];
    });
    keys_.swap(spare_);
  }
}

void RasterizerCpu::bin_and_blend(bool canonical, const float background[3], const RenderTarget& target) {
  const int tiles = tiles_x_ * tiles_y_;
  const std::size_t tile_stride = static_cast<std::size_t>(tiles);
  const std::int64_t n = visible_;
  const int chunks = chunk_count(n, threads_);

  pool_->parallel_for(chunks, [&](int chunk) {
    std::uint32_t* const counts = tile_counts_.data() + static_cast<std::size_t>(chunk) * tile_stride;
    std::fill(counts, counts + tiles, 0u);
    const std::int64_t end = chunk_begin(n, chunk + 1, chunks);
    for (std::int64_t i = chunk_begin(n, chunk, chunks); i < end; ++i) {
      // In depth order the rectangles are scattered: fetch ahead, and keep a sorted copy for the second pass.
      const std::int64_t ahead = std::min(i + kPrefetch, end - 1);
      __builtin_prefetch(&rects_[static_cast<std::uint32_t>(keys_[static_cast<std::size_t>(ahead)])]);
      const TileRect rect = rects_[static_cast<std::uint32_t>(keys_[static_cast<std::size_t>(i)])];
      sorted_rects_[static_cast<std::size_t>(i)] = rect;
      for (int y = rect.y0; y < rect.y1; ++y)
        for (int x = rect.x0; x < rect.x1; ++x) ++counts[y * tiles_x_ + x];
    }
  });

  // Tiles are worked off in bands whose lists fit a fixed budget: thousands of Gaussians that each cover the whole
  // image must not need memory for Gaussians times tiles. Ordinary scenes are one band.
  for (int first = 0; first < tiles;) {
    std::uint64_t held = 0;
    int last = first;
    while (last < tiles) {
      std::uint64_t in_tile = 0;
      for (int chunk = 0; chunk < chunks; ++chunk)
        in_tile += tile_counts_[static_cast<std::size_t>(chunk) * tile_stride + static_cast<std::size_t>(last)];
      if (last > first && held + in_tile > kBandPairs) break;
      std::uint32_t position = static_cast<std::uint32_t>(held);
      tile_begin_[static_cast<std::size_t>(last)] = position;
      for (int chunk = 0; chunk < chunks; ++chunk) {
        std::uint32_t& entry =
            tile_counts_[static_cast<std::size_t>(chunk) * tile_stride + static_cast<std::size_t>(last)];
        const std::uint32_t count = entry;
        entry = position;
        position += count;
      }
      held += in_tile;
      ++last;
    }
    tile_begin_[static_cast<std::size_t>(last)] = static_cast<std::uint32_t>(held);
    grow(lists_, static_cast<std::size_t>(held));

    pool_->parallel_for(chunks, [&](int chunk) {
      std::uint32_t* const write = tile_counts_.data() + static_cast<std::size_t>(chunk) * tile_stride;
      const std::int64_t end = chunk_begin(n, chunk + 1, chunks);
      for (std::int64_t i = chunk_begin(n, chunk, chunks); i < end; ++i) {
        const std::uint32_t index = static_cast<std::uint32_t>(keys_[static_cast<std::size_t>(i)]);
        const TileRect rect = sorted_rects_[static_cast<std::size_t>(i)];
        for (int y = rect.y0; y < rect.y1; ++y)
          for (int x = rect.x0; x < rect.x1; ++x) {
            const int tile = y * tiles_x_ + x;
            if (tile >= first && tile < last) lists_[write[tile]++] = index;
          }
      }
    });

    const auto blend = canonical ? kernels_->blend_canonical : kernels_->blend_general;
    pool_->parallel_for(last - first, [&](int task) {
      const int tile = first + task;
      const std::uint32_t begin = tile_begin_[static_cast<std::size_t>(tile)];
      TileJob job;
      job.splats = splats_.data();
      job.list = lists_.data() + begin;
      job.count = tile_begin_[static_cast<std::size_t>(tile) + 1] - begin;
      job.x0 = tile % tiles_x_ * kTile;
      job.y0 = tile / tiles_x_ * kTile;
      job.width = width_;
      job.height = height_;
      std::copy(background, background + 3, job.background);
      job.rgb = target.rgb;
      job.depth = target.depth;
      job.expected_depth = target.expected_depth;
      job.alpha = target.alpha;
      blend(job);
    });
    first = last;
  }
}

}  // namespace streamsplat
